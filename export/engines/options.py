"""The builders' options: one class for the config's section, Python, the command line and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from runtime.documents import Section, first_problem, impossible, once
from runtime.errors import UserError

TENSORRT_ONLY = ("tf32", "version_compatible", "hardware_compatibility", "refit", "sparse", "pin_tactics")
"""Options that no other builder has a use for."""
HardwareLevel = Literal["none", "ampere_plus", "same_compute_capability"]
Positive = Annotated[int, Field(ge=1, lt=2**31)]


class Profile(Section):
    min: Positive = Field(default=1, description="Smallest batch the engine takes.")
    opt: Positive = Field(default=32, description="Batch the engine is tuned for.")
    max: Positive = Field(default=256, description="Largest batch the engine takes.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.min <= self.opt <= self.max:
            sizes = f"min {self.min}, opt {self.opt}, max {self.max}"
            raise impossible("opt", sizes, "expected min <= opt <= max", "put them in order")
        return self

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.min, self.opt, self.max


class EngineOptions(Section):
    profile: Profile = Field(default_factory=Profile, description="Batch sizes of the optimisation profile.")
    more_profiles: Annotated[tuple[Profile, ...], Field(strict=False)] = Field(
        default=(), description="Further optimisation profiles, e.g. one tuned for single images."
    )
    workspace_mib: Positive = Field(default=1024, description="Scratch memory the builder may use, in MiB.")
    optimization_level: Annotated[int, Field(ge=0, le=5)] = Field(
        default=3, description="How long the builder looks for faster kernels: 0 hardly, 5 longest."
    )
    tf32: bool = Field(default=False, description="Let fp32 layers use TF32 tensor cores (about three decimal digits).")
    version_compatible: bool = Field(
        default=False,
        description="Engines that load in later versions of the same major one; they bring code of their own to run.",
    )
    hardware_compatibility: HardwareLevel = Field(
        default="none", description="tensorrt only: run on other GPUs than the one built on."
    )
    refit: bool = Field(default=False, description="Engines whose weights can be exchanged afterwards.")
    sparse: bool = Field(default=False, description="Use 2:4 structured sparsity where the weights have it.")
    timing_cache: str | None = Field(
        default="~/.cache/demport/timing",
        description="tensorrt only: folder that keeps measured kernel times, a file per version and GPU; null: none.",
    )
    pin_tactics: bool = Field(
        default=False, description="Take every kernel from the timing cache, and fail where it lacks one."
    )
    time_limit_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=600, description="Seconds an engine build may take."
    )

    @model_validator(mode="after")
    def _profiles_differ(self) -> Self:
        once("more_profiles", self.profiles)
        return self

    @model_validator(mode="after")
    def _tactics_come_from_a_cache(self) -> Self:
        if self.pin_tactics and self.timing_cache is None:
            problem = "pin_tactics without timing_cache"
            raise impossible("pin_tactics", problem, "expected a cache to take them from", "set its folder")
        return self

    @property
    def profiles(self) -> tuple[Profile, ...]:
        return (self.profile, *self.more_profiles)

    def takes(self, batch: int) -> bool:
        """Whether some profile takes this batch."""
        return any(profile.min <= batch <= profile.max for profile in self.profiles)


def engine_options(values: Mapping[str, Any]) -> EngineOptions:
    """Options from text or numbers, as a command line has them; `UserError` names the first that does not fit."""
    try:
        return EngineOptions.model_validate(values, strict=False)
    except ValidationError as error:
        raise UserError(f"engine.{first_problem(error)}", "options of an engine", "see python -m export -h") from error
