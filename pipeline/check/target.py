"""Whether a steered training ended at its target, by the network that surgery left."""

from __future__ import annotations

from torch import nn

from pipeline.config import Target
from pipeline.results import Cut, Trained
from pipeline.training.steering.stopwatch import Stopwatch
from runtime.gate import Gate, disturbance, target_gate
from runtime.macs import macs
from runtime.measure.conditions import complaints


def landing(
    target: Target | None,
    trained: Trained,
    cut: Cut,
    networks: tuple[nn.Module, nn.Module],
    input_shape: tuple[int, int, int],
    threads: int,
) -> Gate | None:
    """The gate on the target, None without one; `networks`: dense and compact; `threads`: of a latency's timing."""
    if target is None:
        return None
    if target.macs is not None:
        dense, compact = (macs(network, input_shape) for network in networks)
        return target_gate("share of MACs", target.macs, compact / dense)
    if target.channels is not None:
        return target_gate("share of channels", target.channels, cut.channels_after / cut.channels_before)
    assert target.latency_ms is not None and trained.reached is not None
    stopwatch = Stopwatch(input_shape, target.batch, target.backend, threads)
    compared = stopwatch.compared(*networks)
    faster, doubt = compared.speedups[0], disturbance(complaints(compared.conditions, settings=False))
    dense_ms = trained.reached["dense_latency_ms"]  # the machine may be faster today than when the training began
    low, high = (dense_ms / ratio for ratio in reversed(faster.ci95))
    what = f"batch {target.batch} on {target.backend}"
    return target_gate(what, target.latency_ms, dense_ms / faster.ratio, " ms", (low, high), doubt)
