"""Why the compact network is not as fast as it is small: each layer's time beside its work and the device's roofline.

`explain` gives one entry of check.json's `why`: `where`, `batch`, `threads`; `speedup`, `macs_ratio` and their `share`;
`roofline`; `layers[]` {layer, channels_before, channels_after, width, dense_us, compact_us, dense_macs, compact_macs,
bound, floor_us}; `time` {dense, compact} {run_us, layers_us, reformat_us, other_us, between_us, kernels}; `bound_pct`,
the share of compact's run by what binds it; `verdict`, the largest of them; `findings[]` {what, remedy, pct}.
Times are of one run with the profiler on, which adds some microseconds a kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.advice import Finding, findings
from runtime.layers import Kernel, Profile
from runtime.roofline import Bound, Roofline, bound

WORTHWHILE = 0.7
"""Share of the MACs ratio that a speedup should reach; below it the report explains."""


@dataclass(frozen=True)
class LayerTime:
    """A weighted layer in both networks, in microseconds and multiply-accumulates of one run. `width`: channels that
    the kernel computes, where known. `bound` and `floor_us` are compact's by the roofline."""

    layer: str
    channels_before: int | None
    channels_after: int | None
    width: int | None
    dense_us: float
    compact_us: float
    dense_macs: int
    compact_macs: int
    bound: Bound
    floor_us: float

    @property
    def excess_us(self) -> float:
        """What compact takes more than it would at dense's time a multiply-accumulate."""
        return self.compact_us - self.dense_us * self.compact_macs / max(self.dense_macs, 1)


@dataclass(frozen=True)
class Measured:
    """Both profiles at one batch, and the speedup that was measured without a profiler."""

    where: str
    batch: int
    threads: int | None
    dense: Profile
    compact: Profile
    roofline: Roofline
    speedup: float
    macs_ratio: float


def explain(measured: Measured, doubts: Sequence[str]) -> dict[str, Any]:
    """`doubts` are what else may have slowed the measurement: a busy machine, denormal weights."""
    layers = layer_times(measured)
    shares = bound_shares(measured.compact, measured.roofline)
    run_us = max(measured.compact.run_us, sum(kernel.us for kernel in measured.compact.kernels))
    said = findings(layers, measured.dense, measured.compact, shares, measured.batch, doubts)
    return {
        "where": measured.where,
        "batch": measured.batch,
        "threads": measured.threads,
        "speedup": measured.speedup,
        "macs_ratio": measured.macs_ratio,
        "share": measured.speedup / measured.macs_ratio,
        "roofline": asdict(measured.roofline),
        "layers": [asdict(layer) for layer in layers],
        "time": {"dense": parts(measured.dense), "compact": parts(measured.compact)},
        "bound_pct": {name: round(100 * us / run_us, 1) for name, us in shares.items()},
        "verdict": max(shares, key=lambda name: shares[name]),
        "findings": [asdict(finding) for finding in said] or [asdict(_nothing(measured))],
    }


def layer_times(measured: Measured) -> list[LayerTime]:
    """Layers that both profiles know, in the order that dense runs them."""
    dense, compact = (_by_layer(profile) for profile in (measured.dense, measured.compact))
    rows = []
    for name, before in dense.items():
        if name not in compact:
            continue
        after = compact[name]
        macs, us = sum(kernel.macs for kernel in after), sum(kernel.us for kernel in after)
        floors = [measured.roofline.floor_us(kernel.macs, kernel.moved) for kernel in after]
        rows.append(
            LayerTime(
                name, before[0].channels, after[0].channels, after[0].width, sum(k.us for k in before), us,
                sum(k.macs for k in before), macs, bound(floors[0]), sum(max(floor.values()) for floor in floors),
            )
        )  # fmt: skip
    return rows


def bound_shares(profile: Profile, roofline: Roofline) -> dict[str, float]:
    """Microseconds of a run by what binds them: compute, memory, launch, reformat, between (no kernel at all)."""
    shares = dict.fromkeys(("compute", "memory", "launch", "reformat", "between"), 0.0)
    for kernel in profile.kernels:
        name = "reformat" if kernel.reformats else bound(roofline.floor_us(kernel.macs, kernel.moved))
        shares[name] += kernel.us
    return {**shares, "between": profile.between_us}


def parts(profile: Profile) -> dict[str, Any]:
    """Where a run's microseconds go; `kernels` counts them by operator."""
    layers = sum(kernel.us for kernel in profile.kernels if kernel.layer)
    reformat = sum(kernel.us for kernel in profile.kernels if kernel.reformats)
    return {
        "run_us": profile.run_us,
        "layers_us": layers,
        "reformat_us": reformat,
        "other_us": sum(kernel.us for kernel in profile.kernels) - layers - reformat,
        "between_us": profile.between_us,
        "kernels": dict(Counter(kernel.operator for kernel in profile.kernels)),
    }


def _by_layer(profile: Profile) -> Mapping[str, list[Kernel]]:
    found: dict[str, list[Kernel]] = {}
    for kernel in profile.kernels:
        if kernel.layer:
            found.setdefault(kernel.layer, []).append(kernel)
    return found


def _nothing(measured: Measured) -> Finding:
    share = 100 * measured.speedup / measured.macs_ratio
    return Finding(
        f"no single cause: the time fell by {share:.0f} % of what the MACs fell by, spread over all layers",
        "look at the layers below whose time fell least",
        0.0,
    )
