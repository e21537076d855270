"""An engine's optimisation profiles: which of them takes a set of shapes, and how they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, prod

from runtime.errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """Shapes of one input in one profile."""

    smallest: Shape
    opt: Shape
    largest: Shape

    def take(self, shape: Shape) -> bool:
        return all(low <= n <= high for low, n, high in zip(self.smallest, shape, self.largest, strict=True))


Profile = Mapping[str, Limits]


def choose_profile(name: str, profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """The profile that takes all shapes and is tuned for the sizes nearest to them; the earlier of equals.

    `UserError` that lists the profiles where none takes them; `name` is the engine's.
    """
    fits = [i for i, profile in enumerate(profiles) if all(profile[key].take(shape) for key, shape in shapes.items())]
    if fits:
        return min(fits, key=lambda index: _distance(profiles[index], shapes))
    listed = "; ".join(f"{index}: {shapes_text(profile)}" for index, profile in enumerate(profiles))
    fed = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
    raise UserError(
        f"{name} is fed the shapes {fed}",
        f"shapes that one optimisation profile takes ({listed})",
        "feed a batch within one of them, or build the engine with another profile",
    )


def shapes_text(profile: Profile) -> str:
    """`input (1, 3, 8, 8) to (16, 3, 8, 8)`."""
    return ", ".join(f"{key} {limits.smallest} to {limits.largest}" for key, limits in profile.items())


def bounds(profiles: Sequence[Profile], key: str) -> tuple[Shape, Shape]:
    """The smallest and the largest size of each axis of an input in any profile."""
    lows = zip(*(profile[key].smallest for profile in profiles), strict=True)
    highs = zip(*(profile[key].largest for profile in profiles), strict=True)
    return tuple(map(min, lows)), tuple(map(max, highs))


def _distance(profile: Profile, shapes: Mapping[str, Shape]) -> float:
    """How many times larger or smaller than tuned for, as a logarithm."""
    return sum(abs(log(max(prod(shape), 1) / max(prod(profile[key].opt), 1))) for key, shape in shapes.items())
