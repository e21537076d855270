"""EAST: training at 99.9 % zeros and more from scratch (Li et al. 2025, arXiv 2411.13545).

RigL with ERK densities, and three things beside it. Each `nn.ReLU` is a DyReLU at first, phased into ReLU. In each
stage the third and later blocks use the convolutions of the second, times a scalar; `density` is of all weights, so
those that are shared may be denser. The density of the first part of the training comes and goes in cycles, up to
`peak` times itself. After the last step each block has weights of its own, and every activation is ReLU.

Inferred: the steps between changes within cycles, and that scalars are free of weight decay. As in the authors' code
a layer keeps at least 0.7 of the density, so that the count is a little above what is asked for.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from pipeline.config.options.masks import Rewired, Share
from pipeline.config.section import Fraction, NonNegative, Positive
from pipeline.training.compute.device import derived_seed
from pipeline.training.hooks import Hooks, Training
from pipeline.training.masks import Masks, erk_counts, largest, uniform_counts
from pipeline.training.methods.east.dyrelu import DyReLU, channels_of_relus
from pipeline.training.methods.east.sharing import SharedConv2d, sharers
from pipeline.training.methods.replacement import replaced
from pipeline.training.methods.weights.layers import counts_of, due_at, figures_of, shapes_of, uniform, weights_named
from pipeline.training.methods.weights.rigl import moved
from pipeline.training.state import TrainState
from runtime.errors import UserError

FLOOR, LEAST_DROP = 0.7, 0.005


class Options(Rewired):
    density: Share = Field(default=0.001, description="Share of all weights that live, shared ones counted once.")
    drop: Share = Field(default=0.5, description="Share of a layer's living weights that a change moves at first.")
    until: Share = Field(default=1.0, description="Share of the steps after which the masks stay.")
    dyrelu: Literal["start", "late", "none"] = Field(
        default="start",
        description="start: ReLUs are DyReLUs from the first step, as in the paper; late: only while they are phased "
        "out; none: they stay ReLUs.",
    )
    phase_from: Fraction = Field(default=0.25, description="Share of the epochs after which DyReLU fades.")
    phase_until: Share = Field(default=0.5, description="Share of the epochs after which it is ReLU.")
    share: bool = Field(default=True, description="Later blocks of a stage use the weights of its second.")
    cycles: Annotated[int, Field(ge=0)] = Field(default=2, description="How often the density rises and falls.")
    cycle: Share = Field(default=0.2, description="Share of the steps of each cycle.")
    peak: Positive = Field(default=3, description="Largest density of a cycle, in densities.")
    cycle_every: Positive = Field(default=500, description="Steps between two changes of the density.")
    clip: NonNegative = Field(default=1.0, description="Largest norm of all gradients together; 0: any.")


def east(options: Options, training: Training) -> Hooks:
    """Raises UserError where the density cannot be met, or where phases do not follow each other."""
    method = East(options, training)
    return Hooks(
        begin=method.begin, masks=method.masks, build=method.build, rebuilds=method.rebuilds,
        after_backward=method.after_backward, after_step=method.after_step, figures=method.figures,
    )  # fmt: skip


class East:
    def __init__(self, options: Options, training: Training) -> None:
        self._options, self._training = options, training
        epochs, network = training.steps // training.steps_per_epoch, training.network
        self._fade = (round(options.phase_from * epochs), round(options.phase_until * epochs))
        if options.dyrelu != "none" and not self._fade[0] < self._fade[1] < epochs:
            raise UserError(
                f"DyReLU fades from epoch {self._fade[0]} to {self._fade[1]} of {epochs}",
                "at least an epoch to fade in, and epochs after it",
                "train longer, set sparse.phase_from and sparse.phase_until, or sparse.dyrelu: none",
            )
        if options.densities:
            raise UserError("sparse.densities with east", "one density, which cycles move", "use rigl")
        counts_of(options, network)  # says what is wrong with the density or a layer's name
        self._shared = sharers(network) if options.share else {}
        self._relus = channels_of_relus(network, training.example) if options.dyrelu != "none" else {}
        shapes = shapes_of(network)
        self._size = sum(shape.numel() for shape in shapes.values())
        self._shapes = {name: s for name, s in shapes.items() if name.removesuffix(".weight") not in self._shared}
        self._dense = weights_named(options.dense, self._shapes)
        self._due = due_at(options, training)
        self._in_cycles = min(training.steps - 1, round(options.cycles * options.cycle * training.steps))
        device = training.example[0].device
        self.masks = Masks({
            name: largest(uniform(self._shapes[name], training.seed, index), count).to(device)
            for index, (name, count) in enumerate(self._counts(options.density).items())
        })  # fmt: skip

    def begin(self, state: TrainState) -> None:
        self._state = state
        self._scales = [m.scale for m in state.network.modules() if isinstance(m, SharedConv2d)]
        self._dynamic = [m for m in state.network.modules() if isinstance(m, DyReLU)]

    def build(self, network: nn.Module, step: int) -> nn.Module:
        """Shared until the last step is over; DyReLU until it has faded."""
        named = dict(network.named_modules())
        others: dict[str, nn.Module] = {}
        if step >= self._training.steps:
            others |= {path: m.own() for path, m in named.items() if isinstance(m, SharedConv2d)}
        else:
            for index, (path, owner) in enumerate(self._shared.items()):
                if isinstance(layer := named[path], nn.Conv2d):
                    weight, scale = named[owner].weight, torch.rand((), generator=self._generator(index))
                    assert isinstance(weight, nn.Parameter)
                    others[path] = SharedConv2d(layer, weight, scale.to(weight.device)).train(layer.training)
        dynamic = step < self._fade[1] * self._training.steps_per_epoch
        for index, (path, channels) in enumerate(self._relus.items(), len(self._shared)):
            layer = named[path]
            if dynamic and not isinstance(layer, DyReLU):
                device = self._training.example[0].device
                others[path] = DyReLU(channels, self._generator(index)).to(device).train(layer.training)
            elif not dynamic and isinstance(layer, DyReLU):
                others[path] = nn.ReLU().train(layer.training)
        return replaced(network, others)

    def rebuilds(self, step: int) -> bool:
        faded = self._fade[1] * self._training.steps_per_epoch
        return step + 1 == self._training.steps or (bool(self._relus) and step + 1 == faded)

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        if self._options.clip:
            own = [p for p in self._state.network.parameters() if p.grad is not None]
            nn.utils.clip_grad_norm_(own, self._options.clip)
        self._spare_scales()

    @torch.no_grad()
    def after_step(self, step: int, stepped: bool) -> None:
        self._phase((step + 1) // self._training.steps_per_epoch)
        if step + 1 <= self._in_cycles:
            if stepped and (step + 1) % self._options.cycle_every == 0:
                self._breathe(step)
        elif stepped and self._due(step):
            self._move(step)

    def _spare_scales(self) -> None:
        """Undo beforehand what the optimizer is about to take off them as off all parameters alike."""
        group = self._state.optimizer.inner.param_groups[0]  # which new parameters join
        own, lr, inner = self._state.optimizer.decay, float(group["lr"]), float(group.get("weight_decay", 0.0))
        apart = isinstance(self._state.optimizer.inner, torch.optim.AdamW)
        factor = (1.0 - lr * own) * (1.0 - lr * inner if apart else 1.0)
        for scale in self._scales:
            scale.div_(factor)
            if inner and not apart and scale.grad is not None:
                scale.grad.sub_(inner * scale)

    def figures(self, step: int) -> dict[str, Any]:
        """`density` counts a weight that several blocks use once, against all weights of the plain network."""
        own = figures_of(self.masks)(step) | {"density": self.masks.living / self._size}
        return own | {"dyrelu": float(self._dynamic[0].beta) if self._dynamic else 0.0}

    def density_at(self, step: int) -> float:
        """That the cycles ask for after this step."""
        length = self._options.cycle * self._training.steps
        place = ((step + 1) % length) / length if step + 1 < self._in_cycles else 0.0
        rise = (1 - math.cos(2 * math.pi * place)) / 2
        return self._options.density * (1 + (self._options.peak - 1) * rise)

    def _phase(self, epoch: int) -> None:
        start, end = self._fade
        late = self._options.dyrelu == "late" and epoch < start
        beta = 0.0 if late else min(1.0, max(0.0, (end - epoch) / max(1, end - start)))
        for module in self._dynamic:
            module.beta.fill_(beta)

    def _counts(self, density: float) -> dict[str, int]:
        """Living weights of each layer, of those that are not shared copies."""
        own = sum(shape.numel() for shape in self._shapes.values())
        share = min(1.0, density * self._size / own)
        if self._options.distribution == "uniform":
            return uniform_counts(self._shapes, share, self._dense)
        counts = erk_counts(self._shapes, share, self._dense, kernels=self._options.distribution == "erk")
        return {name: max(count, round(FLOOR * share * self._shapes[name].numel())) for name, count in counts.items()}

    def _breathe(self, step: int) -> None:
        """To the density of the cycle: the smallest weights die, or the largest gradients come to life."""
        counts = self._counts(self.density_at(step))
        for name, weight in self.masks.weights.items():
            more = counts[name] - int(self.masks.values[name].sum())
            if more < 0:
                self.masks.drop(name, weight.abs(), -more)
            elif more > 0 and weight.grad is not None:
                self.masks.grow(name, weight.grad.abs(), more)
        self.masks.apply()

    def _move(self, step: int) -> None:
        """RigL's step, and the density is the one that was asked for again."""
        progress = (step + 1) / self._training.steps
        share = LEAST_DROP + (self._options.drop - LEAST_DROP) * (1 + math.cos(math.pi * progress)) / 2
        counts = self._counts(self._options.density)
        for name, weight in self.masks.weights.items():
            lives = self.masks.values[name]
            self.masks.drop(name, weight.abs(), max(0, int(lives.sum()) - counts[name]))
            if name not in self._dense and weight.grad is not None and not bool(lives.all()):
                self.masks.values[name] = moved(self.masks.values[name], weight.abs(), weight.grad.abs(), share)
        self.masks.apply()

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self._training.seed, "east", index))
