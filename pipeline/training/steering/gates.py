"""Gates of channels that no batch norm ends, as in LayerNorm and GroupNorm networks.

A gate of a channel multiplies all that makes it: rows of weights, biases, and what a norm scales and shifts it by. At 1
it changes nothing, so it is no parameter: its derivative is the sum of w dL/dw over those entries, and to close it by a
factor is to multiply them by it. What a gate knows (how much its channel matters, whether it fades or is held at 0)
lies in the optimizer's state of parameters that the channel makes: a removal slices it, a checkpoint keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.surgery.channels.ledger import Flags, Floats
from pipeline.training.state import TrainState
from pipeline.training.steering.channels import Channels, channels_of
from pipeline.training.steering.prunable import Rows, candidates

MATTERS, FADING, HELD = "demport_gate_matters", "demport_gate_fading", "demport_gate_held"


@dataclass(frozen=True)
class _Part:
    """Entries of one parameter that make channels; `index`: the class of each, on the parameter's device."""

    rows: Rows
    index: Tensor
    state: dict[str, Any]
    """The optimizer's, of the parameter."""

    def by_row(self, values: Tensor) -> Tensor:
        """A tensor of the parameter's shape in which each row holds one number -> (size,)."""
        return values.movedim(self.rows.axis, 0).reshape(len(self.index), -1)[:, 0]

    def spread(self, values: Tensor) -> Tensor:
        """(count,) by class -> as it broadcasts to the parameter, in its type."""
        return self.rows.spread(values[self.index].to(self.rows.tensor.dtype))


class GroupGates:
    """Vectors over the classes of a network as it is, (count,); only those of `gated` count."""

    def __init__(self, state: TrainState, closed: Flags) -> None:
        """`closed` (count,): classes that leave once their batch norms are 0, and have no gate."""
        channels = channels_of(state.anatomy.traced, state.network, state.optimizer.parameters)
        self._names = channels.names
        moments, self._count = state.optimizer.inner.state, channels.costs.count
        self._device = next(state.network.parameters()).device
        parts = [
            _Part(rows, torch.as_tensor(rows.classes, dtype=torch.int64, device=self._device), moments[rows.tensor])
            for rows in channels.own
        ]
        self._matters, self._fading, self._held = (self._read(parts, key) for key in (MATTERS, FADING, HELD))
        self.gated = self._that_can_go(channels, closed)
        self._parts = [part for part in parts if self.gated[part.rows.classes].any()]
        self._carriers = _cover(self._parts, self.gated)
        self._any = bool((self._fading + self._held).any())

    def _that_can_go(self, channels: Channels, closed: Flags) -> Flags:
        alive = ~(self._held > 0).cpu().numpy()
        can_go = candidates(channels.traced, channels.costs, channels.own, alive)
        return np.asarray(can_go & ~closed & (channels.costs.members > 0))

    def average(self, memory: float) -> None:
        """What channels matter in this step, to first order, into the running averages."""
        sums = torch.zeros(self._count, dtype=torch.float64, device=self._device)
        for part in self._parts:
            p = part.rows.tensor
            if p.grad is not None:
                each = (p.detach() * p.grad).movedim(part.rows.axis, 0).reshape(len(part.index), -1)
                sums.index_add_(0, part.index, each.sum(1, dtype=torch.float64))
        self._matters.lerp_(sums.square().float(), 1 - memory)
        self._write()

    def matters(self) -> Floats:
        return np.asarray(self._matters.double().cpu().numpy())

    @torch.no_grad()
    def hold(self, share: float) -> None:
        """What fades loses `share` of itself; what has faded is 0."""
        if self._any:
            factors = 1 - share * self._fading - self._held
            for part in self._parts:
                part.rows.tensor.mul_(part.spread(factors))

    def pick(self, fade: Flags) -> None:
        """What has faded is held from now on, and of the classes `fade` those that have a gate begin to."""
        self._held = torch.maximum(self._held, self._fading)
        chosen = torch.as_tensor(fade & self.gated, dtype=torch.float32, device=self._device)
        self._fading = chosen * (1 - self._held)
        self._any = bool((self._fading + self._held).any())
        self._write()

    def faded(self) -> Tensor:
        """bool (count,): held at 0, or just come there."""
        size = torch.zeros(self._count, dtype=torch.float64, device=self._device)
        for part in self._parts:
            each = part.rows.tensor.detach().abs().movedim(part.rows.axis, 0).reshape(len(part.index), -1)
            size.index_add_(0, part.index, each.sum(1, dtype=torch.float64))
        return (self._held > 0) | ((self._fading > 0) & (size == 0))

    def pinned(self) -> dict[str, Tensor]:
        """Parameter name -> bool mask of its shape: what has faded."""
        faded = self.faded()
        return {
            self._names[part.rows.name]: part.rows.spread(faded[part.index]).expand(part.rows.tensor.shape)
            for part in self._parts
        }

    def _read(self, parts: list[_Part], key: str) -> Tensor:
        values = torch.zeros(self._count, device=self._device)
        for part in parts:
            if key in part.state:
                values[part.index] = part.by_row(part.state[key]).float()
        return values

    def _write(self) -> None:
        """Into the state of parameters that the optimizer has made a step of: it makes one where it finds none."""
        for part in self._carriers:
            p = part.rows.tensor
            if p.grad is not None or HELD in part.state:
                for key, values in ((MATTERS, self._matters), (FADING, self._fading), (HELD, self._held)):
                    part.state[key] = part.rows.spread(values[part.index]).expand(p.shape).clone()


def _cover(parts: list[_Part], classes: Flags) -> list[_Part]:
    """As few as have every class; those that carry it already, then the smallest: what lies in their state costs
    memory."""
    covered, chosen = ~classes, list[_Part]()
    for part in sorted(parts, key=lambda part: (HELD not in part.state, part.rows.tensor.numel())):
        if covered[part.rows.classes].all():
            for key in (MATTERS, FADING, HELD):  # of no use, and never brought up to date
                part.state.pop(key, None)
        else:
            covered[part.rows.classes] = True
            chosen.append(part)
    return chosen
