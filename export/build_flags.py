"""The builder's options beyond precision, target and batch sizes, and which of them a TensorRT can follow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.features import Features
from export.flavours import Flavour
from runtime.errors import UserError

HardwareLevel = Literal["none", "ampere_plus", "same_compute_capability"]
Profile = tuple[int, int, int]


@dataclass(frozen=True)
class BuildFlags:
    """All off by default.

    more_profiles: batch sizes (min, opt, max) of further optimisation profiles.
    version_compatible: the engine carries code of its own and loads in later versions of the same major one; who loads
      it must allow that code to run.
    hardware_compatibility: ampere_plus runs on every GPU from compute capability 8.0 on, same_compute_capability on
      every GPU of the same one; "none" is tuned for the one GPU model.
    refit: weights can be exchanged afterwards. sparse: use 2:4 structured sparsity where the weights have it.
    timing_cache: folder of the files that hold measured kernel times, one for each version and GPU; None keeps none.
    pin_tactics: take every kernel from that file, and fail where it lacks one: the same kernels in every build.
    """

    more_profiles: tuple[Profile, ...] = ()
    version_compatible: bool = False
    hardware_compatibility: HardwareLevel = "none"
    refit: bool = False
    sparse: bool = False
    timing_cache: Path | None = None
    pin_tactics: bool = False


def check_profiles(profiles: tuple[Profile, ...]) -> None:
    """`UserError` unless each is three sizes in order, none listed twice."""
    for profile in profiles:
        if not 1 <= profile[0] <= profile[1] <= profile[2]:
            raise UserError(f"the profile {list(profile)}", "1 <= min <= opt <= max", "set engine.profile so")
    if len(set(profiles)) != len(profiles):
        raise UserError("a profile is listed twice", "each profile once", "remove one of the two")


def check_limits(workspace_mib: int, optimization_level: int, time_limit_s: float) -> None:
    """`UserError` for a number with which nothing can be built."""
    if workspace_mib < 1:
        raise UserError(f"engine.workspace_mib {workspace_mib}", "1 or more", "set it to some hundreds")
    if not 0 <= optimization_level <= 5:
        raise UserError(f"engine.optimization_level {optimization_level}", "0 to 5", "set it to 3")
    if not 0 < time_limit_s < float("inf"):
        raise UserError(f"engine.time_limit_s {time_limit_s:g}", "seconds above 0", "set it to 600")


def check_flags(flags: BuildFlags, can: Features, flavour: Flavour) -> None:
    """`UserError` for an option that this TensorRT cannot follow: none is dropped in silence."""
    name = f"{flavour} {can.version}"
    if flags.hardware_compatibility not in ("none", *can.hardware_levels):
        remedy = (
            "list the GPUs in engine.targets, several in one engine as SM86+SM89" if can.targets else "leave it out"
        )
        raise UserError(
            f"engine.hardware_compatibility {flags.hardware_compatibility}, and {name} builds none such",
            f"none{''.join(f', {level}' for level in can.hardware_levels if level != 'none')}",
            remedy,
        )
    if flags.pin_tactics and flags.timing_cache is None:
        raise UserError(
            "engine.pin_tactics without engine.timing_cache", "a timing cache to take them from", "name its folder"
        )
    if flags.pin_tactics and not can.pinned_tactics:
        raise UserError(
            f"engine.pin_tactics, and {name} has no editable timing cache",
            "a TensorRT that times kernels" if can.targets else "TensorRT 10.0 or later",
            "leave it out: an engine built ahead of time is the same in every build" if can.targets else "leave it out",
        )
    wanted = {"REFIT": flags.refit, "SPARSE_WEIGHTS": flags.sparse, "VERSION_COMPATIBLE": flags.version_compatible}
    for flag, asked in wanted.items():
        if asked and flag not in can.builder_flags:
            raise UserError(f"BuilderFlag.{flag} is asked for, and {name} has none", "one that has", "leave it out")
