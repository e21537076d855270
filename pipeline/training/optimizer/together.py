"""Several optimizers over the parameters of one network, as one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

Entry = dict[str, Any]


class Together(torch.optim.Optimizer):
    """Their groups and their state, in this order; `step` makes a step of each. A copy copies each of them."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        self.defaults = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Together:
        return Together([copy.deepcopy(part, memo) for part in self.parts])

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> MutableMapping[Tensor, Entry]:  # type: ignore[override]
        return _State(self.parts)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        if closure is not None:
            raise TypeError("several optimizers take no closure: call backward, then step")
        for part in self.parts:
            part.step()
        return None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


class _State(MutableMapping[Tensor, Entry]):
    """The state of each parameter, where its optimizer keeps it; the first one keeps that of parameters of none."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = parts
        self._owner = {p: part for part in reversed(parts) for group in part.param_groups for p in group["params"]}
        self._owner |= {p: part for part in parts for p in part.state}

    def _of(self, p: Tensor) -> MutableMapping[Tensor, Entry]:
        return self._owner.get(p, self._parts[0]).state

    def __getitem__(self, p: Tensor) -> Entry:
        return self._of(p)[p]

    def __contains__(self, p: object) -> bool:
        return isinstance(p, Tensor) and p in self._of(p)

    def get(self, p: Tensor, default: Any = None) -> Any:
        return self._of(p).get(p, default)

    def __setitem__(self, p: Tensor, entry: Entry) -> None:
        self._of(p)[p] = entry

    def __delitem__(self, p: Tensor) -> None:
        del self._of(p)[p]

    def __iter__(self) -> Iterator[Tensor]:
        return iter([p for part in self._parts for p in part.state])

    def __len__(self) -> int:
        return sum(len(part.state) for part in self._parts)


def as_one(optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """The optimizer itself, or several as one."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    return optimizer[0] if len(optimizer) == 1 else Together(optimizer)


def parts_of(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    return optimizer.parts if isinstance(optimizer, Together) else (optimizer,)
