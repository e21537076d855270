"""The config's section `engine`: TensorRT engines, and the builder's options."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config_section import Positive, Section, impossible, once

Precision = Literal["fp32", "fp16", "bf16", "int8"]
CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
_NAMED = "|".join(CAPABILITIES)
Target = Annotated[str, Field(json_schema_extra={"pattern": rf"^(CURRENT|({_NAMED})(\+({_NAMED}))*)$"})]


class Profile(Section):
    min: Positive = Field(default=1, description="Smallest batch the engine takes.")
    opt: Positive = Field(default=32, description="Batch the engine is tuned for.")
    max: Positive = Field(default=256, description="Largest batch the engine takes.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise impossible(
                "opt",
                f"min {self.min}, opt {self.opt}, max {self.max}",
                "expected min <= opt <= max",
                "put them in order",
            )
        return self


class Engine(Section):
    flavour: Literal["auto", "tensorrt", "tensorrt_rtx", "none"] = Field(
        default="auto",
        description="auto: tensorrt where it and a GPU are present, else tensorrt_rtx ahead of time; none: no engine.",
    )
    targets: tuple[Target, ...] = Field(
        default=("SM86", "SM89"),
        description="Compute capabilities of ahead-of-time tensorrt_rtx engines, one engine for each entry; SM86+SM89: "
        "one engine for both; CURRENT: the GPU at hand.",
    )
    precisions: tuple[Precision, ...] = Field(default=("fp32", "fp16"), description="Precisions of the engines.")
    profile: Profile = Field(default_factory=Profile, description="Batch sizes of the optimisation profile.")
    more_profiles: tuple[Profile, ...] = Field(
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
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = Field(
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
    time_limit_s: Positive = Field(default=600, description="Seconds an engine build may take.")

    @model_validator(mode="after")
    def _something_to_build(self) -> Self:
        for key, values in (("targets", self.targets), ("precisions", self.precisions)):
            once(key, values)
            if not values and self.flavour != "none":
                raise impossible(key, f"{key} is empty", "expected at least one", "list one, or set flavour: none")
        once("more_profiles", (self.profile, *self.more_profiles))
        return self

    @model_validator(mode="after")
    def _targets_are_known(self) -> Self:
        for number, target in enumerate(self.targets):
            parts = target.split("+")
            if target != "CURRENT" and (set(parts) - set(CAPABILITIES) or len(set(parts)) < len(parts)):
                raise impossible(
                    f"targets.{number}",
                    f"`{target}` is no target",
                    f"expected one of {', '.join(CAPABILITIES)}, several joined as SM86+SM89, or CURRENT",
                    "write one of these forms",
                )
        return self

    @model_validator(mode="after")
    def _tactics_come_from_a_cache(self) -> Self:
        if self.pin_tactics and self.timing_cache is None:
            raise impossible(
                "pin_tactics",
                "pin_tactics without timing_cache",
                "expected a cache to take them from",
                "set its folder",
            )
        return self

    @model_validator(mode="after")
    def _rtx_can_follow(self) -> Self:
        """What an engine that is built ahead of time has no use for is said before any training."""
        if self.flavour == "tensorrt_rtx":
            if self.hardware_compatibility != "none":
                found = f"hardware_compatibility {self.hardware_compatibility} with the flavour tensorrt_rtx"
                remedy = "list the GPUs in targets, several in one engine as SM86+SM89"
                raise impossible("hardware_compatibility", found, "expected none", remedy)
            if self.pin_tactics:
                found = "pin_tactics with the flavour tensorrt_rtx, which times no kernels"
                raise impossible("pin_tactics", found, "expected false", "leave it out: every build is the same")
        return self

    def takes(self, batch: int) -> bool:
        """Whether some profile takes this batch."""
        return any(profile.min <= batch <= profile.max for profile in (self.profile, *self.more_profiles))
