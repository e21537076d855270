"""What an installed TensorRT can do, asked of the names it has: the one place that knows how versions differ.

10.x must be told to take the network strongly typed, 11.x knows nothing else. `tensorrt_rtx` compiles ahead of time for
named compute capabilities; it has the names of timing caches and hardware levels too, but they do nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HARDWARE_LEVELS = ("none", "ampere_plus", "same_compute_capability")


@dataclass(frozen=True)
class Features:
    """`network_flags` is for `create_network`; `targets` are the compute capabilities that can be built for without
    such a GPU, () where the builder tunes for the GPU at hand. `builder_flags` are the names of `BuilderFlag`."""

    version: str
    network_flags: int
    targets: tuple[str, ...]
    builder_flags: frozenset[str]
    timing_cache: bool
    hardware_levels: tuple[str, ...]
    progress: bool

    @property
    def ahead_of_time(self) -> bool:
        return bool(self.targets)

    @property
    def pinned_tactics(self) -> bool:
        """Whether a build can be held to the tactics that its timing cache names."""
        return self.timing_cache and {"EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS"} <= self.builder_flags


def features(trt: Any) -> Features:
    """Reads names only: no builder is made, no GPU is touched."""
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    capabilities = getattr(trt, "ComputeCapability", None)
    names = () if capabilities is None else tuple(capabilities.__members__)
    targets = tuple(name for name in names if name not in ("NONE", "CURRENT"))
    levels = getattr(trt, "HardwareCompatibilityLevel", None)
    there = () if levels is None or targets else tuple(levels.__members__)
    return Features(
        version=trt.__version__,
        network_flags=0 if strongly_typed is None else 1 << int(strongly_typed),
        targets=targets,
        builder_flags=frozenset(trt.BuilderFlag.__members__),
        timing_cache=not targets and hasattr(trt, "ITimingCache"),
        hardware_levels=tuple(level for level in HARDWARE_LEVELS if level.upper() in there),
        progress=hasattr(trt, "IProgressMonitor"),
    )
