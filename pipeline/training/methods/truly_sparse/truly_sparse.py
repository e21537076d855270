"""Truly sparse training: SET on connections alone, for networks whose weights are all in linear layers (Curci, Mocanu
and Pechenizkiy 2021, arXiv 2102.01732).

Between the first and the last step the network holds its weights as compressed sparse rows; forward, backward and the
optimizer work on connections. The All-ReLU of the paper is a property of the network: `model: {name: mlp:all_relu}`.
Units that importance pruning closes get no new inputs, so that surgery can fold them away; the paper's code lets growth
reattach them.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config.options.masks import Evolved
from pipeline.config.section import Fraction, Positive
from pipeline.training.compute.device import derived_seed
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import in_scope
from pipeline.training.methods.replacement import replaced
from pipeline.training.methods.truly_sparse.connections import SparseLinear, free_places
from pipeline.training.methods.truly_sparse.evolution import evolve, give_up
from pipeline.training.methods.weights.layers import MOST_LAYERS, counts_of, due_at, weights_named
from pipeline.training.state import TrainState
from runtime.errors import UserError


class Options(Evolved):
    prune_units: Fraction = Field(
        default=0.0,
        description="Share of a hidden layer's units that lose their inputs at each importance pruning, those of the "
        "smallest sum of |w|; the paper's is 0.2; 0: none.",
    )
    prune_from: Fraction = Field(default=0.4, description="Share of the steps before the first importance pruning.")
    prune_every: Positive = Field(default=10, description="Epochs between two of them.")


def truly_sparse(options: Options, training: Training) -> Hooks:
    """Raises UserError where a weight is not of a linear layer, with torch.compile, or where the density cannot be
    met."""
    method = TrulySparse(options, training)
    return Hooks(
        begin=method.begin, build=method.build, rebuilds=lambda step: step + 1 == training.steps,
        after_step=method.after_step, figures=method.figures,
    )  # fmt: skip


class TrulySparse:
    def __init__(self, options: Options, training: Training) -> None:
        self._options, self._training = options, training
        demand_linear(training.network, options)
        self._counts = counts_of(options, training.network)
        self._sizes = {name: weight.numel() for name, weight in in_scope(training.network).items()}
        self._due = due_at(options, training)
        self._still = weights_named(options.dense, {name: torch.Size() for name in self._counts})
        self._last = list(self._counts)[-1]
        self._layers: dict[str, SparseLinear] = {}
        self._density: dict[str, tuple[int, int]] = {}

    def begin(self, state: TrainState) -> None:
        self._state = state
        layers = {f"{path}.weight": m for path, m in state.network.named_modules() if isinstance(m, SparseLinear)}
        self._layers = layers

    def build(self, network: nn.Module, step: int) -> nn.Module:
        """Linear layers become sparse before the first step, and linear again after the last."""
        if step >= self._training.steps:
            return replaced(network, {p: m.dense() for p, m in network.named_modules() if _sparse(m)})
        layers = {}
        for index, (name, count) in enumerate(self._counts.items()):
            layer = network.get_submodule(name.removesuffix(".weight"))
            if isinstance(layer, nn.Linear) and count < layer.weight.numel():
                layers[name.removesuffix(".weight")] = self._sparse_of(layer, index, count)
        return replaced(network, layers)

    @torch.no_grad()
    def after_step(self, step: int, stepped: bool) -> None:
        ends = (step + 1) % (self._options.prune_every * self._training.steps_per_epoch) == 0
        late = step + 1 > self._options.prune_from * self._training.steps
        closes = ends and late and self._options.prune_units > 0 and step + 1 < self._training.steps
        evolves = stepped and self._due(step)
        moments = self._state.optimizer.inner.state
        for index, (name, layer) in enumerate(self._layers.items()):
            own = [
                m
                for m in moments.get(layer.values, {}).values()
                if isinstance(m, Tensor) and m.shape == layer.values.shape
            ]
            if closes and name != self._last:
                give_up(layer, self._options.prune_units, own)
            if evolves and name not in self._still and (self._options.rewire_last or name != self._last):
                evolve(layer, self._options.drop, own, self._generator(index, step))

    def figures(self, step: int) -> dict[str, Any]:
        """As of masks; and how many units have lost their inputs."""
        for name, count in self._counts.items():
            layer = self._layers.get(name)
            if layer is not None or name not in self._density:
                self._density[name] = (self._sizes[name], count if layer is None else layer.living)
        living = sum(count for _, count in self._density.values())
        return {
            "density": living / sum(self._sizes.values()),
            "living_weights": living,
            "density_by_layer": {n.removesuffix(".weight"): count / size for n, (size, count) in self._density.items()},
            "units_closed": sum(int(layer.closed.sum()) for layer in self._layers.values()),
        }

    def _generator(self, index: int, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(
            derived_seed(self._training.seed, "masks", (step + 1) * MOST_LAYERS + index)
        )

    def _sparse_of(self, layer: nn.Linear, index: int, count: int) -> SparseLinear:
        """With so many of the layer's weights, at random places."""
        taken = torch.zeros(0, dtype=torch.int64)
        keys = free_places(taken, layer.weight.numel(), count, self._generator(index, -1)).to(layer.weight.device)
        values = layer.weight.detach().flatten()[keys]
        bias = None if layer.bias is None else layer.bias.detach()
        return SparseLinear(layer.in_features, layer.out_features, keys, values, bias).train(layer.training)


def _sparse(module: nn.Module) -> bool:
    return isinstance(module, SparseLinear)


def demand_linear(network: nn.Module, options: Any) -> None:
    """UserError where a weight in scope is none of a plain linear layer that alone has it, or with torch.compile."""
    for name in in_scope(network):
        layer = network.get_submodule(name.removesuffix(".weight"))
        if type(layer) is not nn.Linear:
            raise UserError(
                f"truly_sparse trains linear layers, and {name.removesuffix('.weight')} is a {type(layer).__name__}",
                "an MLP",
                "use set or rigl",
            )
    paths = [path for path, m in network.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)]
    if len(paths) != len(in_scope(network)):
        raise UserError(
            f"{len(paths)} linear layers share {len(in_scope(network))} weights, or some are not trained",
            "layers with weights of their own", "use set or rigl",
        )  # fmt: skip
    if getattr(options, "compile", False):
        raise UserError("truly_sparse with compile: true", "compile: false", "set sparse.compile: false")
