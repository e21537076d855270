"""Keys that several methods which take whole channels out share; each method's `Options` derives from `Ranked`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import Fraction, Positive, Section, impossible
from pipeline.config.training import Target


class Targeted(Section):
    """Of methods that rank channels and take the lowest out until a target is met."""

    target: Target = Field(
        default=Target(macs=0.5),
        description="The outcome to end with, {macs: ...} or {channels: ...}; `reached_at` and `floor` count.",
    )
    scope: Literal["global", "group"] = Field(
        default="global",
        description="global: scores of all groups of channels compete; group: each group gives up the same share.",
    )

    @property
    def removes(self) -> bool:
        """What has come to 0 leaves."""
        return True

    @model_validator(mode="after")
    def _steered_by_scores(self) -> Self:
        if self.target.latency_ms is not None:
            raise impossible(
                "target", "target.latency_ms is set", "expected macs or channels: demp alone steers to a latency",
                "set {macs: ...}, or method: demp",
            )  # fmt: skip
        return self


class Ranked(Targeted):
    """Of those that select on the way, in rounds."""

    rounds: Positive = Field(default=1, description="Selections, evenly spaced, on a geometric way to the target.")
    first_round: Fraction = Field(
        default=0.1,
        description="Share of the steps before the first round begins; of one round that fades at once, none.",
    )
    fade: Fraction = Field(
        default=0.0, description="Share of a round over which its channels fade linearly to 0; 0: at once, at its end."
    )

    @model_validator(mode="after")
    def _begins_in_time(self) -> Self:
        if self.first_round >= self.target.reached_at:
            raise impossible(
                "first_round",
                f"first_round {self.first_round:g} is not before target.reached_at {self.target.reached_at:g}",
                "expected selections to begin before the target is to be reached", "lower first_round",
            )  # fmt: skip
        return self
