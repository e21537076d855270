"""DemP: pressures that let channels die while the network trains (arXiv 2403.07688).

loss = cross entropy + lambda(t) * sum of |gamma| over all batch-norm scales; after each optimizer step
theta += sigma(t) * z, z ~ N(0, 1), on the parameters of live channels; lambda and sigma share a cosine one-cycle.
A dead ReLU channel has no gradient and gets no noise, so it stays dead. Every so many steps the dead are removed.

With a target the penalty is `pipeline.training.steering`'s: on the scales of chosen channels, as strong as it takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.data import Split
from pipeline.surgery.analysis import Analysis
from pipeline.surgery.costs import Costs, costs_of
from pipeline.surgery.ledger import Floats
from pipeline.training.census import census
from pipeline.training.latency import Stopwatch, spread
from pipeline.training.noise import Noise
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.repeatable import derived_seed
from pipeline.training.schedule import learning_rate, one_cycle
from pipeline.training.state import TrainState
from pipeline.training.steering import Steering
from runtime.errors import UserError

REMOVALS = 8  # of a training, where prune_every is auto


class Demp:
    def __init__(
        self,
        section: config.Demp,
        train: Split,
        stopwatch: Stopwatch,
        *,
        seed: int,
        steps_per_epoch: int,
        align: int = 1,
        ranks: Ranks = ALONE,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`align`: the multiple that surgery will keep channels to; a target is reached with it. `note` tells the
        user."""
        self._section, self._train, self._seed, self._ranks = section, train, seed, ranks
        self._steps_per_epoch, self._total = steps_per_epoch, section.epochs * steps_per_epoch
        self._span, self._stopwatch = section.span * self._total, stopwatch
        self._every = -(-self._total // REMOVALS) if section.prune_every == "auto" else section.prune_every
        timed = section.target is not None and section.target.latency_ms is not None
        self._steering: Steering | None = None
        if section.target is not None:
            self._steering = Steering(
                section.target, self._total, align, self._cost, self._latencies if timed else None, note
            )
        self._first: dict[str, Any] = {}  # of the dense network: channels, also by layer, slopes
        self._last_census = -1  # step of it
        self._dead: dict[str, Tensor] | None = None
        self._due: int | None = None  # step after which a removal was asked for

    def bind(self, state: TrainState) -> None:
        self._state, self._anatomy = state, state.anatomy
        self._noise = Noise(state.network)
        self._scales = batch_norm_scales(state.network)
        if not self._first:
            self._first = {
                "channels": self._anatomy.channels,
                "layers": self._anatomy.layer_channels,
                "slopes": None,
                "silent": [],
            }
        self._weights = self._weights_of_scales()
        if self._steering is not None:
            self._steering.bind(state)
        if self._due is not None:
            self._census(self._due)  # names are as before, widths are not
            if self._steering is not None and self._steering.due(self._due):
                self._steering.pick(self._due)
            self._due = None

    def loss_term(self, step: int) -> Tensor | None:
        weight = 0.0 if self._steering is not None else one_cycle(step, self._span, self._section.lambda_peak)
        if not weight:
            return None
        scales = torch.cat(self._scales).abs()
        return weight * (scales if self._weights is None else scales * self._weights).sum()

    def after_step(self, step: int, stepped: bool = True) -> None:
        if stepped:
            sigma = one_cycle(step, self._span, self._section.sigma_peak)
            self._noise.add(sigma, derived_seed(self._seed, "noise", step))
        if self._steering is not None:
            self._steering.after_step(step, stepped)  # what fades must be 0 in time

    def due(self, step: int) -> bool:
        """Every `prune_every` steps, or where a steered period ends; not after the last step, which surgery follows."""
        if step + 1 == self._total:
            return False
        if self._steering is not None:
            return self._steering.due(step)
        return isinstance(self._every, int) and (step + 1) % self._every == 0

    def removal(self, step: int) -> Mapping[str, Tensor] | None:
        if not self.due(step):
            return None
        self._census(step)
        self._due = step
        return self._dead

    def pinned(self) -> Mapping[str, Tensor]:
        return {} if self._steering is None else self._steering.pinned()

    def epoch_end(self, epoch: int, step: int) -> dict[str, Any]:
        """Every `census_every` epochs, and after the last, a census; its verdict keeps noise off the dead until the
        next."""
        if (epoch + 1) % self._section.census_every == 0 or epoch + 1 == self._section.epochs:
            self._census(step)
        pressure = one_cycle(step, self._span, self._section.lambda_peak)
        steered: dict[str, Any] = {}
        if self._steering is not None:
            pressure = self._steering.pressure(step, learning_rate(self._section, step, self._steps_per_epoch))
            steered = {"reached": self._steering.reached()}
        return {
            "lambda": pressure,
            "sigma": one_cycle(step, self._span, self._section.sigma_peak),
            **self._counts(),
            **steered,
        }

    def end(self) -> dict[str, Tensor]:
        assert self._dead is not None, "the last epoch ends with a census"
        return self._dead

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        steering = None if self._steering is None else self._steering.saved()
        told = {"first": self._first, "census": self._last_census, "steering": steering}
        return {name: mask.to(torch.uint8) for name, mask in (self._dead or {}).items()}, told

    def restore(self, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
        self._first, self._last_census = dict(told["first"]), int(told["census"])
        self._weights = self._weights_of_scales()
        if self._steering is not None:
            self._steering.restore(told["steering"])
        if tensors:
            self._dead = {name: mask.bool() for name, mask in tensors.items()}
            self._noise.spare(self._anatomy.live_masks(self._dead))

    def _census(self, step: int) -> None:
        """Un-augmented images, others in each census."""
        section, ranks = self._section, self._ranks
        shuffled = self._train.batches(
            section.census_batch_size, seed=derived_seed(self._seed, "census"), epoch=step, part=ranks.part
        )
        some = itertools.islice(shuffled, section.census_batches)
        self._dead = census(self._anatomy, (x for x, _ in some), ranks)
        self._last_census = step
        silent = {name for name, mask in self._dead.items() if bool(mask.all())}
        self._first["silent"] = sorted(silent.union(self._first["silent"]))
        self._noise.spare(self._anatomy.live_masks(self._dead))

    def _counts(self) -> dict[str, Any]:
        """Dead channels, removed ones included, of those of the dense network, in all and by layer; `silent`: outputs
        that were dead as a whole in some census, of which one channel stays."""
        before, now = self._first["layers"], self._anatomy.layer_channels
        gone = {name: width - now.get(name, 0) for name, width in before.items()}
        counts = {
            "dead": None, "channels": self._first["channels"], "dead_by_layer": None,
            "removed_by_layer": by_name(gone), "channels_by_layer": by_name(before), "silent": self._first["silent"],
        }  # fmt: skip
        if self._dead is None:
            return counts
        unmissed = {name: int(mask.sum()) for name, mask in self._anatomy.removable(self._dead).items()}
        dead = {name: count + unmissed.get(name, 0) for name, count in gone.items()}
        return counts | {"dead": sum(dead.values()), "dead_by_layer": by_name(dead)}

    def _cost(self, state: TrainState, costs: Costs) -> Floats:
        """Per class, in the unit of `cost`."""
        if self._section.cost == "plain":
            return np.ones(costs.count)
        if self._section.cost == "macs":
            return costs.of_each(np.ones(costs.count, bool))
        if self._first.get("slopes") is None:
            self._first["slopes"] = self._ranks.agree(
                self._stopwatch.slopes(state, costs) if self._ranks.first else None
            )
        return spread(self._first["slopes"], costs)

    def _weights_of_scales(self) -> Tensor | None:
        """Per scale, in the order of the penalty, with mean 1: its channel's cost, shared by those that go together."""
        if self._section.cost == "plain" or self._steering is not None:
            return None
        costs = costs_of(Analysis(self._anatomy.traced).run())
        cost, members = self._cost(self._state, costs), np.zeros(costs.count)
        for classes in costs.scales.values():
            np.add.at(members, classes, 1)
        named = dict(self._anatomy.traced.module.named_parameters(remove_duplicate=False))
        each = {id(named[name]): cost[c] / members[c] for name, c in costs.scales.items()}
        parts = [each.get(id(scale), np.zeros(len(scale))) for scale in self._scales]
        flat = np.concatenate(parts)
        mean = float(flat[flat > 0].mean()) if (flat > 0).any() else 1.0
        device = self._scales[0].device
        return torch.as_tensor(flat / mean, dtype=torch.float32, device=device)

    def _latencies(self, one: nn.Module, other: nn.Module) -> tuple[float, float]:
        """ms of both, as the first process measures them."""
        first, second = self._ranks.agree(self._stopwatch.ms(one, other) if self._ranks.first else None)
        return first, second


def by_name(counts: Mapping[str, int]) -> dict[str, int]:
    """Layers by their modules, as in the certificate, and not by their weights."""
    return {weight.removesuffix(".weight"): count for weight, count in counts.items()}


def batch_norm_scales(model: nn.Module) -> list[Tensor]:
    """Every trained gamma, in the order of the modules. Raises UserError where there is none."""
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    scales: list[Tensor] = [norm.weight for norm in norms if norm.affine and norm.weight.requires_grad]
    if not scales:
        raise UserError(
            "the network has no batch norm with a trained scale",
            "batch norms for DemP to act on",
            "choose a network with batch norm, e.g. torchvision:vgg16_bn for torchvision:vgg16",
        )
    return scales
