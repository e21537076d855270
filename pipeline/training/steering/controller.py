"""Which channels die, and when, so that the network lands on the outcome asked for.

The steps up to `target.reached_at` are split into periods. At the start of each, the controller picks as many channels
as the way to the target demands: those that matter least for what they cost. Over the period their own lambda rises so
that the proximal step of the L1 penalty brings gamma, and beta with it, to exactly 0 at its end; all other scales bear
no penalty. After the last period nothing is penalised any more, and the survivors recover.

A channel matters as much as the loss would change without it, to first order (Molchanov et al., arXiv 1906.10771):
(gamma dL/dgamma + beta dL/dbeta)^2, averaged over the steps and summed over the scales of channels that go together.
That takes them one by one; without many of a layer, each of the `left` among `width` channels is a larger part of what
the layer puts out, by width / left, and its square counts as much more. Without this factor the layers inside of blocks
are left with two or three channels. The averages, and which channels fade, lie in the optimizer's state: a removal
slices them, a checkpoint keeps them.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import config
from pipeline.surgery.channels.costs import Costs, costs_of
from pipeline.surgery.channels.ledger import Flags, Floats
from pipeline.surgery.rules.walk import analyse
from pipeline.training.state import TrainState
from pipeline.training.steering.gates import GroupGates
from pipeline.training.steering.prunable import FADING, HELD, MATTERS, average, candidates, hold, pairs_of, rows_of
from pipeline.training.steering.selection import Block, Limits, Route, blocks_of
from pipeline.training.steering.stopwatch import without
from runtime.errors import UserError

PERIODS = 8
LEARN_FIRST = 0.2
"""Share of the steps up to `reached_at` before the first channel fades."""
SAME = 0.98
"""Share of MACs from which on a network is taken to be the dense one."""
SMALLEST = 0.01
LATE, LATE_TIMINGS = 0.75, 5
"""From this share of the way on a latency is timed so many times: what dies then decides where it lands."""
NEAR_ENOUGH = 0.03
"""How near to a target counts as landed."""
MEMORY = 0.98
"""Of the running average of what a channel matters, per step."""


class Steering:
    def __init__(
        self,
        target: config.Target,
        total_steps: int,
        align: int,
        cost_of: Callable[[TrainState, Costs], Floats],
        latencies_of: Callable[[nn.Module, nn.Module], tuple[float, float]] | None = None,
        note: Callable[[str], None] = lambda text: None,
        gates: bool = False,
    ) -> None:
        """`cost_of`: per class, what it costs; `latencies_of`: ms of two networks timed in turn, needed for
        `target.latency_ms`; `note` tells the user; `gates`: channels that no batch norm ends may die too."""
        self._target, self._align, self._cost_of, self._latencies_of = target, align, cost_of, latencies_of
        self._note, self._with_gates = note, gates
        self._gates: GroupGates | None = None
        self._dense: nn.Module | None = None
        end = max(2, round(target.reached_at * total_steps))
        begin = min(end - 1, round(LEARN_FIRST * end))
        count = max(1, min(PERIODS, end - begin))
        self.bounds = [round(begin + (end - begin) * k / count) for k in range(count + 1)]
        self._first: dict[str, Any] = {}  # of the dense network: macs, channels, width of each group, latency

    def bind(self, state: TrainState) -> None:
        self._state = state
        self._costs = costs_of(analyse(state.anatomy.traced))
        self._pairs, self._gates = pairs_of(state, self._costs), None
        self._candidates = candidates(state.anatomy.traced, self._costs, rows_of(self._pairs), self._alive_now())
        if self._with_gates and not all(self._candidates[g.classes].all() for g in self._costs.groups):
            self._gates = GroupGates(state, self._candidates)
            self._candidates = self._candidates | self._gates.gated
        if not self._first:
            everything = np.ones(self._costs.count, bool)
            self._first = {
                "macs": self._costs.macs(everything),
                "channels": int(self._costs.members.sum()),
                "widths": {g.name: len(g.classes) for g in self._costs.groups},
                "latency_ms": None,
                "short": False,  # whether the user was told that the target is out of reach
            }
            if self._latencies_of is not None:
                self._dense = copy.deepcopy(state.network)
                self._first["latency_ms"] = min(self._latencies_of(state.network, state.network))

    @torch.no_grad()
    def after_step(self, step: int, stepped: bool = True) -> None:
        """Average what channels matter, where gradients were finite (`stepped`); take the proximal step of those that
        fade. Raises UserError in the first step where the dense network has the latency asked for already."""
        asked, dense_ms = self._target.latency_ms, self._first["latency_ms"]
        if step == 0 and asked is not None and dense_ms <= asked:
            raise UserError(
                f"target.latency_ms is {asked:g}, and the dense network takes {dense_ms:.3g} ms",
                "less than the dense network takes",
                "lower it, or drop the target",
            )
        if step >= self.bounds[-1]:
            self._hold(0.0)
            return
        if stepped:
            self._average()
        if step >= self.bounds[0]:
            end = next(b for b in self.bounds if b > step)
            self._hold(1.0 / (end - step))

    @property
    def gated(self) -> tuple[str, ...]:
        """Groups of channels that die by gates."""
        gates = self._gates
        return tuple(g.name for g in self._costs.groups if gates is not None and gates.gated[g.classes].any())

    @property
    def staying(self) -> tuple[str, ...]:
        """Groups of channels that nothing brings to 0, or that stay where they are 0."""
        several = (g for g in self._costs.groups if len(g.classes) > 1)
        return tuple(g.name for g in several if not self._candidates[g.classes].any())

    def _average(self) -> None:
        """What channels matter in this step, into the averages."""
        if self._gates is not None:
            self._gates.average(MEMORY)
        average(self._pairs, MEMORY)

    def _hold(self, share: float) -> None:
        """gamma and beta of fading channels lose `share` of themselves; those that have faded are 0."""
        if self._gates is not None:
            self._gates.hold(share)
        hold(self._pairs, share)

    def due(self, step: int) -> bool:
        """Whether a period ends after this step: what faded is gone, and the next channels are picked."""
        return step + 1 in self.bounds

    @torch.no_grad()
    def pick(self, step: int) -> None:
        """Begin the period after `step`; comes after the removal of what faded in the last one."""
        for pair in self._pairs:
            if FADING in pair.state:
                pair.state[HELD] = torch.maximum(pair.state[HELD], pair.state[FADING])
                pair.state[FADING] = torch.zeros_like(pair.gamma)
        period = self.bounds.index(step + 1)
        if period + 1 == len(self.bounds):
            if self._gates is not None:
                self._gates.pick(np.zeros(self._costs.count, bool))
            return
        fade = self.victims((period + 1) / (len(self.bounds) - 1))
        if self._gates is not None:
            self._gates.pick(fade)
            fade = fade & ~self._gates.gated
        for pair in self._pairs:
            mask = torch.as_tensor(fade[pair.classes], dtype=pair.gamma.dtype, device=pair.gamma.device)
            if FADING in pair.state:
                pair.state[FADING] = mask * (1 - pair.state[HELD])

    def victims(self, progress: float) -> Flags:
        """Classes to fade so that this share of the way (geometric) is behind us at the period's end."""
        alive = self._alive_now()
        matters = np.zeros(self._costs.count)
        for pair in self._pairs:
            if MATTERS in pair.state:
                np.add.at(matters, pair.classes, pair.state[MATTERS].double().cpu().numpy())
        if self._gates is not None:
            matters = np.where(self._gates.gated, self._gates.matters(), matters)
        cost = np.maximum(self._cost_of(self._state, self._costs), 1e-12)
        share, asked = self._asked(progress)
        blocks = self._blocks(alive, matters, cost)
        if self._target.latency_ms is None or progress == 1:
            self._tell_if_short(blocks, alive, share, asked)
        return Route(blocks, alive, share, asked).until(asked**progress)

    def _tell_if_short(
        self, blocks: Sequence[Block], alive: Flags, share: Callable[[Flags], float], asked: float
    ) -> None:
        """Where even all blocks are not enough."""
        remaining = alive.copy()
        for block in blocks:
            remaining[block.classes] = False
        if (least := share(remaining)) > (1 + NEAR_ENOUGH) * asked:
            what = "channels" if self._target.channels is not None else "MACs"
            why = "what cannot be cut" if self._with_gates else "what no batch norm ends"
            more = f" and {why} ({', '.join(self.staying[:3])})" if self.staying else ""
            self._tell_short(
                f"target.floor {self._target.floor:g}, channels in steps of {self._align}{more} leave {least:.3g} of "
                f"the {what}, {asked:.3g} is needed"
            )

    def _tell_short(self, why: str) -> None:
        """Once."""
        if not self._first["short"]:
            self._first["short"] = True
            self._note(f"the target is out of reach: {why}")

    def _blocks(self, alive: Flags, matters: Floats, cost: Floats) -> list[Block]:
        """Classes in the order they may go."""
        limits = Limits(self._first["widths"], self._target.floor, self._align)
        return blocks_of(self._costs.groups, alive & self._candidates, matters, cost, limits, crowding=2)

    def _asked(self, progress: float) -> tuple[Callable[[Flags], float], float]:
        """What a set of classes comes to as a share of the dense network, and the share to end at."""
        target = self._target
        if target.channels is not None:
            return (
                lambda remaining: float(self._costs.members[remaining].sum()) / self._first["channels"],
                target.channels,
            )
        share = target.macs if target.macs is not None else self._macs_share_for_latency(progress)
        return lambda remaining: self._costs.macs(remaining) / self._first["macs"], share

    def _macs_share_for_latency(self, progress: float) -> float:
        """The share of MACs at which the latency should be the one asked for.

        On the straight line from the dense network, of latency 1 and share 1, through the network as it is; that part
        of the latency which does not depend on the MACs is not taken to be negative, nor to be most of it; near the
        end, where that part alone is too long, no more goes. Ratios, from networks timed in turn: the machine may be
        faster today than it was when the training began.
        """
        assert self._target.latency_ms is not None
        alive = self._alive_now()
        goal = self._target.latency_ms / self._first["latency_ms"]
        now = self._costs.macs(alive) / self._first["macs"]
        ratio = self._latency_ratio(alive, LATE_TIMINGS if progress > LATE else 1)
        steepest = ratio / now
        slope = (1 - ratio) / (1 - now) if now < SAME else steepest
        if progress > LATE and (least := ratio - slope * now) > (1 + NEAR_ENOUGH) * goal:
            self._tell_short(f"{least * self._first['latency_ms']:.3g} ms do not depend on the channels")
            return float(now)
        return float(min(1.0, max(SMALLEST, now - (ratio - goal) / min(steepest, max(slope, steepest / 2)))))

    def _latency_ratio(self, alive: Flags, timings: int) -> float:
        """Latency of the network without what has faded, over that of the dense one; the median of several timings."""
        assert self._latencies_of is not None and self._dense is not None
        network = self._state.network
        if not alive.all():  # what has faded and could not be cut out yet goes at the end
            network = without(self._state, ~alive, self._align)
        both = [self._latencies_of(self._dense, network) for _ in range(timings)]
        return statistics.median(now_ms / dense_ms for dense_ms, now_ms in both)

    def _alive_now(self) -> Flags:
        """Classes that have not faded; those of the last period have where it ends with the training."""
        alive = np.ones(self._costs.count, bool)
        for pair in self._pairs:
            alive[pair.classes[pair.faded.cpu().numpy()]] = False
        return alive if self._gates is None else alive & ~self._gates.faded().cpu().numpy()

    def pinned(self) -> dict[str, torch.Tensor]:
        """Parameter name -> bool mask: what has faded, which stays 0 whatever gradient it gets."""
        names = {id(p): name for name, p in self._state.network.named_parameters()}
        masks = {names[id(p)]: pair.faded for pair in self._pairs for p in (pair.gamma, pair.beta)}
        for name, mask in ({} if self._gates is None else self._gates.pinned()).items():
            masks[name] = mask | masks[name] if name in masks else mask
        return masks

    def reached(self) -> dict[str, float]:
        """Where the network stands: shares of MACs and channels of the dense network, without what has faded; where a
        latency was asked for, that of the dense network as the training began, in ms."""
        alive = self._alive_now()
        shares = {
            "macs": self._costs.macs(alive) / self._first["macs"],
            "channels": float(self._costs.members[alive].sum()) / self._first["channels"],
        }
        dense_ms = self._first["latency_ms"]
        return shares if dense_ms is None else shares | {"dense_latency_ms": dense_ms}

    def pressure(self, step: int, lr: float) -> float:
        """The mean lambda of fading channels: the L1 weight whose proximal step at this learning rate they take."""
        if not self.bounds[0] <= step < self.bounds[-1] or not lr:
            return 0.0
        steps = next(b for b in self.bounds if b > step) - step
        fading = [p.gamma.detach().abs()[p.state[FADING] > 0] for p in self._pairs if FADING in p.state]
        scales = torch.cat(fading) if fading else torch.zeros(0)
        return float(scales.mean()) / (steps * lr) if len(scales) else 0.0

    def saved(self) -> dict[str, Any]:
        return self._first

    def restore(self, document: Mapping[str, Any]) -> None:
        self._first = dict(document)
