"""K-starts: several random masks are tried for an epoch, and the one with the fittest weights is trained on
(after the abstract of arXiv 2209.02201; what it leaves open is ours).

The tries are steps of the same training and count: K tries of `try_epochs`, the last of the epochs being the winner's
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config.options.masks import Tried
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import Masks, largest
from pipeline.training.methods.weights.layers import counts_of, figures_of, shapes_of, uniform
from pipeline.training.snapshots.rewind import rewind, snapshot
from pipeline.training.state import TrainState
from runtime.errors import UserError

START, BEST = "start ", "best "


class Options(Tried):
    """All keys are those of `Tried`."""


def kstarts(options: Options, training: Training) -> Hooks:
    """Raises UserError where the density cannot be met, or the training is no longer than a try."""
    demand_longer(training, options.try_epochs, "sparse.try_epochs", "for the winner")
    method = KStarts(options, training)
    return Hooks(
        begin=method.begin, masks=method.masks, steps=method.steps, position=method.position,
        after_step=method.after_step, figures=method.figures, state=method.state, load=method.load,
    )  # fmt: skip


def demand_longer(training: Training, epochs: int, key: str, what: str) -> None:
    """UserError where the training has no epochs after these."""
    if training.steps <= epochs * training.steps_per_epoch:
        raise UserError(
            f"{key} take {epochs} epochs, and the training is no longer", f"epochs {what}", "raise sparse.epochs"
        )


class KStarts:
    def __init__(self, options: Tried, training: Training) -> None:
        self._options, self._training = options, training
        self._try = options.try_epochs * training.steps_per_epoch
        self.tries = options.starts * self._try
        self.steps = self.tries + training.steps - self._try
        self._counts = counts_of(options, training.network)
        self.masks = Masks(self._mask(0))
        self._gradients = torch.zeros((), device=training.example[0].device)
        self._fitness: list[tuple[float, float]] = []  # of each try: |w|, |gradient|
        self._start: dict[str, Tensor] = {}
        self._ends: dict[str, Tensor] = {}  # "TRY name": the snapshots of the tries so far that may still win

    def begin(self, state: TrainState) -> None:
        self._state = state
        if not self._start:
            self._start = snapshot(state)

    def position(self, step: int) -> int:
        return step % self._try if step < self.tries else step - self.tries + self._try

    @torch.no_grad()
    def after_step(self, step: int, stepped: bool) -> None:
        if step >= self.tries:
            return
        if stepped:
            for name, weight in self.masks.weights.items():
                if weight.grad is not None:
                    self._gradients += (weight.grad.abs() * self.masks.values[name]).sum()
        if (step + 1) % self._try == 0:
            self._end_of_try((step + 1) // self._try)

    def figures(self, step: int) -> dict[str, Any]:
        return {**figures_of(self.masks)(step), "tries": len(self._fitness), "winner": self._winner()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        start = {f"{START}{name}": value for name, value in self._start.items()}
        ends = {f"{BEST}{name}": value for name, value in self._ends.items()}
        return {**start, **ends, "gradients": self._gradients}, {"fitness": self._fitness}

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        device = self._gradients.device
        for prefix, values in ((START, self._start), (BEST, self._ends)):
            values.clear()
            values |= {n[len(prefix) :]: t.to(device) for n, t in tensors.items() if n.startswith(prefix)}
        self._gradients = tensors["gradients"].to(device)
        self._fitness = [(float(size), float(gain)) for size, gain in document["fitness"]]

    def _mask(self, number: int) -> dict[str, Tensor]:
        shapes, device = shapes_of(self._training.network), self._training.example[0].device
        return {
            name: largest(uniform(shapes[name], self._training.seed, index, number - 1), count).to(device)
            for index, (name, count) in enumerate(self._counts.items())
        }

    def _winner(self) -> int | None:
        """Number of the fittest try so far."""
        if not self._fitness:
            return None
        sizes, gains = zip(*self._fitness, strict=True)
        size, gain = max(sum(sizes), 1e-30), max(sum(gains), 1e-30)
        score = {
            "weights": list(sizes),
            "gradients": list(gains),
            "both": [s / size + g / gain for s, g in self._fitness],
        }[self._options.fitness]
        return max(range(len(score)), key=score.__getitem__)

    def _end_of_try(self, number: int) -> None:
        """Note how fit this try is; then begin the next from the start, or go on with the winner."""
        size = sum(float(weight.abs().sum()) for weight in self.masks.weights.values())
        self._fitness.append((size, float(self._gradients)))
        self._gradients.zero_()
        own = snapshot(self._state)
        self._ends |= {f"{number - 1} {name}": value for name, value in own.items()}
        winner = self._winner()
        assert winner is not None
        if self._options.fitness != "both":  # there the means move with each try, and one that lost may yet win
            self._ends = {name: value for name, value in self._ends.items() if name.startswith(f"{winner} ")}
        last = number == self._options.starts
        values = self._mask(winner if last else number)
        self.masks.values.update(values)
        best = {n.partition(" ")[2]: value for n, value in self._ends.items() if n.startswith(f"{winner} ")}
        rewind(self._state, best if last else self._start, moments=last)
        if last:
            self._start, self._ends = {"": torch.zeros(0)}, {}  # of no use any more, and a checkpoint is smaller
        self.masks.apply()
