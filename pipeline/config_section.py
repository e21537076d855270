"""What every section of the config is made of; the sections themselves are `config.py` and `config_publish.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def impossible(key: str, found: str, expected: str, remedy: str) -> PydanticCustomError:
    """The error of a value that is well typed but can never work; `key` is relative to the section that raises it."""
    return PydanticCustomError(
        "impossible",
        "{found}; {expected}; {remedy}",
        {"key": key, "found": found, "expected": expected, "remedy": remedy},
    )


def once(key: str, values: Iterable[object]) -> None:
    """Raise when a value is listed twice."""
    seen: list[object] = []
    for value in values:
        if value in seen:
            raise impossible(key, f"{value} is listed twice", "expected each value once", "remove one of the two")
        seen.append(value)


class Section(BaseModel):
    """Frozen, strict, and closed: an unknown key or a value of another type is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
