"""SNAP, CroP and EarlyCroP: channels scored through a gate of 1 on each, at the start or once training has settled.

snap (Verdenius et al. 2020, arXiv 2006.00896): |sum over batches of dL/dg|. crop (Rachwan et al. 2022, arXiv
2206.10451): |H_g dL/dg|, the Hessian in the gates times the gradient. Both prune before the first step, in `rounds`
selections with scores taken anew. earlycrop is crop at the end of the first epoch whose weights have moved, measured as
d_t = |theta_t - theta_0|, by 0 < |d_t - d_(t-1)| / |theta_0| < 1 - target; at `target.reached_at` at the latest.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.options.channels import Targeted
from pipeline.config.section import Positive
from pipeline.surgery.channels.ledger import Floats
from pipeline.training.hooks import Dead, Hooks, Training
from pipeline.training.methods.channels.cutting import HELD, Cutting
from pipeline.training.methods.gated.gates import Gates
from pipeline.training.state import TrainState
from runtime.errors import UserError

FIRST = "first"


class Options(Targeted):
    rounds: Positive = Field(default=5, description="Selections one after the other, each with scores of its own.")
    score_batches: Positive = Field(default=5, description="Batches whose gradients are added up; the paper's is 5.")
    score_batch_size: Positive = Field(default=128, description="Images in each of them.")


def snap(options: Options, training: Training) -> Hooks:
    """Raises UserError in a loop without labels, or where the target is out of reach."""
    method = Pruner("snap", options, training)
    return method.at_the_start()


def crop(options: Options, training: Training) -> Hooks:
    """Raises UserError in a loop without labels, or where the target is out of reach."""
    method = Pruner("crop", options, training)
    return method.at_the_start()


def earlycrop(options: Options, training: Training) -> Hooks:
    """Raises UserError in a loop without labels, or where the target is out of reach."""
    method = Pruner("crop", options, training, name="earlycrop")
    return method.once_settled()


class Pruner:
    def __init__(self, score: str, options: Options, training: Training, name: str = "") -> None:
        if training.labelled is None or training.loss is None:
            raise UserError(
                f"{name or score} needs labels to score channels, and a loop of one's own gives it none",
                "samples with labels",
                "train with `demport run`, or choose a method that needs none, e.g. taylor or hesso",
            )
        self._labelled, self._loss = training.labelled, training.loss
        self._score, self._options, self._training = score, options, training
        self.cutting = Cutting(options, training, eligible=lambda channels: channels.open_sites)
        self._begun = self._pruned = False
        self._first: dict[str, dict[str, Tensor]] = {}  # of parameters before the first step
        self._moved: float | None = None  # at the end of the last epoch
        self._latest = min(max(1, round(options.target.reached_at * training.steps)), training.steps - 1)

    def at_the_start(self) -> Hooks:
        """The first network that a training begins is pruned at once; its channels leave after the first step."""

        def begin(state: TrainState) -> None:
            self.cutting.begin(state)
            if not self._begun:  # a restart brings the status of its own
                self._begun = True
                self.prune(0)

        return self.cutting.hooks(
            self.scores,
            begin=begin,
            due=lambda step: step == 0,
            dead=lambda step: self.cutting.none(),
        )

    def once_settled(self) -> Hooks:
        """Asked at the end of each epoch."""
        self._first[FIRST] = {}

        def begin(state: TrainState) -> None:
            self.cutting.begin(state)
            if not self._begun:
                self._begun = True
                self._first[FIRST].update({name: p.detach().clone() for name, p in state.network.named_parameters()})

        return self.cutting.hooks(
            self.scores,
            begin=begin,
            due=self.due,
            dead=self.dead,
            carried=self.cutting.carried | self._first,
            state=lambda: ({}, {"moved": self._moved, "pruned": self._pruned}),
            load=self.load,
        )

    def due(self, step: int) -> bool:
        epoch_ends = (step + 1) % self._training.steps_per_epoch == 0
        return not self._pruned and (step + 1 == self._latest or (epoch_ends and step + 1 < self._latest))

    def dead(self, step: int) -> Dead | None:
        named = dict(self.cutting.state.network.named_parameters())
        first = self._first[FIRST]
        size = float(torch.stack([t.norm() for t in first.values()]).norm())
        moved = float(torch.stack([(named[name].detach() - t).norm() for name, t in first.items()]).norm())
        change = None if self._moved is None else abs(moved - self._moved) / size
        self._moved = moved
        if step + 1 < self._latest and (change is None or not 0 < change < 1 - self.cutting.asked):
            return None
        self._pruned = True
        self.prune(step + 1)
        return self.cutting.none()

    def load(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        self.cutting.read()
        self._moved, self._pruned = document["moved"], bool(document["pruned"])

    def prune(self, step: int) -> None:
        """In rounds, geometrically to the target."""
        rounds = self._options.rounds
        for number in range(rounds):
            waypoint = self.cutting.asked ** ((number + 1) / rounds)
            gone = self.cutting.selected(self.scores(step * rounds + number), waypoint)
            self.cutting.mark(gone, HELD)
            self.cutting.hold()

    def scores(self, step: int) -> Floats:
        """(count,): in eval mode, normalisations with the statistics they have."""
        network, channels = self.cutting.state.network, self.cutting.channels
        gates = Gates(channels, network)
        ones = gates.judged.requires_grad_()
        mode = {module: module.training for module in network.modules()}
        network.eval()
        sizes = (self._options.score_batches, self._options.score_batch_size)
        try:
            with gates.attached():
                total = torch.zeros_like(ones)
                for inputs, labels in self._labelled(step, *sizes):
                    total += torch.autograd.grad(self._loss(network(*inputs), labels), ones)[0]
                total = self._training.ranks.sum(total)
                if self._score == "crop":
                    product = torch.zeros_like(ones)
                    for inputs, labels in self._labelled(step, *sizes):
                        loss = self._loss(network(*inputs), labels)
                        slope = torch.autograd.grad(loss, ones, create_graph=True)[0]
                        product += torch.autograd.grad((slope * total).sum(), ones)[0]
                    total = self._training.ranks.sum(product)
        finally:
            for module, training in mode.items():
                module.training = training
        return total.abs().double().cpu().numpy()
