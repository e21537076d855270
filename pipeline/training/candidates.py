"""Which channels a steered training may let die: those that leave the network once their batch norms say zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.surgery.analysis import Analysis
from pipeline.surgery.costs import Costs
from pipeline.surgery.labels import Ids
from pipeline.surgery.ledger import Flags
from pipeline.training.state import TrainState

FADING, HELD = "demport_fading", "demport_held"
"""Of the optimizer's state of a scale: 1 where its channel fades, and where it is held at 0."""


@dataclass(frozen=True)
class Pair:
    """gamma and beta of one batch norm, and the classes of its channels."""

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
    found = []
    for name, classes in costs.scales.items():
        gamma, beta = named[name], named.get(name.removesuffix("weight") + "bias")
        if beta is not None and id(gamma) in trained and not costs.fixed[classes].any():
            found.append(Pair(gamma, beta, classes, state.optimizer.inner.state[gamma]))
    return found


def candidates(state: TrainState, costs: Costs, pairs: Sequence[Pair], alive: Flags) -> Flags:
    """(count,): classes that the network could do without if the scales and shifts in `pairs` of their channels were 0.

    Others live on beside their norms: in a branch that has none, or in one whose norm is not trained. Tried with one
    living class of each group, all at once, and as the surgery would judge it.
    """
    carried = np.zeros(costs.count, bool)
    for pair in pairs:
        carried[pair.classes] = True
    tried = np.zeros(costs.count, bool)
    for group in costs.groups:
        mine = group.classes[alive[group.classes] & carried[group.classes]]
        tried[mine[:1]] = True
    with _silenced(pairs, tried):
        analysis = Analysis(state.anatomy.traced).run()
    classes = analysis.ledger.classes()
    gone = analysis.ledger.removable(classes)
    leave = tried.copy()
    for name, mine in costs.scales.items():
        stays = ~gone[classes[analysis.axes[name, 0]]]
        leave[mine[stays]] = False
    for group in costs.groups:
        carried[group.classes] &= leave[group.classes].any()
    return carried


@contextmanager
def _silenced(pairs: Sequence[Pair], classes: Flags) -> Iterator[None]:
    """The scales and shifts of these classes are 0 for a while."""
    tensors = [tensor for pair in pairs for tensor in (pair.gamma, pair.beta)]
    with torch.no_grad():
        before = [tensor.clone() for tensor in tensors]
        try:
            for pair in pairs:
                off = torch.as_tensor(classes[pair.classes], device=pair.gamma.device)
                pair.gamma[off] = 0.0
                pair.beta[off] = 0.0
            yield
        finally:
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
