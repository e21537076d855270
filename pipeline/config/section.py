"""What every section of the config is made of; the sections themselves are `config.py` and `config_publish.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from runtime.documents import impossible as impossible
from runtime.documents import once as once

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def _share_or_folder(value: object) -> object:
    if value == "val":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise impossible("", f"it is {value!r}", "expected a share, 0 to less than 1, or val", "e.g. 0.1")
    return float(value)


Validation = Annotated[float | Literal["val"], BeforeValidator(_share_or_folder)]


def _weights(value: object) -> object:
    if value is None or value == "balanced":
        return value
    numbers = value if isinstance(value, list | tuple) else ()
    fine = [not isinstance(one, bool) and isinstance(one, int | float) and 0 <= one < float("inf") for one in numbers]
    if not numbers or not all(fine) or not any(numbers):
        expected = "expected a number from 0 on for each class, not all 0, or balanced"
        raise impossible("", f"it is {value!r}", expected, "e.g. [1, 2.5]")
    return tuple(map(float, numbers))


ClassWeights = Annotated[tuple[float, ...] | Literal["balanced"] | None, BeforeValidator(_weights)]


class Section(BaseModel):
    """Frozen, strict, and closed: an unknown key or a value of another type is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
