"""DemP: pressures that let channels die while the network trains (arXiv 2403.07688).

loss = cross entropy + lambda(t) * sum of |gamma| over all batch-norm scales; after each optimizer step
theta += sigma(t) * z, z ~ N(0, 1), on the parameters of live channels; lambda and sigma share a cosine one-cycle.
A dead ReLU channel has no gradient and gets no noise, so it stays dead. Every so many steps the dead are removed.

With a target the penalty is `training.steering`'s: on the scales of chosen channels, as strong as it takes; channels
that no batch norm ends (LayerNorm and GroupNorm networks) die by gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.config.section import Fraction, NonNegative, Positive, Section, impossible
from pipeline.config.training import Target
from pipeline.surgery.channels.costs import Costs, costs_of
from pipeline.surgery.channels.ledger import Floats
from pipeline.surgery.rules.walk import analyse
from pipeline.training.census import census
from pipeline.training.compute.device import derived_seed
from pipeline.training.hooks import Dead, Hooks, Training
from pipeline.training.methods.noise import Noise
from pipeline.training.optimizer.schedule import one_cycle
from pipeline.training.state import TrainState
from pipeline.training.steering.controller import Steering
from pipeline.training.steering.demands import demand_backend, demand_something_dies, gates_of, trained_scales
from pipeline.training.steering.stopwatch import Stopwatch, spread

REMOVALS = 8  # of a training, where prune_every is auto


class Options(Section):
    lambda_peak: NonNegative = Field(
        default=0.03, description="Peak weight of the L1 penalty on all normalisation scales; unused with a target."
    )
    sigma_peak: NonNegative = Field(
        default=5e-5, description="Peak standard deviation of the noise on live units, after each step."
    )
    span: Fraction = Field(default=1.0, description="Share of the steps that the one-cycle of lambda and sigma spans.")
    cost: Literal["plain", "macs", "latency"] = Field(
        default="plain",
        description="Weight of each scale in the penalty. plain: 1, as published; macs, latency: what its channel "
        "costs, with mean 1.",
    )
    target: Target | None = Field(
        default=None, description="The outcome to steer to, e.g. {macs: 0.35}; null: lambda_peak decides."
    )
    gates: bool = Field(
        default=True,
        description="With a target: channels that no batch norm ends (LayerNorm, GroupNorm, no norm) die by gates on "
        "what makes them; false: batch norms alone, as published.",
    )
    prune_every: Positive | Literal["auto", "end"] = Field(
        default="auto",
        description="Steps between two removals of dead channels; auto: an eighth of the training; end: none before "
        "the end; unused with a target, whose periods they end.",
    )
    census_every: Positive = Field(default=1, description="Epochs between two censuses of dead channels.")
    census_batches: Positive = Field(default=3, description="Batches a census looks at.")
    census_batch_size: Positive = Field(default=512, description="Images a census batch.")

    @property
    def removes(self) -> bool:
        return self.prune_every != "end" or self.target is not None

    @property
    def timed(self) -> bool:
        return self.cost == "latency" or (self.target is not None and self.target.latency_ms is not None)

    @model_validator(mode="after")
    def _something_can_die(self) -> Self:
        if self.lambda_peak == 0 and self.sigma_peak == 0 and self.target is None:
            raise impossible(
                "lambda_peak",
                "lambda_peak and sigma_peak are both 0, so no channel would die",
                "expected at least one above 0",
                "set lambda_peak, e.g. 0.03",
            )
        if self.span == 0:
            raise impossible(
                "span", "span is 0", "expected above 0 and at most 1", "set it to 1.0 for the whole training"
            )
        return self


def demp(options: Options, training: Training) -> Hooks:
    """Raises UserError where nothing of the network could die, or the target's backend cannot be built for here."""
    demand_something_dies(training, options.gates and options.target is not None)
    demand_backend(options.target)
    method = Demp(options, training)
    steering = method.steering
    return Hooks(
        begin=method.begin,
        penalty=method.penalty,
        after_step=method.after_step,
        due=method.due,
        dead=method.removal,
        pinned=dict if steering is None else steering.pinned,
        figures=method.figures,
        census=method.last_verdict,
        state=method.state,
        load=method.load,
    )


