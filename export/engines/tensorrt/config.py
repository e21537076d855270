"""The builder's configuration from a request: options, targets, optimisation profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.engines.options import EngineOptions
from export.engines.proof import Precision
from export.engines.tensorrt.features import Features
from export.engines.tensorrt.network import tensor
from runtime.errors import UserError


@dataclass(frozen=True)
class Request:
    """What the builder's process is to build. No `targets`: the GPU at hand.

    `timing_cache` is the cache's file; `layers` the file for what the inspector says of the engine where a GPU can load
    it.
    """

    onnx: str
    engine: str
    log: str
    layers: str
    flavour: str
    precision: Precision
    targets: tuple[str, ...]
    options: EngineOptions
    timing_cache: str | None


Ranges = list[dict[str, Any]]
"""Optimisation profiles as the manifest has them: input -> min, opt and max shape; [] where no dimension varies."""


def configure(request: Request, trt: Any, builder: Any, network: Any, can: Features) -> tuple[Any, Ranges]:
    """The config, and its optimisation profiles."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.options.workspace_mib << 20)
    switches = {
        "TF32": request.options.tf32,  # on by default
        "REFIT": request.options.refit,
        "SPARSE_WEIGHTS": request.options.sparse,
        "VERSION_COMPATIBLE": request.options.version_compatible,
        "EDITABLE_TIMING_CACHE": request.options.pin_tactics,
        "ERROR_ON_TIMING_CACHE_MISS": request.options.pin_tactics,
    }
    for flag, on in switches.items():
        if flag in can.builder_flags:
            (config.set_flag if on else config.clear_flag)(getattr(trt.BuilderFlag, flag))
        else:
            assert not on, flag
    if config.builder_optimization_level != request.options.optimization_level:
        config.builder_optimization_level = request.options.optimization_level
    if request.options.hardware_compatibility != "none":
        level = request.options.hardware_compatibility.upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector gives names and no types
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


def _add_profiles(request: Request, builder: Any, network: Any, config: Any) -> Ranges:
    inputs = [tensor(network.get_input(index)) for index in range(network.num_inputs)]
    if not inputs:
        raise UserError(f"{request.onnx} takes no inputs", "a network of images", "export it with an input")
    profiles = [
        {spec["name"]: _range(request, spec, sizes.sizes) for spec in inputs} for sizes in request.options.profiles
    ]
    if all(None not in spec["shape"] for spec in inputs):
        return []
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        for name, limits in ranges.items():
            profile.set_shape(name, limits["min"], limits["opt"], limits["max"])
        config.add_optimization_profile(profile)
    return profiles


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


def check_options(options: EngineOptions, can: Features, flavour: str) -> None:
    """`UserError` for an option that this TensorRT cannot follow: none is dropped in silence."""
    name = f"{flavour} {can.version}"
    if options.hardware_compatibility not in ("none", *can.hardware_levels):
        remedy = (
            "list the GPUs in engine.targets, several in one engine as SM86+SM89" if can.targets else "leave it out"
        )
        raise UserError(
            f"engine.hardware_compatibility {options.hardware_compatibility}, and {name} builds none such",
            f"none{''.join(f', {level}' for level in can.hardware_levels if level != 'none')}",
            remedy,
        )
    if options.pin_tactics and not can.pinned_tactics:
        raise UserError(
            f"engine.pin_tactics, and {name} has no editable timing cache",
            "a TensorRT that times kernels" if can.targets else "TensorRT 10.0 or later",
            "leave it out: an engine built ahead of time is the same in every build" if can.targets else "leave it out",
        )
    requested = {
        "REFIT": options.refit, "SPARSE_WEIGHTS": options.sparse, "VERSION_COMPATIBLE": options.version_compatible,
    }  # fmt: skip
    for flag, on in requested.items():
        if on and flag not in can.builder_flags:
            raise UserError(f"BuilderFlag.{flag} is asked for, and {name} has none", "one that has", "leave it out")
