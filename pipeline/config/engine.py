"""The config's section `engine`: which engines are built, with the builders' options."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from export.engines.options import TENSORRT_ONLY, EngineOptions
from export.engines.options import Profile as Profile
from pipeline.config.section import impossible, once

Precision = Literal["fp32", "fp16", "bf16", "int8"]
CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
_NAMED = "|".join(CAPABILITIES)
Target = Annotated[str, Field(json_schema_extra={"pattern": rf"^(CURRENT|({_NAMED})(\+({_NAMED}))*)$"})]


class Engine(EngineOptions):
    flavour: Literal["auto", "tensorrt", "tensorrt_rtx", "openvino", "all", "none"] = Field(
        default="auto",
        description="auto: tensorrt where it and a GPU are present, else tensorrt_rtx ahead of time; openvino: for "
        "CPUs; all: those of auto, and openvino's where it is installed, in the precisions that the CPU has; none: "
        "no engine.",
    )
    targets: tuple[Target, ...] = Field(
        default=("SM86", "SM89"),
        description="Compute capabilities of ahead-of-time tensorrt_rtx engines, one engine for each entry; SM86+SM89: "
        "one engine for both; CURRENT: the GPU at hand.",
    )
    precisions: tuple[Precision, ...] = Field(
        default=("fp32", "fp16"),
        description="Precisions of the engines; unless given, fp32 and fp16, with openvino fp32.",
    )

    def options_of(self, flavour: str) -> EngineOptions:
        """The builders' part of the section, less what only TensorRT has where the flavour is OpenVINO."""
        unused = TENSORRT_ONLY if flavour == "openvino" else ()
        return EngineOptions(**{name: getattr(self, name) for name in EngineOptions.model_fields if name not in unused})

    @model_validator(mode="after")
    def _usual_precisions(self) -> Self:
        if self.flavour == "openvino" and "precisions" not in self.model_fields_set:
            object.__setattr__(self, "precisions", ("fp32",))  # frozen; most CPUs have no fp16
        return self

    @model_validator(mode="after")
    def _something_to_build(self) -> Self:
        for key, values in (("targets", self.targets), ("precisions", self.precisions)):
            once(key, values)
            if not values and self.flavour != "none":
                raise impossible(key, f"{key} is empty", "expected at least one", "list one, or set flavour: none")
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
    def _flavour_can_follow(self) -> Self:
        """What the flavour has no use for is said before any training."""
        if self.flavour == "tensorrt_rtx":
            if self.hardware_compatibility != "none":
                problem = f"hardware_compatibility {self.hardware_compatibility} with the flavour tensorrt_rtx"
                remedy = "list the GPUs in targets, several in one engine as SM86+SM89"
                raise impossible("hardware_compatibility", problem, "expected none", remedy)
            if self.pin_tactics:
                problem = "pin_tactics with the flavour tensorrt_rtx, which times no kernels"
                raise impossible("pin_tactics", problem, "expected false", "leave it out: every build is the same")
        if self.flavour == "openvino":
            for name in TENSORRT_ONLY:
                if getattr(self, name) != EngineOptions.model_fields[name].default:
                    problem = f"{name} with the flavour openvino, which has nothing of the kind"
                    raise impossible(name, problem, "an option of TensorRT's only with TensorRT", "leave it out")
        return self