class Demp:
    def __init__(self, options: Options, training: Training) -> None:
        self._options, self._training = options, training
        self._total = training.steps
        self._span = options.span * self._total
        target = options.target
        self._every = -(-self._total // REMOVALS) if options.prune_every == "auto" else options.prune_every
        self.steering: Steering | None = None
        if target is not None:
            timed = self._latencies if target.latency_ms is not None else None
            more = timed, training.note, options.gates
            self.steering = Steering(target, self._total, training.align, self._cost, *more)
        self._first: dict[str, Any] = {}  # of the dense network: channels, also by layer, slopes
        self._last_census = -1  # step of it
        self._dead: dict[str, Tensor] | None = None
        self._due: int | None = None  # step after which a removal was asked for

    def begin(self, state: TrainState) -> None:
        self._state, self._anatomy = state, state.anatomy
        self._noise = Noise(state.network)
        self._scales = trained_scales(state.network)
        first = not self._first
        if first:
            self._first = {
                "channels": self._anatomy.channels,
                "layers": self._anatomy.layer_channels,
                "slopes": None,
                "silent": [],
            }
        self._weights = self._weights_of_scales()
        if self.steering is not None:
            self.steering.bind(state)
            if first and self.steering.gated:
                self._training.note(gates_of(self.steering, len(self._scales)))
        if self._due is not None:
            self._census(self._due)  # names are as before, widths are not
            if self.steering is not None and self.steering.due(self._due):
                self.steering.pick(self._due)
            self._due = None

    def penalty(self, step: int) -> Tensor | None:
        weight = 0.0 if self.steering is not None else one_cycle(step, self._span, self._options.lambda_peak)
        if not weight:
            return None
        scales = torch.cat(self._scales).abs()
        return weight * (scales if self._weights is None else scales * self._weights).sum()

    def after_step(self, step: int, stepped: bool = True) -> None:
        if stepped:
            sigma = one_cycle(step, self._span, self._options.sigma_peak)
            self._noise.add(sigma, derived_seed(self._training.seed, "noise", step))
        if self.steering is not None:
            self.steering.after_step(step, stepped)  # what fades must be 0 in time

    def due(self, step: int) -> bool:
        """Every `prune_every` steps, or where a steered period ends; not after the last step, which surgery follows."""
        if step + 1 == self._total:
            return False
        if self.steering is not None:
            return self.steering.due(step)
        return isinstance(self._every, int) and (step + 1) % self._every == 0

    def removal(self, step: int) -> Dead | None:
        self._census(step)
        self._due = step
        return self._dead

    def figures(self, step: int) -> dict[str, Any]:
        """Every `census_every` epochs, and after the last, a census; its verdict keeps noise off the dead until the
        next."""
        epoch = step // self._training.steps_per_epoch
        if (epoch + 1) % self._options.census_every == 0 or step + 1 == self._total:
            self._census(step)
        pressure = one_cycle(step, self._span, self._options.lambda_peak)
        steered: dict[str, Any] = {}
        if self.steering is not None:
            pressure = self.steering.pressure(step, self._training.rate(step))
            steered = {"reached": self.steering.reached()}
        return {
            "lambda": pressure,
            "sigma": one_cycle(step, self._span, self._options.sigma_peak),
            **self._counts(),
            **steered,
        }

    def last_verdict(self) -> Dead:
        assert self._dead is not None, "the last epoch ends with a census"
        return self._dead

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        steering = None if self.steering is None else self.steering.saved()
        document = {"first": self._first, "census": self._last_census, "steering": steering}
        return {name: mask.to(torch.uint8) for name, mask in (self._dead or {}).items()}, document

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        self._first, self._last_census = dict(document["first"]), int(document["census"])
        self._weights = self._weights_of_scales()
        if self.steering is not None:
            self.steering.restore(document["steering"])
        if tensors:
            self._dead = {name: mask.bool() for name, mask in tensors.items()}
            self._noise.spare(self._anatomy.live_masks(self._dead))

    def _census(self, step: int) -> None:
        """Un-augmented images, others in each census."""
        options = self._options
        samples = self._training.samples(step, options.census_batches, options.census_batch_size)
        self._dead = census(self._anatomy, samples, self._training.ranks)
        if self.steering is not None and self.steering.gated:  # what is not positive on average is not dead by that
            self._dead = {
                n: mask if n in self._anatomy.exact else torch.zeros_like(mask) for n, mask in self._dead.items()
            }
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
        if self._options.cost == "plain":
            return np.ones(costs.count)
        if self._options.cost == "macs":
            return costs.of_each(np.ones(costs.count, bool))
        if self._first.get("slopes") is None:
            self._first["slopes"] = self._training.ranks.agree(
                self._stopwatch().slopes(state, costs) if self._training.ranks.first else None
            )
        return spread(self._first["slopes"], costs)

    def _weights_of_scales(self) -> Tensor | None:
        """Per scale, in the order of the penalty, with mean 1: its channel's cost, shared by those that go together."""
        if self._options.cost == "plain" or self.steering is not None:
            return None
        costs = costs_of(analyse(self._anatomy.traced))
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
        ranks = self._training.ranks
        first, second = ranks.agree(self._stopwatch().ms(one, other) if ranks.first else None)
        return first, second

    def _stopwatch(self) -> Stopwatch:
        """Of images."""
        channels, height, width = self._training.example[0].shape[1:]
        target = self._options.target
        batch, backend = (target.batch, target.backend) if target else (32, "onnxruntime")
        return Stopwatch((channels, height, width), batch, backend, self._training.threads)


def by_name(counts: Mapping[str, int]) -> dict[str, int]:
    """Layers by their modules, as in the certificate, and not by their weights."""
    return {weight.removesuffix(".weight"): count for weight, count in counts.items()}
