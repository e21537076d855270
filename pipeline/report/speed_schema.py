"""report.json's figures of speed: latency, throughput under load, and where the time goes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .parts import Interval, Part


class Timing(Part):
    name: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    best_ms: float
    images_per_s: float | None = Field(description="The batch over the mean.")
    n: int
    repeats: int = Field(description="Launches a sample.")


class Speedup(Part):
    ratio: float = Field(description="Dense p50 / compact p50.")
    ci95: Interval
    verdict: Literal["faster", "not distinguishable", "slower"]
    detectable: float = Field(
        description="Smallest ratio that samples as noisy as these would have found (power 80 %)."
    )


class EndToEnd(Part):
    """As Latency, the copies of inputs and outputs inside the timed part."""

    dense: Timing
    compact: Timing
    speedup: Speedup


class Latency(Part):
    dense: Timing | None
    compact: Timing | None
    speedup: Speedup | None
    end_to_end: EndToEnd | None
    protocol: dict[str, Any] | None
    reason: str | None


class Load(Part):
    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    n: int


class Concurrency(Part):
    """Several sessions at once; `speedup` is the ratio of throughputs."""

    backend: str
    precision: str
    streams: int
    batch: int
    threads: int | None = Field(description="Of each session; null of an engine, and where nothing was measured.")
    dense: Load | None
    compact: Load | None
    speedup: Speedup | None
    reason: str | None


class Reference(Part):
    """Compact against the file of check.reference; `speedup` is the reference's p50 over compact's."""

    file: str
    sha256: str
    batch: int
    reference: Timing
    compact: Timing
    speedup: Speedup
    protocol: dict[str, Any]


class Finding(Part):
    what: str
    remedy: str
    pct: float = Field(description="Share of compact's run, in percent.")


class LayerTime(Part):
    """Microseconds and multiply-accumulates of one run; `bound` and `floor_us` are compact's by the roofline."""

    layer: str
    channels_before: int | None
    channels_after: int | None
    width: int | None = Field(description="Channels that the kernel computes.")
    dense_us: float
    compact_us: float
    dense_macs: int
    compact_macs: int
    bound: str
    floor_us: float


class Why(Part):
    """Where compact's time goes, and why it is not as fast as it is small."""

    where: str
    batch: int
    threads: int | None
    speedup: float
    macs_ratio: float
    share: float = Field(description="speedup / macs_ratio; below 0.7 the report explains.")
    roofline: dict[str, Any]
    layers: list[LayerTime]
    time: dict[str, dict[str, Any]]
    bound_pct: dict[str, float]
    verdict: str
    findings: list[Finding]
