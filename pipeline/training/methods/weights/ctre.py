"""CTRE: weights near 0 move to where the activations of two layers go together (Atashgahi et al. 2020, arXiv
1903.07138); for networks that are a chain of linear layers.

After each epoch the share `drop` of a layer with the smallest |w| dies, and as many come to life between the units
whose activations have the largest |cosine| over the training set. Of these places the ones that were just dropped are
replaced by random ones.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config.options.masks import Rewired, Share
from pipeline.config.section import Positive
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import Masks, in_scope, largest
from pipeline.training.methods.weights.layers import due_at, figures_of, start_masks, uniform
from pipeline.training.state import TrainState
from runtime.errors import UserError

NOISE = 1e-5  # on |w|, so that equal weights go in random order
BATCH = 512
ALL = 2**31


class Options(Rewired):
    distribution: Literal["erk", "er", "uniform"] = Field(
        default="er", description="How the living weights spread over the layers; the paper's is er (Erdos-Renyi)."
    )
    every: Positive | Literal["epoch"] = Field(
        default="epoch", description="Steps between two changes of the masks; the paper changes them after each epoch."
    )
    drop: Share = Field(default=0.2, description="Share of a layer's living weights that a change moves.")
    until: Share = Field(default=1.0, description="Share of the steps after which the masks stay.")
    by_similarity_until: Share = Field(
        default=1.0, description="Share of the steps after which places are drawn at random, as in CTRE_seq."
    )


def ctre(options: Options, training: Training) -> Hooks:
    """Raises UserError where the network is no chain of linear layers, or where the density cannot be met."""
    paths = chain_of(training.network, training.example)
    masks, due = start_masks(options, training), due_at(options, training)
    networks: list[nn.Module] = []

    def begin(state: TrainState) -> None:
        networks[:] = [state.network]

    @torch.no_grad()
    def after_step(step: int, stepped: bool) -> None:
        if not stepped or not due(step):
            return
        similar: dict[str, Tensor] = {}
        if step + 1 <= options.by_similarity_until * training.steps:
            similar = similarities(networks[0], paths, training, step)
        for index, name in enumerate(list(masks.values)):
            shape, device = masks.values[name].shape, training.example[0].device
            draws = [uniform(shape, training.seed, 3 * index + n, step).to(device) for n in range(3)]
            rewire(masks, name, draws, similar.get(name), options.drop)

    return Hooks(begin=begin, masks=masks, after_step=after_step, figures=figures_of(masks))


@torch.no_grad()
def chain_of(network: nn.Module, example: tuple[Tensor, ...]) -> list[str]:
    """Paths of the linear layers, each reading what the one before it gave, unit by unit. Raises UserError."""
    paths = [name.removesuffix(".weight") for name in in_scope(network)]
    other = next((p for p in paths if not isinstance(network.get_submodule(p), nn.Linear)), None)
    norm = next((p for p, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)), None)
    seen = [] if other or norm else _activations(network, paths, example)
    widths = [x.shape[-1] for x in seen]
    layers = [network.get_submodule(path) for path in paths]
    steps = [isinstance(m, nn.Linear) and m.out_features == after for m, after in zip(layers, widths[1:], strict=False)]
    if other or norm or any(x.ndim != 2 for x in seen) or not all(steps):
        raise UserError(
            f"ctre compares units of layer after layer, and {other or norm or 'the network'} is of another kind",
            "an MLP: linear layers one after another, without normalisation",
            "use rigl or set",
        )
    return paths


def similarities(network: nn.Module, paths: list[str], training: Training, step: int) -> dict[str, Tensor]:
    """Weight -> |cosine| (outputs, inputs) between the activations after its layer and before it, in eval mode."""
    mode = network.training
    network.eval()
    products: list[Tensor] = []
    squares: list[Tensor] = []
    for inputs in training.samples(step, ALL, BATCH):
        seen = _activations(network, paths, inputs)
        products = _added(products, [after.T @ before for before, after in itertools.pairwise(seen)])
        squares = _added(squares, [x.square().sum(0) for x in seen])
    network.train(mode)
    products = [training.ranks.sum(product) for product in products]
    norms = [training.ranks.sum(square).sqrt().clamp_min(1e-12) for square in squares]
    cosines = [p / after.unsqueeze(1) / before for p, before, after in zip(products, norms, norms[1:], strict=False)]
    return {f"{path}.weight": cosine.abs() for path, cosine in zip(paths, cosines, strict=True)}


@torch.no_grad()
def rewire(masks: Masks, name: str, draws: list[Tensor], similar: Tensor | None, share: float) -> None:
    """`draws`: uniform in [0, 1), of the weight's shape: noise, places, values. `similar` None: places at random."""
    weight, before = masks.weights[name], masks.values[name].clone()
    dropped = masks.drop(name, weight.abs() + NOISE * draws[0], int(share * int(before.sum())))
    masks.apply([name])
    count = int(dropped.sum())
    new = torch.zeros_like(before)
    if similar is not None:
        new = largest(similar.masked_fill(masks.values[name], -torch.inf), count) & ~dropped
        masks.values[name] = masks.values[name] | new
    new = new | masks.grow(name, draws[1], count - int(new.sum()), among=~dropped)
    limit = (6 / weight.shape[1]) ** 0.5
    weight[new] = ((2 * draws[2] - 1) * limit)[new]


def _activations(network: nn.Module, paths: list[str], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What each of the layers reads, and the softmax of the outputs."""
    seen: dict[str, Tensor] = {}

    def look(path: str, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen[path] = arguments[0].detach()

    handles = [network.get_submodule(path).register_forward_pre_hook(partial(look, path)) for path in paths]
    try:
        outputs = network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [*(seen[path] for path in paths), outputs.softmax(-1)]


def _added(totals: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    return [total + value for total, value in zip(totals, values, strict=True)] if totals else values
