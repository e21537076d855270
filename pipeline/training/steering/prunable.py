"""Which channels a steered training may let die: those that leave the network once their batch norms say zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.surgery.channels.costs import Costs
from pipeline.surgery.channels.labels import Ids
from pipeline.surgery.channels.ledger import Flags
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import Traced
from pipeline.training.state import TrainState

MATTERS, FADING, HELD = "demport_matters", "demport_fading", "demport_held"
"""Of the optimizer's state of a scale: what its channel matters; 1 where it fades, and where it is held at 0."""


@dataclass(frozen=True)
class Rows:
    """Entries along one axis of a parameter, and the class of each, (size,). `name` is the graph's."""

    name: str
    tensor: nn.Parameter
    axis: int
    classes: Ids

    def spread(self, values: Tensor) -> Tensor:
        """A value for each row (size,), as it broadcasts to the parameter."""
        return values.view([-1 if axis == self.axis else 1 for axis in range(self.tensor.dim())])


@dataclass(frozen=True)
class Pair:
    """gamma and beta of one batch norm, and the classes of its channels; `name` is the graph's, of gamma."""

    name: str
    gamma: nn.Parameter
    beta: nn.Parameter
    classes: Ids
    state: dict[str, Any]
    """The optimizer's, of gamma."""

    @property
    def faded(self) -> Tensor:
        """bool (channels,): held at 0, or just come there."""
        if HELD not in self.state:
            return torch.zeros_like(self.gamma, dtype=torch.bool)
        held: Tensor = self.state[HELD] > 0
        return held.logical_or((self.state[FADING] > 0) & (self.gamma.detach() == 0))


def pairs_of(state: TrainState, costs: Costs) -> list[Pair]:
    """Every batch norm whose channels can all go, with the optimizer's state of its scale."""
    named = dict(state.anatomy.traced.module.named_parameters(remove_duplicate=False))
    trained = {id(p) for p in state.optimizer.parameters}
    pairs = []
    for name, classes in costs.scales.items():
        gamma, beta = named[name], named.get(name.removesuffix("weight") + "bias")
        if beta is not None and id(gamma) in trained and not costs.fixed[classes].any():
            pairs.append(Pair(name, gamma, beta, classes, state.optimizer.inner.state[gamma]))
    return pairs


def average(every: Sequence[Pair], memory: float) -> None:
    """What channels matter in this step, into the averages."""
    triples = [
        (p, of_gamma, of_beta)
        for p in every
        if (of_gamma := p.gamma.grad) is not None and (of_beta := p.beta.grad) is not None
    ]
    pairs = [p for p, _, _ in triples]
    if not pairs:
        return
    terms = torch._foreach_mul([p.gamma for p in pairs], [gradient for _, gradient, _ in triples])
    torch._foreach_addcmul_(terms, [p.beta for p in pairs], [gradient for _, _, gradient in triples])
    torch._foreach_mul_(terms, terms)
    for pair in pairs:
        if MATTERS not in pair.state:
            pair.state.update({key: torch.zeros_like(pair.gamma) for key in (MATTERS, FADING, HELD)})
    torch._foreach_lerp_([p.state[MATTERS] for p in pairs], terms, 1 - memory)


def hold(every: Sequence[Pair], share: float) -> None:
    """gamma and beta of fading channels lose `share` of themselves; those that have faded are 0."""
    pairs = [p for p in every if FADING in p.state]
    if not pairs:
        return
    factors = torch._foreach_mul([p.state[FADING] for p in pairs], -share)
    torch._foreach_sub_(factors, [p.state[HELD] for p in pairs])
    torch._foreach_add_(factors, 1.0)
    torch._foreach_mul_([p.gamma for p in pairs], factors)
    torch._foreach_mul_([p.beta for p in pairs], factors)


def rows_of(pairs: Sequence[Pair]) -> list[Rows]:
    """Scales and shifts."""
    return [
        Rows(name, tensor, 0, pair.classes)
        for pair in pairs
        for name, tensor in ((pair.name, pair.gamma), (pair.name.removesuffix("weight") + "bias", pair.beta))
    ]


def candidates(traced: Traced, costs: Costs, rows: Sequence[Rows], alive: Flags) -> Flags:
    """(count,): classes that the network could do without if these rows of their channels were 0.

    Others live on beside them: in a branch that has no norm, for instance, or in one whose norm is not trained, where
    `rows` are norms. Tried with one living class of each group, all at once, and as the surgery would judge it.
    """
    carried = np.zeros(costs.count, bool)
    for part in rows:
        carried[part.classes] = True
    tried = np.zeros(costs.count, bool)
    for group in costs.groups:
        mine = group.classes[alive[group.classes] & carried[group.classes]]
        tried[mine[:1]] = True
    with _silenced(rows, tried):
        analysis = analyse(traced)
    classes = analysis.ledger.classes()
    gone = analysis.ledger.removable(classes)
    leave = tried.copy()
    for part in rows:
        ids = analysis.axes.get((part.name, part.axis))
        if ids is not None:
            leave[part.classes[~gone[classes[ids]]]] = False
    for group in costs.groups:
        carried[group.classes] &= leave[group.classes].any()
    return carried


@contextmanager
def _silenced(rows: Sequence[Rows], classes: Flags) -> Iterator[None]:
    """The rows of these classes are 0 for a while."""
    with torch.no_grad():
        before = [part.tensor.clone() for part in rows]
        try:
            for part in rows:
                off = torch.as_tensor(classes[part.classes], device=part.tensor.device)
                part.tensor.masked_fill_(part.spread(off), 0.0)
            yield
        finally:
            for part, value in zip(rows, before, strict=True):
                part.tensor.copy_(value)
