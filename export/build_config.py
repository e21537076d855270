"""The builder's configuration from a request: options, targets, optimisation profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.build_flags import HardwareLevel, Profile
from export.features import Features
from export.flavours import Flavour
from export.trt_network import tensor
from runtime.errors import UserError


@dataclass(frozen=True)
class Request:
    """What the builder's process is to build; all of it is JSON. No `targets`: the GPU at hand.

    `profiles` hold the batch sizes min, opt, max; `timing_cache` is the cache's file; `progress` the descriptor that
    takes progress lines; `layers` the file for what the inspector tells of the engine where a GPU can load it.
    """

    onnx: str
    engine: str
    answer: str
    log: str
    layers: str
    flavour: Flavour
    precision: str
    targets: tuple[str, ...]
    profiles: tuple[Profile, ...]
    workspace_mib: int
    tf32: bool
    optimization_level: int
    version_compatible: bool
    hardware_compatibility: HardwareLevel
    refit: bool
    sparse: bool
    timing_cache: str | None
    pin_tactics: bool
    progress: int | None = None


Told = list[dict[str, Any]]
"""Optimisation profiles as the manifest tells them: input -> min, opt and max shape; [] where no dimension varies."""


def configure(request: Request, trt: Any, builder: Any, network: Any, can: Features) -> tuple[Any, Told]:
    """The config, and its optimisation profiles."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
    wanted = {
        "TF32": request.tf32,  # on by default
        "REFIT": request.refit,
        "SPARSE_WEIGHTS": request.sparse,
        "VERSION_COMPATIBLE": request.version_compatible,
        "EDITABLE_TIMING_CACHE": request.pin_tactics,
        "ERROR_ON_TIMING_CACHE_MISS": request.pin_tactics,
    }
    for flag, on in wanted.items():
        if flag in can.builder_flags:
            (config.set_flag if on else config.clear_flag)(getattr(trt.BuilderFlag, flag))
        else:
            assert not on, flag
    if config.builder_optimization_level != request.optimization_level:
        config.builder_optimization_level = request.optimization_level
    if request.hardware_compatibility != "none":
        level = request.hardware_compatibility.upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector tells names and no types
    _set_targets(request, trt, config, can)
    return config, _add_profiles(request, builder, network, config)


def _set_targets(request: Request, trt: Any, config: Any, can: Features) -> None:
    if not can.ahead_of_time:
        assert not request.targets, "only tensorrt_rtx builds for another GPU"
        return
    names = request.targets or ("CURRENT",)
    config.num_compute_capabilities = len(names)
    for number, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), number)


def _add_profiles(request: Request, builder: Any, network: Any, config: Any) -> Told:
    inputs = [tensor(network.get_input(index)) for index in range(network.num_inputs)]
    told = [{spec["name"]: _range(request, spec, sizes) for spec in inputs} for sizes in request.profiles]
    if all(None not in spec["shape"] for spec in inputs):
        return []
    for ranges in told:
        profile = builder.create_optimization_profile()
        for name, limits in ranges.items():
            profile.set_shape(name, limits["min"], limits["opt"], limits["max"])
        config.add_optimization_profile(profile)
    return told


def _range(request: Request, spec: dict[str, Any], sizes: Sequence[int]) -> dict[str, list[int]]:
    """Shapes at the profile's batch sizes. `UserError`: another dimension varies, or the batch is fixed elsewhere."""
    name, shape = spec["name"], spec["shape"]
    rest = shape[1:]
    if any(dim is None for dim in rest):
        raise UserError(
            f"input {name!r} of {request.onnx} has the shape {shape}",
            "only the batch dynamic",
            "fix the other dimensions",
        )
    if shape and shape[0] is not None and tuple(sizes) != (shape[0],) * 3:
        raise UserError(
            f"the batch of {name!r} in {request.onnx} is fixed at {shape[0]}",
            f"a dynamic batch for the profile {list(sizes)}",
            f"export it with a dynamic batch, or ask for the profile {[shape[0]] * 3}",
        )
    keys = zip(("min", "opt", "max"), sizes, strict=True)
    return {key: [size, *rest] if shape else [] for key, size in keys}
