"""What the default weights of torchvision and timm were trained with: the mean and spread of the pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.config.model import DEFAULT

if TYPE_CHECKING:
    from pipeline.config import Config

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
COLOURS, LEVELS = 3, 255.0
CLOSE = 0.01


def normalised(config: Config, note: Callable[[str], None]) -> Config:
    """With `model.weights: default`, the config with data.mean and data.std of these weights where it names none; a
    note says so, and where the config names others. Arrays are read for their channels and range."""
    recipe = recipe_of(config) if config.model.weights == DEFAULT and config.given is None else None
    if recipe is None:
        return config
    origin = f"{config.model.name}'s default weights"
    text = " and std ".join(f"({', '.join(f'{value:g}' for value in values)})" for values in recipe)
    section = config.data
    if section.mean is not None and section.std is not None:
        if any(_apart(own, theirs) for own, theirs in zip((section.mean, section.std), recipe, strict=True)):
            note(f"note: {origin} were trained with mean {text}, and data.mean and data.std are others; both left out, "
                 "the weights' own are taken")  # fmt: skip
        return config
    if why := _unlike(config):
        note(f"note: {origin} were trained with mean {text} of pixel / 255, but {why}: data.mean and data.std are "
             "those of the training images")  # fmt: skip
        return config
    note(f"data.mean and data.std are those of {origin}: mean {text}")
    mean, std = recipe
    return config.model_copy(update={"data": section.model_copy(update={"mean": mean, "std": std})})


def recipe_of(config: Config) -> Normalisation | None:
    """Mean and standard deviation of pixel / 255 for each colour; None where the library names none (its detectors
    normalise by themselves)."""
    kind, _, name = config.model.name.partition(":")
    source: Any
    try:
        if kind == "torchvision":
            from pipeline.models.checkpoint import best_weights

            source = best_weights(name).transforms()
        else:
            import timm

            source = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except (ModuleNotFoundError, ValueError, RuntimeError):
        return None  # no such network, or no library: building it says so
    mean, std = (getattr(source, key, None) for key in ("mean", "std"))
    if mean is None or std is None or len(mean) != COLOURS or len(std) != COLOURS:
        return None
    return tuple(map(float, mean)), tuple(map(float, std))


def _unlike(config: Config) -> str | None:
    """Why a recipe for coloured pixels from 0 to 255 does not fit the data; None where it does."""
    from pipeline import data
    from pipeline.data import sources

    if sources.reads_pictures(config.data.source):
        return None
    images = data.load(config.data)
    if images.input_shape[0] != COLOURS:
        return f"the images have {images.input_shape[0]} channel{'s' * (images.input_shape[0] != 1)}"
    return None if images.scale == LEVELS else "the images are floats of a range of their own"


def _apart(own: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    values = own * (len(theirs) // len(own)) if len(own) == 1 else own
    return len(values) != len(theirs) or any(abs(a - b) > CLOSE for a, b in zip(values, theirs, strict=True))
