"""What every part of report.json is made of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Status = Literal["pass", "fail", "inconclusive"]
Interval = tuple[float, float]


class Part(BaseModel):
    """Every key is required, so that a renamed figure is an error here and not a hole in the report; what a stage tells
    beyond the contract stays in its own file."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)


class Reasoned(Part):
    """A part whose null figures each have an entry in `reasons`."""

    reasons: dict[str, str] = Field(default_factory=dict, description="Name of a null figure -> why it is null.")

    @model_validator(mode="after")
    def every_null_has_its_reason(self) -> Reasoned:
        for name, value in self:
            flat = value.items() if isinstance(value, dict) and name != "reasons" else ()
            for key in [name] if value is None else [f"{name}.{inner}" for inner, item in flat if item is None]:
                assert key in self.reasons, f"{type(self).__name__}.{key} is null without a reason"
        return self
