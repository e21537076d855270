"""A network and its optimizer as they were: kept aside by methods that train in rounds, and put back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.training.snapshots.checkpoint import moments_of, put_moments
from pipeline.training.state import TrainState

NETWORK, MOMENTS, START = "network.", "moments.", "start "


@torch.no_grad()
def snapshot(state: TrainState) -> dict[str, Tensor]:
    """Copies of parameters and buffers (`network.NAME`) and of the optimizer's moments (`moments.NAME`)."""
    tensors = {f"{NETWORK}{name}": value.clone() for name, value in state.network.state_dict().items()}
    moments = moments_of(state.network, state.optimizer)
    return tensors | {f"{MOMENTS}{name}": value.clone() for name, value in moments.items()}


class Start:
    """Parameters and buffers of one step, for rounds to go back to; a checkpoint keeps them."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def keep(self, state: TrainState) -> None:
        self.tensors = {name: value for name, value in snapshot(state).items() if name.startswith(NETWORK)}

    def put_back(self, state: TrainState) -> None:
        """The optimizer has no moments then."""
        rewind(state, self.tensors, moments=False)

    def saved(self) -> dict[str, Tensor]:
        return {f"{START}{name}": value for name, value in self.tensors.items()}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """What `saved` gave, among other tensors."""
        self.tensors = {n[len(START) :]: t.to(device) for n, t in tensors.items() if n.startswith(START)}


@torch.no_grad()
def rewind(state: TrainState, tensors: Mapping[str, Tensor], *, moments: bool) -> None:
    """Put parameters and buffers of a `snapshot` back, in place; the optimizer has its moments or, where `moments` is
    False, none, as it had before its first step."""
    own = state.network.state_dict()
    for name, value in own.items():
        value.copy_(tensors[f"{NETWORK}{name}"])
    state.optimizer.inner.state.clear()
    if moments:
        was = {name[len(MOMENTS) :]: value for name, value in tensors.items() if name.startswith(MOMENTS)}
        put_moments(state.network, state.optimizer, was)
