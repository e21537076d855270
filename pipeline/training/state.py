"""The network as it is between two steps, its channels and its optimizer; and the same with dead channels cut out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.surgery import Anatomy
from pipeline.surgery.shrink_training import shrink_training
from pipeline.surgery.watch import anatomy
from pipeline.training.compute import Compute
from pipeline.training.compute.onednn_workaround import writes_past
from pipeline.training.optimizer import Optimizer, over
from pipeline.training.snapshots.checkpoint import moments_of, put_moments
from runtime.macs import macs_of

Inputs = tuple[Tensor, ...]
"""What a network is called with, the first axis of each being the batch."""
WITNESSES = 16
"""Images of the next batch on which a removal must not change the training step."""


@dataclass(frozen=True)
class TrainState:
    """`forward` is what a step calls: the network itself, compiled or joined with other processes; `without_onednn`: a
    step must keep away from it (`sound_kernels`)."""

    network: nn.Module
    anatomy: Anatomy
    optimizer: Optimizer
    forward: Callable[..., Any]
    macs: int
    """Multiply-accumulates of one image."""
    without_onednn: bool = False
    average: nn.Module | None = None
    """An averaged copy of the network, which is cut along."""

    @property
    def params(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


@dataclass(frozen=True)
class Removal:
    """What a removal between two steps did; `channels` are those removed, the rest is afterwards."""

    step: int
    channels: int
    left: int
    params: int
    macs: int
    max_rel_diff: float
    """Of the network cut from the one before, and of its next step from that one's; float64, relative."""
    seconds: float
    """From the verdict on to the next step."""
    images_per_s_before: float | None = None
    images_per_s_after: float | None = None
    step_ms_before: float | None = None
    step_ms_after: float | None = None
    """Milliseconds of a step, over the same steps as the images: the nearest ones that were timed (`history`); None
    where none was."""

    def document(self) -> dict[str, Any]:
        return asdict(self)


def state_of(network: nn.Module, optimizer: Optimizer, example: Inputs, compute: Compute) -> TrainState:
    """The state of a network that lies on its device already; `example`: what it takes, at least 2 samples, there."""
    units = anatomy(network, example)
    past = compute.device.type == "cpu" and writes_past(network)
    return TrainState(network, units, optimizer, compute.forward_of(network, example), macs_of(network, example), past)


def without(
    state: TrainState,
    dead: Mapping[str, Tensor],
    inputs: Inputs,
    compute: Compute,
    align: int = 1,
    pinned: Mapping[str, Tensor] | None = None,
    averages: list[nn.Module] | None = None,
) -> tuple[TrainState, float]:
    """The state with the dead channels cut out of network and optimizer, and how much the cut changed (`max_rel_diff`);
    the same where none can go.

    `inputs`: of a training batch, at least 2 samples; a channel that learns from the first WITNESSES of them stays.
    `align`: dead channels stay up to this multiple, per group of layers, for surgery to decide on. `pinned`: entries
    that the training holds, see `Hooks.pinned`. `averages`: averaged copies of the network, replaced by cut ones.
    Raises UserError where the network does more in training mode than a graph can hold.
    """
    witnesses = tuple(compute.ranks.same(x[:WITNESSES].clone()) for x in inputs)
    own, others = [] if state.average is None else [state.average], [] if averages is None else averages
    shrunk = shrink_training(
        state.network, witnesses, state.optimizer.inner, dead, averages=own + others, pinned=pinned, align=align
    )
    if shrunk.compact.certificate["channels"]["after"] == shrunk.compact.certificate["channels"]["before"]:
        return state, 0.0
    others[:] = shrunk.averages[len(own) :]
    network = compute.placed(shrunk.compact.model)
    torch.compiler.reset()  # what was compiled for the old widths is of no use any more
    difference = max(shrunk.compact.certificate["law"]["max_rel_diff"], shrunk.step_rel_diff or 0.0)
    optimizer = over(state.optimizer, shrunk.optimizer)
    put_moments(network, optimizer, moments_of(network, optimizer))  # torch's fused steps walk both as they lie
    example = tuple(x.new_zeros(2, *x.shape[1:]) for x in inputs)
    after = state_of(network, optimizer, example, compute)
    average = compute.placed(shrunk.averages[0]) if own else None
    return replace(after, average=average), difference


def removal_of(channels: int, after: TrainState, difference: float, step: int, start: float) -> Removal:
    """What a removal from so many `channels` that began at `start` (time.perf_counter) did; its speeds come from the
    history."""
    remaining = after.anatomy.channels
    return Removal(
        step, channels - remaining, remaining, after.params, after.macs, difference, time.perf_counter() - start
    )
