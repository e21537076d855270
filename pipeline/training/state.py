"""What a training goes on with: the network as it is now, its channels, and its optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.surgery import Anatomy, anatomy
from pipeline.surgery.resume import shrink_training
from pipeline.training.checkpoint import moments_of, put_moments
from pipeline.training.compute import Compute
from pipeline.training.optimizer import Optimizer, over
from pipeline.training.sound_kernels import writes_past
from runtime.macs import macs

WITNESSES = 16
"""Images of the next batch on which a removal must not change the training step."""


@dataclass(frozen=True)
class TrainState:
    """`forward` is what a step calls: the network itself, compiled or joined with other processes; `without_onednn`: a
    step must keep away from it (`sound_kernels`)."""

    network: nn.Module
    anatomy: Anatomy
    optimizer: Optimizer
    forward: Callable[[Tensor], Any]
    macs: int
    """Multiply-accumulates of one image."""
    without_onednn: bool = False

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


def state_of(network: nn.Module, optimizer: Optimizer, shape: tuple[int, ...], compute: Compute) -> TrainState:
    """The state of a network placed already; `shape` (C, H, W)."""
    units = anatomy(network, (torch.zeros(2, *shape, device=compute.device),))
    past = compute.device.type == "cpu" and writes_past(network)
    return TrainState(network, units, optimizer, compute.forward_of(network, shape), macs(network, shape), past)


def without(
    state: TrainState,
    dead: Mapping[str, Tensor],
    x: Tensor,
    shape: tuple[int, ...],
    compute: Compute,
    align: int = 1,
    pinned: Mapping[str, Tensor] | None = None,
) -> tuple[TrainState, float]:
    """The state with the dead channels cut out of network and optimizer, and how much the cut changed (`max_rel_diff`);
    the same where none can go.

    x: images (N >= 2, C, H, W) of a training batch; a channel that learns from the first WITNESSES of them stays.
    `align`: dead channels stay up to this multiple, per group of layers, for surgery to decide on. `pinned`: entries
    that the training holds, see `Method.pinned`. Raises UserError where the network does more in training mode than a
    graph can hold.
    """
    witnesses = compute.ranks.same(x[:WITNESSES].clone())
    made = shrink_training(state.network, (witnesses,), state.optimizer.inner, dead, pinned=pinned, align=align)
    if made.compact.certificate["channels"]["after"] == made.compact.certificate["channels"]["before"]:
        return state, 0.0
    network = compute.placed(made.compact.model)
    torch.compiler.reset()  # what was compiled for the old widths is of no use any more
    difference = max(made.compact.certificate["law"]["max_rel_diff"], made.step_rel_diff or 0.0)
    optimizer = over(state.optimizer, made.optimizer)
    put_moments(network, optimizer, moments_of(network, optimizer))  # torch's fused steps walk both as they lie
    return state_of(network, optimizer, shape, compute), difference


def removal_of(channels: int, after: TrainState, difference: float, step: int, start: float) -> Removal:
    """What a removal from so many `channels` that began at `start` (time.perf_counter) did; its speeds come from the
    history."""
    left = after.anatomy.channels
    return Removal(step, channels - left, left, after.params, after.macs, difference, time.perf_counter() - start)
