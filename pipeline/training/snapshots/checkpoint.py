"""Checkpoints: the last two states of a training, each a folder that is whole or absent; safetensors and JSON.

Of several processes the first alone writes and reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.models.weights import load_weights, save_weights
from pipeline.surgery.compact import apply_plan
from pipeline.surgery.plan import Plan, plan_before, read_plan
from pipeline.training.compute.distributed import Ranks
from pipeline.training.optimizer import Optimizer
from runtime.documents import seal_of, write_sealed
from runtime.errors import UserError
from runtime.files import new_folder, read_json, remove, sha256, write_json

STATE, WEIGHTS, PLAN, OPTIMIZER, METHOD = (
    "state.json", "weights.safetensors", "plan.json", "optimizer.safetensors", "method.safetensors"
)  # fmt: skip
STATES, SCHEMA = 2, 5
SEPARATOR = "|"
Build = Callable[[nn.Module, int], nn.Module]


def plain(network: nn.Module, step: int) -> nn.Module:
    """The network that every training without a method of its own trains."""
    return network


@dataclass(frozen=True)
class Snapshot:
    """Everything a training goes on from, after `step` steps. `records`: plain JSON of loop and method."""

    step: int
    network: nn.Module
    moments: dict[str, Tensor]
    """Optimizer state, by parameter name, `|` and key."""
    method: dict[str, Tensor]
    records: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """Lies in `folder`, which belongs to one training alone: what it was made from is in its name."""

    folder: Path

    def save(self, snapshot: Snapshot) -> None:
        """Write it, then remove all but the last two and those of later steps, which could not be used. Raises OSError
        on a full disk, with nothing half-written."""
        final = self.folder / f"{snapshot.step:010d}"
        if final.exists():
            remove(final)
        with new_folder(final) as part:
            save_weights(snapshot.network, part / WEIGHTS)
            if (plan := plan_before(snapshot.network)) is not None:
                write_json(part / PLAN, plan.model_dump(mode="json", by_alias=True))
            save_file({k: v.contiguous() for k, v in snapshot.moments.items()}, part / OPTIMIZER)
            save_file({k: v.contiguous() for k, v in snapshot.method.items()}, part / METHOD)
            marks = {path.name: sha256(path) for path in sorted(part.iterdir())}
            state = {"schema": SCHEMA, "step": snapshot.step, "files": marks, "records": snapshot.records}
            write_sealed(part / STATE, state)
        later = [folder for folder in self._folders() if folder.name > final.name]
        for folder in [*later, *self._folders()[: -STATES - len(later)]]:
            remove(folder)

    def last(
        self, fresh: Callable[[], nn.Module], note: Callable[[str], None], build: Build = plain
    ) -> Snapshot | None:
        """The newest that is whole; `fresh` builds the network as it was before any removal, `build` is that of
        `Hooks`."""
        for folder in reversed(self._folders()):
            try:
                return read(folder, fresh, build)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError, UserError) as error:
                note(f"checkpoint {folder.name} cannot be used ({error})")
        return None

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.name.isdecimal())


def read(folder: Path, fresh: Callable[[], nn.Module], build: Build = plain) -> Snapshot:
    """One checkpoint; ValueError where a file is not the one that was written."""
    state = read_json(folder / STATE)
    if state["schema"] != SCHEMA:
        raise ValueError("written by another version")
    if state.get("seal") != seal_of(state):
        raise ValueError(f"{STATE} is not what was written")
    for name, mark in state["files"].items():
        if Path(name).name != name or sha256(folder / name) != mark:
            raise ValueError(f"{name} is not what was written")
    network = fresh()
    if PLAN in state["files"]:
        network = apply_plan(network, read_plan(folder / PLAN))
    network = build(network, int(state["step"]))
    load_weights(network, folder / WEIGHTS)
    return Snapshot(
        int(state["step"]), network, load_file(folder / OPTIMIZER), load_file(folder / METHOD), state["records"]
    )


def of_first(
    last: Snapshot | None, fresh: Callable[[], nn.Module], ranks: Ranks, build: Build = plain
) -> Snapshot | None:
    """The first process's in every process; the others need not see its disk."""
    if ranks.world == 1:
        return last
    held = ranks.agree(None if last is None else _packed(last))
    return last if ranks.first or held is None else _unpacked(held, fresh, build)


def _packed(snapshot: Snapshot) -> dict[str, Any]:
    plan = plan_before(snapshot.network)
    return {
        "step": snapshot.step,
        "plan": None if plan is None else plan.model_dump_json(by_alias=True),
        "weights": snapshot.network.state_dict(),
        "moments": snapshot.moments,
        "method": snapshot.method,
        "records": snapshot.records,
    }


def _unpacked(held: Mapping[str, Any], fresh: Callable[[], nn.Module], build: Build) -> Snapshot:
    network = fresh()
    if held["plan"] is not None:
        network = apply_plan(network, Plan.model_validate_json(held["plan"]))
    network = build(network, held["step"])
    network.load_state_dict(held["weights"])
    return Snapshot(held["step"], network, held["moments"], held["method"], held["records"])


def moments_of(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors an optimizer keeps, by parameter name and key."""
    moments: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.inner.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                moments[f"{name}{SEPARATOR}{key}"] = value.detach()
    return moments


def put_moments(network: nn.Module, optimizer: Optimizer, moments: Mapping[str, Tensor]) -> None:
    """The reverse of `moments_of`. Raises KeyError for a parameter that is not there."""
    named = dict(network.named_parameters())
    for name, value in moments.items():
        owner, _, key = name.partition(SEPARATOR)
        parameter = named[owner]
        # torch lays moments out as their parameter lies in memory
        held = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else None
        like = value.to(parameter.device) if held is None else held.copy_(value)
        optimizer.inner.state[parameter][key] = like
