"""`demport prune`: the whole line from a trained network, with the recipe that spares it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.progress import Progress
from runtime.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Config

FIGURES = ("macs", "channels", "latency_ms")
RECIPE: Mapping[str, Any] = {
    "name": "prune",
    "dense.epochs": 0,
    "sparse.start": "dense",
    "sparse.lr": 0.02,
    "sparse.cost": "macs",
    "sparse.target.reached_at": 0.25,
}
"""A trained network learns at a fifth of the usual rate, loses its channels early and recovers; what goes is what
matters least for its MACs."""
ALIGNMENTS, STEPS = (16, 8), 8
"""Widths are kept to multiples of one of these where that leaves every layer so many steps; else to none."""
FEW_STEPS = 4


def config_of(keys: Mapping[str, Any], target: str, overrides: tuple[str, ...], progress: Progress) -> Config:
    """The recipe for a trained network, with `keys`, aligned to its widths, then overridden. Raises UserError."""
    from pipeline.config.file import config_from_overrides

    figure, _, number = target.partition("=")
    if figure not in FIGURES or not number:
        raise UserError(f"--target {target}", f"one of {', '.join(FIGURES)} and a number", "write e.g. macs=0.5")
    texts = [f"{key}={json.dumps(value)}" for key, value in {**RECIPE, **keys}.items()]
    texts.append(f"sparse.target.{figure}={number}")
    widths = widths_of(config_from_overrides([*texts, *overrides]))
    settings = config_from_overrides([*texts, f"surgery.align={alignment(widths.values())}", *overrides])
    align = settings.surgery.align
    narrow = [name for name, width in widths.items() if align != "auto" and width < FEW_STEPS * align]
    if narrow and align != 1:
        progress.note(
            f"note: surgery.align={align} clashes with the target: it leaves {len(narrow)} of {len(widths)} layers "
            f"(first {narrow[0]}, {widths[narrow[0]]} channels) fewer than {FEW_STEPS} steps; 1 cuts anywhere"
        )
    return settings


def widths_of(settings: Config) -> dict[str, int]:
    """Channels of each layer whose channels can go. Raises UserError where network or data are not there."""
    from pipeline import data
    from pipeline.models import build_for
    from pipeline.training.train import watched
    from pipeline.workspace import fingerprint

    fingerprint.of_inputs(settings)
    images = data.load(settings.data)
    network = build_for(settings.model, images)
    return dict(watched(network, settings.model.name, images.input_shape).layer_channels)


def alignment(widths: Collection[int]) -> int:
    """The largest multiple that costs no layer much of its choice of widths."""
    fits = (align for align in ALIGNMENTS if all(w % align == 0 and w >= STEPS * align for w in widths))
    return next(fits, 1)
