"""Channels that go by rank until a target is met: when they are selected, how they come to 0, how they leave.

The steps from `start` to `target.reached_at` are split into rounds. In each the channels of the lowest scores are
selected, as many as a geometric way to the target demands; their own parameters (rows of weights, biases, scales,
shifts) come to 0, over the last `fade` of the round or at once at its end, and stay there. They leave at the end of the
round; what cannot be cut while the network trains leaves in surgery.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config.options.channels import Ranked, Targeted
from pipeline.config.training import Target
from pipeline.surgery.channels.ledger import Flags, Floats
from pipeline.surgery.watch import anatomy
from pipeline.training.hooks import Dead, Hooks, Training
from pipeline.training.state import TrainState
from pipeline.training.steering.channels import Channels, channels_of
from pipeline.training.steering.selection import NEAR, Block, Limits, Route, blocks_of
from runtime.errors import UserError

STATUS = "status"
ALIVE, FADING, HELD = 0, 1, 2
"""Of a weight's rows, uint8."""

Score = Callable[[int], Floats]
"""(step) -> (count,): by class, how much a channel matters; only the order counts, and for `global` across groups."""


class Cutting:
    """`channels` are those of the network as it is; `eligible` says which of them the method can score."""

    def __init__(
        self, options: Targeted | None, training: Training, eligible: Callable[[Channels], Flags] | None = None
    ) -> None:
        """Without options nothing is selected. Raises UserError where the target is out of reach, by what can go,
        floors and alignment."""
        self._options, self._training, self._eligible = options, training, eligible
        network = training.network
        traced = anatomy(network, training.example).traced
        self.channels = channels_of(traced, network, [p for p in network.parameters() if p.requires_grad])
        costs = self.channels.costs
        self._macs, self._count = costs.macs(self.channels.everything), int(costs.members.sum())
        self._widths = {group.name: len(group.classes) for group in costs.groups}
        self._layers: dict[str, int] = {}
        self._network: nn.Module | None = None
        if training.steps < 2:
            raise UserError(f"a training of {training.steps} step", "at least 2 steps", "train longer")
        if options is not None:
            self._demand_in_reach()
        self.picks, self.ends = schedule(options, training.steps) if isinstance(options, Ranked) else ([], [])
        self.carried: dict[str, dict[str, Tensor]] = {}
        self._initial: dict[str, float] = {}
        self.carry(STATUS, ALIVE)

    def begin(self, state: TrainState) -> None:
        self.state = state
        self._layers = self._layers or state.anatomy.layer_channels
        self.channels = channels_of(state.anatomy.traced, state.network, state.optimizer.parameters)
        shapes = {self.channels.names[part.name]: part.tensor for part in self.channels.makers}
        for key, of in self.carried.items():
            for name, weight in shapes.items():
                if name not in of or of[name].shape != weight.shape:  # at the start; on a restart `load` follows
                    kind = torch.uint8 if key == STATUS else torch.float32
                    of[name] = torch.full_like(weight, self._initial[key], dtype=kind)
            for name in of.keys() - shapes.keys():
                del of[name]
        self.read()

    def carry(self, key: str, initial: float) -> None:
        """A number for each class, to be cut and saved with the network: see `written` and `numbers_of`."""
        self.carried[key], self._initial[key] = {}, initial

    def written(self, key: str, values: Floats) -> None:
        """Put numbers by class, (count,), where they are cut and saved."""
        for part in self.channels.makers:
            of = self.carried[key][self.channels.names[part.name]]
            of.copy_(part.spread(torch.as_tensor(values[part.classes], device=of.device)).expand(of.shape))

    def numbers_of(self, key: str) -> Floats:
        """By class, (count,); the initial number where no layer that is trained makes it."""
        values = np.full(self.channels.costs.count, self._initial[key])
        for part in self.channels.makers:
            rows = self.carried[key][self.channels.names[part.name]].movedim(part.axis, 0)
            values[part.classes] = rows.reshape(len(part.classes), -1)[:, 0].cpu().numpy()
        return values

    def read(self) -> None:
        """The status of each class, (count,), from what is carried."""
        self.status = self.numbers_of(STATUS)

    def mark(self, classes: Flags, status: int) -> None:
        self.status[classes] = status
        self.written(STATUS, self.status)

    @torch.no_grad()
    def after_step(self, step: int, stepped: bool = True) -> None:
        """What fades loses its share, what is held is 0; whether or not the optimizer made a step."""
        if not self.status.any():
            return
        end = next((b for b in self.ends if b > step), step + 1)
        factors = np.ones(self.channels.costs.count)
        factors[self.status == FADING] = 1 - 1 / (end - step)
        factors[self.status == HELD] = 0
        for part in self.channels.own:
            if self.status[part.classes].any():
                values = torch.as_tensor(factors[part.classes], dtype=part.tensor.dtype, device=part.tensor.device)
                part.tensor.mul_(part.spread(values))

    def due(self, step: int) -> bool:
        return step + 1 in self.ends or step + 1 in self.picks

    def picks_after(self, step: int) -> bool:
        """Whether channels are selected after this step."""
        return step + 1 in self.picks

    def dead(self, step: int, score: Score) -> Dead | None:
        """Ends a round, begins the next; nothing is dead but what is 0 by its parameters."""
        ends = step + 1 in self.ends
        if ends:
            self.mark(self.status == FADING, HELD)
        for number, pick in enumerate(self.picks):
            if pick == step + 1:
                fades = self.ends[number] > pick
                gone = self.selected(score(step), self.asked ** ((number + 1) / len(self.picks)))
                self.mark(gone, FADING if fades else HELD)
                ends = ends or not fades
        self.hold()
        return self.none() if ends else None

    @torch.no_grad()
    def hold(self) -> None:
        """What is held is 0, at once."""
        for part in self.channels.own:
            off = torch.as_tensor(self.status[part.classes] == HELD, device=part.tensor.device)
            part.tensor.masked_fill_(part.spread(off), 0.0)

    @property
    def alive(self) -> Flags:
        """(count,): classes that are neither held at 0 nor on the way there."""
        return np.asarray(self.status == ALIVE)

    @property
    def _target(self) -> Target:
        assert self._options is not None
        return self._options.target

    @property
    def asked(self) -> float:
        target = self._target
        asked = target.macs if target.macs is not None else target.channels
        assert asked is not None
        return asked

    def share(self, classes: Flags) -> float:
        """What a set of classes comes to, of the dense network, in the unit of the target."""
        costs = self.channels.costs
        if self._target.macs is not None:
            return costs.macs(classes) / self._macs
        return float(costs.members[classes].sum()) / self._count

    def selected(self, scores: Floats, waypoint: float) -> Flags:
        """(count,): the living classes to go next for the network to come to this share."""
        alive = self.alive
        may_go = self._may_go(alive)
        if self._options is not None and self._options.scope == "group":
            scores = ranks_in_groups(
                scores, [group.classes[may_go[group.classes]] for group in self.channels.costs.groups]
            )
        return Route(self._blocks(may_go, scores), alive, self.share, self.asked).until(waypoint)

    def _may_go(self, alive: Flags) -> Flags:
        return self.channels.can_go(alive if self._eligible is None else alive & self._eligible(self.channels))

    def _blocks(self, may_go: Flags, scores: Floats) -> list[Block]:
        limits = Limits(self._widths, self._target.floor, self._training.align)
        return blocks_of(self.channels.costs.groups, may_go, scores, np.ones(len(scores)), limits)

    def _demand_in_reach(self) -> None:
        remaining = self.channels.everything
        for block in self._blocks(self._may_go(remaining), np.zeros(len(remaining))):
            remaining[block.classes] = False
        if (least := self.share(remaining)) > (1 + NEAR) * self.asked:
            what = "macs" if self._target.macs is not None else "channels"
            raise UserError(
                f"sparse.target.{what} is {self.asked:g}, and {least:.3g} stay when every channel has gone that can",
                f"at least {least:.3g}: target.floor is {self._target.floor:g}, widths are multiples of "
                f"{self._training.align}",
                "raise the target, or lower target.floor",
            )

    def none(self) -> Dead:
        """No verdict of a census: the proof alone decides."""
        return {name: torch.zeros(width, dtype=torch.bool) for name, width in self.state.anatomy.watch.items()}

    def pinned(self) -> dict[str, Tensor]:
        """Rows that are held at 0."""
        pinned = {}
        for part in self.channels.own:
            off = torch.as_tensor(self.status[part.classes] == HELD, device=part.tensor.device)
            pinned[self.channels.names[part.name]] = part.spread(off).expand(part.tensor.shape)
        return pinned

    def figures(self, step: int) -> dict[str, Any]:
        """Columns of the history: what has gone or is held at 0, in all and by layer, and where the network stands."""
        now, costs = self.state.anatomy.layer_channels, self.channels.costs
        held = {part.name: int((self.status[part.classes] == HELD).sum()) for part in self.channels.makers}
        gone = {name: width - now.get(name, 0) for name, width in self._layers.items()}
        dead = {name: count + held.get(name, 0) for name, count in gone.items()}
        alive = np.asarray(self.status != HELD)
        return {
            "dead": sum(dead.values()),
            "channels": sum(self._layers.values()),
            "dead_by_layer": by_module(dead),
            "removed_by_layer": by_module(gone),
            "channels_by_layer": by_module(self._layers),
            "reached": {
                "macs": costs.macs(alive) / self._macs,
                "channels": float(costs.members[alive].sum()) / self._count,
            },
        }

    def hooks(self, score: Score, **more: Any) -> Hooks:
        """The method that selects by this score; `more` are fields of it."""
        own: dict[str, Any] = {
            "begin": self.begin,
            "after_step": self.after_step,
            "due": self.due,
            "dead": lambda step: self.dead(step, score),
            "pinned": self.pinned,
            "carried": self.carried,
            "figures": self.figures,
            "census": self.none,
            "load": lambda tensors, document: self.read(),
        }
        return Hooks(**(own | more))


def schedule(options: Ranked, steps: int) -> tuple[list[int], list[int]]:
    """Steps that are over when channels are selected, and when they have come to 0; one of each for a round."""
    end = min(max(1, round(options.target.reached_at * steps)), steps - 1)
    begin = min(round(options.first_round * steps), end - 1)
    rounds = min(options.rounds, end - begin)
    bounds = [round(begin + (end - begin) * k / rounds) for k in range(rounds + 1)]
    return [b - round(options.fade * (b - a)) for a, b in itertools.pairwise(bounds)], bounds[1:]


def by_module(counts: dict[str, int]) -> dict[str, int]:
    """Layers by their modules instead of their weights."""
    return {weight.removesuffix(".weight"): count for weight, count in counts.items()}


def ranks_in_groups(scores: Floats, groups: list[Any]) -> Floats:
    """Each score as its place in its group, in (0, 1]."""
    ranks = np.ones(len(scores))
    for group in groups:
        order = np.unique(group)[np.argsort(scores[np.unique(group)], kind="stable")]
        ranks[order] = (np.arange(len(order)) + 1) / max(1, len(order))
    return ranks
