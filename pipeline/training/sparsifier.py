"""A network, its optimizer and a training method between two steps: what every training loop holds.

The project's own loop calls the parts of a step one by one; a loop of one's own calls `penalty` and `step`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.census import census
from pipeline.training.compute import Compute
from pipeline.training.hooks import Dead, Hooks, Training
from pipeline.training.modes import frozen_in_training, train_mode
from pipeline.training.optimizer import Optimizer
from pipeline.training.snapshots.checkpoint import put_moments
from pipeline.training.snapshots.selection import AVERAGE, averaged_copy, follow, named
from pipeline.training.state import Inputs, Removal, TrainState, removal_of, state_of, without
from runtime.errors import UserError

CENSUS_BATCHES, CENSUS_BATCH_SIZE = 3, 512
MASK, SEPARATOR = "mask", "|"


class Sparsifier:
    """`network` and `optimizer` are replaced by a removal: follow them."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        hooks: Hooks,
        training: Training,
        compute: Compute,
        ema: float | None = None,
    ) -> None:
        """`network` lies on its device already; it is in `optimizer` as far as it is trained. `ema`: decay of an
        average of its weights."""
        self.hooks, self.training, self.compute, self.ema = hooks, training, compute, ema
        self.step_number = 0
        """Of the next step."""
        self.whole: str | None = None
        """Why nothing can be removed before the end."""
        self.replaced = False
        """Whether the network holds other weights than after its last step, so that no earlier census is of them."""
        self.averages: list[nn.Module] = []
        """Averaged copies of the network, which are cut with it."""
        self._frozen = frozen_in_training(network)
        self._noted = False  # that a removal could not take any
        self._begin(self._built(network, optimizer))

    @property
    def network(self) -> nn.Module:
        return self.state.network

    @property
    def frozen(self) -> frozenset[str]:
        """Names of modules that the first network keeps in eval mode."""
        return self._frozen

    def train_mode(self) -> None:
        """Of the network; modules that the first one keeps in eval mode stay so, whatever was cut out."""
        if isinstance(self.state.forward, nn.Module):
            self.state.forward.train()
        train_mode(self.network, self._frozen)

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.training.steps if self.hooks.steps is None else self.hooks.steps

    def restart(self, network: nn.Module, optimizer: Optimizer, step: int, moments: Mapping[str, Tensor]) -> None:
        """Go on with this network, as `Hooks.build` leaves it, before this step; `restore` follows."""
        self.step_number = step
        state = self._averaging(state_of(network, optimizer, self.training.example, self.compute))
        put_moments(state.network, state.optimizer, moments)
        self._begin(state, masked=False)  # with the masks of the start: `restore` brings those in force

    def rate(self) -> float:
        """Learning rate of the next step."""
        return self.rate_of(self.step_number)

    def rate_of(self, step: int) -> float:
        """Learning rate of a step."""
        own = self.hooks.rate(step)
        return self.training.rate(self.hooks.position(step)) if own is None else own

    def after_step(self, stepped: bool) -> None:
        """Right after the optimizer's step."""
        if self.hooks.masks is not None and stepped:
            self.hooks.masks.apply()
        self.hooks.after_step(self.step_number, stepped)
        if self.ema is not None and self.state.average is not None and stepped:
            follow(self.state.average, self.network, self.ema, self.step_number)

    @property
    def due(self) -> bool:
        """Whether this step is followed by work that takes its time."""
        return self.hooks.due(self.step_number)

    def advance(self, inputs: Inputs) -> Removal | None:
        """The end of a step, `inputs` being those of its batch: what is due, and what was removed, if anything."""
        dead, start = self.hooks.dead(self.step_number) if self.due else None, time.perf_counter()
        step, self.step_number = self.step_number, self.step_number + 1
        removal = None if dead is None else self._remove(dead, inputs, start)
        if self.hooks.rebuilds(step):
            self._begin(self._built(self.network, self.state.optimizer))
        return removal

    def between(self) -> None:
        """After `advance` and all that is told of the step."""
        self.hooks.between(self.step_number - 1)

    def final_census(self) -> Dead:
        """Watched output -> bool (channels,), True = dead; of a training without a census of its own, and of weights
        chosen at its end, on a few samples of its data: some channels of a dense network are dead too."""
        if self.hooks.census is not None and not self.replaced:
            return self.hooks.census()
        samples = self.training.samples(0, CENSUS_BATCHES, CENSUS_BATCH_SIZE)
        return census(self.state.anatomy, samples, self.compute.ranks)

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint keeps beside network and moments: tensors and plain JSON."""
        tensors, document = self.hooks.state()
        held = {f"{key}{SEPARATOR}{name}": t for key, of in self._riders().items() for name, t in of.items()}
        held = {name: t.to(torch.uint8) if t.dtype == torch.bool else t for name, t in held.items()}
        own = {f"{SEPARATOR}{name}": t for name, t in tensors.items()}
        average = {} if self.state.average is None else self.state.average.state_dict()
        own |= {f"{AVERAGE}{name}": t for name, t in average.items()}
        return held | own, {"method": document, "whole": self.whole}

    def restore(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Go on from what `saved` gave; comes after `restart`."""
        self.whole = document["whole"]
        for key, of in self._riders().items():
            for name in list(of):
                value = tensors[f"{key}{SEPARATOR}{name}"]
                of[name] = value.to(of[name].device, of[name].dtype)
        own = {name[1:]: value for name, value in tensors.items() if name.startswith(SEPARATOR)}
        self.hooks.load(own, document["method"])
        if self.state.average is not None:
            self.state.average.load_state_dict(named(tensors, AVERAGE))

    def _begin(self, state: TrainState, masked: bool = True) -> None:
        self.state = state
        if self.hooks.masks is not None:
            self.hooks.masks.bind(state)
        self.hooks.begin(state)
        if self.hooks.masks is not None and masked:
            self.hooks.masks.apply()

    def _built(self, network: nn.Module, optimizer: Optimizer) -> TrainState:
        """The state over the network that the method wants trained from this step on."""
        built = self.hooks.build(network, self.step_number)
        if built is not network:
            optimizer = optimizer.following(network, self.compute.placed(built))
        return self._averaging(state_of(built, optimizer, self.training.example, self.compute))

    def _averaging(self, state: TrainState) -> TrainState:
        """With an average that begins here, where one is asked for."""
        return state if self.ema is None else replace(state, average=averaged_copy(state.network))

    def _riders(self) -> dict[str, dict[str, Tensor]]:
        masks = {} if self.hooks.masks is None else {MASK: self.hooks.masks.values}
        return {**self.hooks.carried, **masks}

    def _pinned(self) -> dict[str, Tensor]:
        pinned = {} if self.hooks.masks is None else self.hooks.masks.pinned()
        return {**pinned, **self.hooks.pinned()}

    def _remove(self, dead: Dead, inputs: Inputs, start: float) -> Removal | None:
        """Cut the dead channels out; a network that cannot be cut while it trains stays whole, and that is noted."""
        before, difference = self.state, 0.0
        after = before
        count = 0 if self.whole is not None else before.anatomy.dead_count(dead)
        if count:
            try:
                after, difference = self._cut(dead, inputs)
            except UserError as error:
                self.whole = error.found
                self.training.note(f"dead channels stay until the end: {self.whole}")
        self._begin(after)
        if count and after is before and self.whole is None and not self._noted:
            self._noted = True
            why = f"a gradient reaches them, or they fill a multiple of {self.training.removal_align}"
            self.training.note(f"{count} dead channels stay for now: {why}")
        if after is before:
            return None
        channels = before.anatomy.channels
        del before, after
        gc.collect()  # graphs hold each other: until then the old network's memory would stay taken
        return removal_of(channels, self.state, difference, self.step_number, start)

    def _cut(self, dead: Dead, inputs: Inputs) -> tuple[TrainState, float]:
        """As `without`; what rides with the parameters is cut as part of the optimizer's state."""
        moments, riders = self.state.optimizer.inner.state, self._riders()
        named = dict(self.network.named_parameters())
        for key, of in riders.items():
            for name, tensor in of.items():
                moments[named[name]][f"{SEPARATOR}{key}"] = tensor
        pinned = self._pinned()
        try:
            align = self.training.removal_align
            after, difference = without(self.state, dead, inputs, self.compute, align, pinned, self.averages)
        finally:
            _take_out(self.state, riders)
        if after is not self.state:
            for key, of in _take_out(after, riders).items():
                riders[key].clear()
                riders[key].update(of)
        return after, difference


def _take_out(state: TrainState, keys: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """What rides in the optimizer's state, by key and parameter name, taken out of it."""
    moments = state.optimizer.inner.state
    riders: dict[str, dict[str, Tensor]] = {key: {} for key in keys}
    for name, parameter in state.network.named_parameters():
        for key in keys:
            if parameter in moments and f"{SEPARATOR}{key}" in moments[parameter]:
                riders[key][name] = moments[parameter].pop(f"{SEPARATOR}{key}")
    return riders
