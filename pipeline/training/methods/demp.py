"""DemP: pressures that let channels die while the network trains (arXiv 2403.07688).

loss = cross entropy + lambda(t) * sum of |gamma| over all batch-norm scales; after each optimizer step
theta += sigma(t) * z, z ~ N(0, 1), on the parameters of live channels; lambda and sigma share a cosine one-cycle.
A dead ReLU channel has no gradient and gets no noise, so it stays dead.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.data import Split
from pipeline.training.census import Watched, census
from pipeline.training.repeatable import derived_seed
from pipeline.training.schedule import one_cycle
from runtime.errors import UserError


class Units(Watched, Protocol):
    """What DemP needs of `pipeline.surgery.anatomy`."""

    @property
    def channels(self) -> int: ...

    def dead_count(self, dead: dict[str, Tensor], /) -> int: ...

    def live_masks(self, dead: dict[str, Tensor], /) -> Mapping[str, Tensor]: ...


class Demp:
    def __init__(
        self, section: config.Demp, model: nn.Module, anatomy: Units, train: Split, *, seed: int, total_steps: int
    ) -> None:
        self._section, self._anatomy, self._train, self._seed = section, anatomy, train, seed
        self._span = section.span * total_steps
        self._scales = batch_norm_scales(model)
        self._noise = Noise(model)
        self._dead: dict[str, Tensor] | None = None
        self._figures: dict[str, Any] = {"dead": None, "channels": anatomy.channels, "dead_by_layer": None}

    def loss_term(self, step: int) -> Tensor | None:
        weight = one_cycle(step, self._span, self._section.lambda_peak)
        return weight * torch.cat(self._scales).abs().sum() if weight else None

    def after_step(self, step: int) -> None:
        self._noise.add(one_cycle(step, self._span, self._section.sigma_peak), derived_seed(self._seed, "noise", step))

    def epoch_end(self, epoch: int, step: int) -> dict[str, Any]:
        """Every `census_every` epochs, and after the last, a census; its verdict keeps noise off the dead until the
        next."""
        if (epoch + 1) % self._section.census_every == 0 or epoch + 1 == self._section.epochs:
            self._census(epoch)
        return {
            "lambda": one_cycle(step, self._span, self._section.lambda_peak),
            "sigma": one_cycle(step, self._span, self._section.sigma_peak),
            **self._figures,
        }

    def end(self) -> dict[str, Tensor]:
        assert self._dead is not None, "the last epoch ends with a census"
        return self._dead

    def _census(self, epoch: int) -> None:
        """Un-augmented images, others in each census."""
        section = self._section
        shuffled = self._train.batches(section.census_batch_size, seed=derived_seed(self._seed, "census"), epoch=epoch)
        dead = census(self._anatomy, (x for x, _ in itertools.islice(shuffled, section.census_batches)))
        self._dead = dead
        self._figures |= {
            "dead": self._anatomy.dead_count(dead),
            "dead_by_layer": {name: int(mask.sum()) for name, mask in dead.items()},
        }
        self._noise.spare(self._anatomy.live_masks(dead))


class Noise:
    """Gaussian noise on all trained parameters of a model, drawn at once."""

    def __init__(self, model: nn.Module) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = list(named)
        self._parameters: list[Tensor] = list(named.values())
        device = self._parameters[0].device
        self._generator = torch.Generator(device)
        self._flat = torch.empty(sum(p.numel() for p in self._parameters), device=device)
        self._live = torch.ones_like(self._flat, dtype=torch.bool)
        self._noise, self._live_parts = self._views(self._flat), self._views(self._live)
        self._any_dead = False

    def spare(self, live: Mapping[str, Tensor]) -> None:
        """From now on no noise where `live` (parameter name -> mask that broadcasts to it) is 0."""
        for name, mask, parameter in zip(self._names, self._live_parts, self._parameters, strict=True):
            mask.copy_((live[name] != 0).expand_as(parameter) if name in live else torch.ones_like(mask))
        self._any_dead = not bool(self._live.all())

    @torch.no_grad()
    def add(self, sigma: float, seed: int) -> None:
        if not sigma:
            return
        self._flat.normal_(generator=self._generator.manual_seed(seed))
        if self._any_dead:
            self._flat.mul_(self._live)
        torch._foreach_add_(self._parameters, self._noise, alpha=sigma)

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [p.numel() for p in self._parameters])
        return [part.view_as(p) for part, p in zip(parts, self._parameters, strict=True)]


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
