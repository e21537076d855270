"""SNIP: one batch before the training scores every weight, and the best stay (Lee et al. 2019, arXiv 1810.02340).

score = |w dL/dw|; the weights that are scored are those that are trained. Biases are out of scope.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config.options.masks import Scored
from pipeline.config.section import Positive
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import Masks, in_scope, largest
from pipeline.training.methods.weights.layers import figures_of
from runtime.errors import UserError


class Options(Scored):
    score_batches: Positive = Field(default=1, description="Batches whose gradients are added up; the paper's is 1.")
    score_batch_size: Positive = Field(default=128, description="Images in each of them.")


def snip(options: Options, training: Training) -> Hooks:
    """Raises UserError in a loop without labels, or where a layer would lose all its weights."""
    scores = connection_sensitivity(training, options.score_batches, options.score_batch_size)
    flat = torch.cat([score.flatten() for score in scores.values()])
    lives = largest(flat, max(1, round(options.density * flat.numel())))
    masks, start = Masks(), 0
    for name, score in scores.items():
        masks.values[name] = lives[start : start + score.numel()].view_as(score)
        start += score.numel()
    if empty := [name.removesuffix(".weight") for name, mask in masks.values.items() if not bool(mask.any())]:
        raise UserError(
            f"a density of {options.density:g} leaves no weight of {', '.join(empty)}",
            "at least one weight in each layer",
            "raise sparse.density, or use static_erk or rigl",
        )
    return Hooks(masks=masks, figures=figures_of(masks))


def connection_sensitivity(training: Training, batches: int, batch_size: int) -> dict[str, Tensor]:
    """Name -> |w dL/dw| of each weight in scope; the network in eval mode, as it was afterwards, normalisations with
    the statistics they begin with."""
    if training.labelled is None or training.loss is None:
        raise UserError(
            "snip needs labels to score weights, and a loop of one's own gives it none",
            "samples with labels",
            "train with `demport run`, or choose a method that looks at weights alone, e.g. static_erk",
        )
    network, weights = training.network, in_scope(training.network)
    mode = {module: module.training for module in network.modules()}
    network.eval()
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    try:
        for x, y in training.labelled(0, batches, batch_size):
            loss = training.loss(network(*x), y)
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                totals[name] += gradient
    finally:
        for module, training_mode in mode.items():
            module.training = training_mode
    shared = {name: training.ranks.sum(total) for name, total in totals.items()}
    return {name: (weight.detach() * shared[name]).abs() for name, weight in weights.items()}
