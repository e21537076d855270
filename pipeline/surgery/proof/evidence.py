"""What a cut rests on beside proof: the census taken again on every training image, and what the outputs lost by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.channels.labels import Labels
from pipeline.surgery.cut.choose import Choice
from pipeline.surgery.proof.equivalence import flat, gap
from pipeline.surgery.watch import Anatomy
from runtime.errors import UserError


@dataclass(frozen=True)
class Confirmation:
    """`dead`: activation -> bool (channels,), True where no image made the channel fire.

    `largest`: activation -> largest magnitude of each channel over all images, (channels,). `revived`: channels of the
    census given that fired here. `approximate`: activations whose zeros are averages (other than ReLU, ReLU6).
    """

    dead: dict[str, Tensor]
    images: int
    revived: int
    largest: dict[str, Tensor]
    approximate: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """For the certificate; per activation the largest magnitude of a channel that stays dead."""
        of_dead = {name: self.largest[name][mask] for name, mask in self.dead.items() if mask.any()}
        return {
            "images": self.images,
            "revived": self.revived,
            "largest_activation": {name: float(sizes.max()) for name, sizes in of_dead.items()},
            "approximate": list(self.approximate),
        }


def confirm(anatomy: Anatomy, dead: Mapping[str, Tensor], batches: Iterable[Tensor]) -> Confirmation:
    """A census over the images (N, C, H, W) of every batch. A channel that fires once is alive again.

    For activations other than ReLU and ReLU6 "dead" is an average that is not above 0: the mask stays as it is, and
    `largest` bounds what removing the channel takes from every sum it is in.
    """
    top = {name: torch.full((anatomy.watch[name],), -torch.inf) for name in dead}
    low = {name: torch.full((anatomy.watch[name],), torch.inf) for name in dead}
    seen = 0
    for x in batches:
        for name, value in anatomy.observe((x,)).items():
            if name in dead:
                lines = value.movedim(anatomy.axis[name], 0).flatten(1).cpu()
                top[name] = torch.maximum(top[name], lines.amax(1))
                low[name] = torch.minimum(low[name], lines.amin(1))
        seen += len(x)
    confirmed = {name: mask & (top[name] <= 0) if name in anatomy.exact else mask for name, mask in dead.items()}
    revived = sum(int((dead[n] & ~confirmed[n]).sum()) for n in dead)
    largest = {name: torch.maximum(top[name].abs(), low[name].abs()) for name in dead}
    return Confirmation(confirmed, seen, revived, largest, tuple(sorted(set(confirmed) - anatomy.exact)))


def evidence_of_groups(
    groups: list[dict[str, Any]], analysis: Analysis, choice: Choice, confirmation: Confirmation
) -> None:
    """Add to each group with channels removed by measurement the images seen and their largest activation on them."""
    nodes = {n.name: n for n in analysis.traced.module.graph.nodes}
    watched = {}  # activation -> class of each of its channels
    for name in (name for name in confirmation.dead if name in nodes):  # others went with a branch
        labels = analysis.env[nodes[name]]
        assert isinstance(labels, Labels) and len(labels.fields) == 1, f"{name} has no channels of its own"
        watched[name] = choice.classes[labels.fields[0].ids.ravel()]
    members = {group.name: group.classes for group in choice.groups}
    for row in groups:
        if row["by_measurement"] == 0:
            continue
        gone = members[row["group"]][~choice.keep[members[row["group"]]]]
        sizes = [
            confirmation.largest[name].numpy()[np.isin(classes, gone) & confirmation.dead[name].numpy()]
            for name, classes in watched.items()
        ]
        magnitudes = np.concatenate(sizes)
        row["images"] = confirmation.images
        row["largest_activation"] = float(magnitudes.max()) if len(magnitudes) else None


@torch.no_grad()
def change_of_outputs(
    before: Callable[[Tensor], Tensor],
    after: nn.Module,
    batches: Iterable[Tensor],
    answer: Callable[[Tensor], Tensor] | None,
) -> dict[str, Any]:
    """What images see of the cut, fp32: the largest change of an output, the worst over nested ones, and how many
    answers changed, where an image has one (`answer`: outputs -> (N,))."""
    worst, changed, images = 0.0, 0, 0
    for x in batches:
        old, new = before(x), after(x)
        worst = max([worst, *(float(gap(a, b).max()) for a, b in zip(flat(old), flat(new), strict=True))])
        if answer is not None:
            changed += int((answer(old) != answer(new)).sum())
        images += len(x)
    if not math.isfinite(worst):
        raise UserError(
            "one of the two networks answers NaN or infinity in fp32 where the other does not",
            "numbers, which can be compared", "mend the weights: some are so large that fp32 overflows",
        )  # fmt: skip
    return {"images": images, "max_abs": worst, "top1_changed": changed}
