"""NNrelief: each output keeps the fewest connections that carry a share alpha of the signal it receives, and the
network is trained again, round by round (Dekhovich et al. 2021, arXiv 2109.10795).

A connection is a weight of a linear layer or a whole kernel of a convolution; biases count as one. Units whose
activation is 0 on all samples lose their inputs and their normalisation. Where two branches are added, a channel of the
one that carries less than (1 - alpha) / alpha of what the other carries there goes, with its normalisation. That holds
for a branch, and for a skip that has a convolution; the paper also multiplies channels of an identity by 0, which would
be another operation in the network. What nobody reads is left to surgery.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config.options.masks import Masking, Share
from pipeline.config.section import Positive
from pipeline.training.census import census
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import Masks, in_scope
from pipeline.training.methods.rounds.branches import additions, signals_of, weak_channels
from pipeline.training.methods.rounds.flow import connection_strengths, fewest_carrying, inputs_of
from pipeline.training.methods.rounds.rounds import Rounds
from pipeline.training.methods.weights.layers import figures_of
from pipeline.training.snapshots.rewind import Start
from pipeline.training.state import TrainState
from runtime.errors import UserError


class Options(Masking):
    alpha_conv: Share = Field(default=0.95, description="Share of the signal that connections of a convolution keep.")
    alpha_linear: Share = Field(default=0.95, description="Share of the signal that those of a linear layer keep.")
    rounds: Positive = Field(default=6, description="Prunings, each followed by a retraining.")
    retrain_epochs: Positive = Field(
        default=20, description="Epochs of each retraining, over which the training's learning rates are squeezed."
    )
    images: Positive = Field(default=1000, description="Training images that the signal is measured on.")
    branches: bool = Field(
        default=True,
        description="Where branches are added: drop channels of one that the other drowns.",
    )
    signal: Literal["norm", "sum"] = Field(
        default="norm", description="Of a kernel's map over the image. norm: its L2 norm; sum: the sum of its entries."
    )
    reset: bool = Field(
        default=False, description="Begin each round with the weights of the start, as the paper does for LeNets."
    )


def nnrelief(options: Options, training: Training) -> Hooks:
    """Raises UserError where the network has a transposed convolution."""
    method = NNrelief(options, training)
    return Hooks(
        begin=method.begin, masks=method.masks, steps=method.rounds.steps, between=method.between,
        rate=method.rate, state=method.state, load=method.load, figures=method.figures,
    )  # fmt: skip


class NNrelief:
    def __init__(self, options: Options, training: Training) -> None:
        self._options, self._training = options, training
        network = training.network
        self._layers = [name.removesuffix(".weight") for name in in_scope(network)]
        for path in self._layers:
            if isinstance(network.get_submodule(path), nn.modules.conv._ConvTransposeNd):
                raise UserError(
                    f"{path} is a transposed convolution", "convolutions and linear layers", "use another method"
                )
        named = dict(network.named_parameters())
        norms = [path for path, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        biases = [f"{path}.bias" for path in self._layers] + [f"{p}.{key}" for p in norms for key in ("weight", "bias")]
        names = [f"{path}.weight" for path in self._layers] + [name for name in biases if name in named]
        self.masks = Masks({name: torch.ones_like(named[name], dtype=torch.bool) for name in names})
        retraining = options.retrain_epochs * training.steps_per_epoch
        self.rounds = Rounds([training.steps] + options.rounds * [retraining])
        self._start = Start()
        self._before: list[float] = []

    def begin(self, state: TrainState) -> None:
        self._state = state
        if self._options.reset and not self._start.tensors:
            self._start.keep(state)

    def rate(self, step: int) -> float | None:
        number, place = self.rounds.at(step)
        if number == 0:
            return None
        if not self._before:
            self._before = [self._training.rate(early) for early in range(self.rounds.lengths[0])]
        return self._before[int(place * len(self._before) / self.rounds.lengths[number])]

    def figures(self, step: int) -> dict[str, Any]:
        weights = Masks({name: self.masks.values[name] for name in (f"{path}.weight" for path in self._layers)})
        return {"round": self.rounds.at(step)[0], **figures_of(weights)(step)}

    @torch.no_grad()
    def between(self, step: int) -> None:
        for _ in self.rounds.beginning(step):
            mode = {module: module.training for module in self._state.network.modules()}
            self._state.network.eval()
            self._prune(step)
            for module, training in mode.items():
                module.training = training
            self._state.optimizer.inner.state.clear()
            if self._options.reset:
                self._start.put_back(self._state)
            self.masks.apply()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self._start.saved(), {}

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        self._start.load(tensors, self._training.example[0].device)

    def _prune(self, step: int) -> None:
        """All layers by the signals before any is pruned; the last sees those after."""
        samples = list(self._training.samples(step, 1, self._options.images))
        self._silence(census(self._state.anatomy, samples, self._training.ranks))
        faint = self._faint(samples) if self._options.branches else {}
        self._prune_layers(self._layers[:-1], samples)
        for name, gone in faint.items():
            if name in self.masks.values:
                self.masks.values[name] &= ~gone.view(-1, *[1] * (self.masks.values[name].ndim - 1))
        self.masks.apply()
        self._prune_layers(self._layers[-1:], samples)

    def _silence(self, dead: Mapping[str, Tensor]) -> None:
        """Units that never fire lose inputs, bias and normalisation; of a layer that is silent as a whole one stays."""
        for name, live in self._state.anatomy.live_masks(dead).items():
            if name in self.masks.values:
                self.masks.values[name] &= live.bool()

    def _faint(self, samples: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """Parameter -> bool (channels,), True where it makes a channel that the other side of an addition drowns."""
        traced = self._state.anatomy.traced
        pairs = additions(traced)
        signals = signals_of(traced, {side.node for pair in pairs for side in pair}, samples)
        faint: dict[str, Tensor] = {}
        for pair in pairs:
            one, other = (self._training.ranks.mean(signals[side.node]) for side in pair)
            for side, gone in zip(pair, weak_channels(one, other, self._options.alpha_conv), strict=True):
                if side.layer is not None:
                    paths = [side.layer] if side.norm is None else [side.layer, side.norm]
                    faint |= {f"{path}.{key}": gone for path in paths for key in ("weight", "bias")}
        return faint

    def _prune_layers(self, paths: list[str], samples: list[tuple[Tensor, ...]]) -> None:
        network, ranks = self._state.network, self._training.ranks
        signals = inputs_of(network, paths, samples)
        for path in paths:
            layer: Any = network.get_submodule(path)
            strengths = connection_strengths(layer, ranks.mean(signals[path]), self._options.signal)
            alpha = self._options.alpha_linear if isinstance(layer, nn.Linear) else self._options.alpha_conv
            keep = fewest_carrying(strengths, alpha)
            weight, bias = f"{path}.weight", f"{path}.bias"
            lives = keep if layer.bias is None else keep[:, :-1]
            self.masks.values[weight] &= lives.view(*lives.shape, *[1] * (layer.weight.ndim - 2))
            if layer.bias is not None:
                self.masks.values[bias] &= keep[:, -1]
