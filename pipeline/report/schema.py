"""report.json, schema 1: what a finished or unfinished run measured, with `null` and a reason for what it did not.

A figure that is `null` has its dotted path in `not_measured`, where the reason stands; a number is always finite.
Accuracies and agreements are fractions in [0, 1], latencies milliseconds for one batch, sizes bytes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["pass", "fail", "inconclusive"]


class Part(BaseModel):
    """Closed and frozen, so that a renamed figure is an error here and not a hole in the report."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class ModelFigures(Part):
    params: int | None
    macs: int | None = Field(description="Multiply-accumulates for one image.")
    channels: int | None
    bytes: int | None = Field(description="Size of the exported fp32 ONNX file.")
    accuracy: dict[str, float | None] = Field(description="Top-1 on the test split, by hop: torch, onnx, simplified, ...")
    accuracy_ci95: dict[str, tuple[float, float]] = Field(default_factory=dict, description="Wilson interval, by hop.")


class Models(Part):
    dense: ModelFigures
    compact: ModelFigures


class Layer(Part):
    """One group of channels that live and die together; `after` is `before` minus what was cut out."""

    name: str
    before: int
    dead: int
    after: int


class Frozen(Part):
    name: str
    reason: str


class Surgery(Part):
    channels_before: int | None
    channels_dead: int | None
    channels_after: int | None
    max_abs_diff: float | None = Field(description="Largest fp32 difference of compact from dense with removed held at 0.")
    evidence: dict[str, int] | None = Field(description="Channels by kind of evidence, e.g. proved or measured dead.")
    law: dict[str, Any] | None = Field(description="What the certificate says of the float64 law.")
    layers: list[Layer]
    frozen: list[Frozen]


class Timing(Part):
    p50_ms: float | None
    p95_ms: float | None
    best_ms: float | None
    n: int | None


class Speedup(Part):
    ratio: float | None
    ci95: tuple[float, float] | None
    verdict: str


class Latency(Part):
    dense: Timing
    compact: Timing
    speedup: Speedup


class EngineFile(Part):
    path: str
    flavour: str
    precision: str
    target: str
    sha256: str
    measured_on: str | None


class Hop(Part):
    model: str | None
    source: str = Field(alias="from")
    target: str = Field(alias="to")
    max_abs: float | None
    top1_agreement: float | None
    accuracy_delta: float | None


class Gate(Part):
    name: str
    status: Status
    value: float | None
    limit: float | None
    reason: str | None


class Verdict(Part):
    status: Status
    gates: list[Gate]


class Stage(Part):
    folder: str
    status: Literal["done", "not run"]
    seconds: float | None = None
    fingerprint: str | None = None
    device: str | None = None
    seed: int | None = None
    command: str | None = None


class Report(Part):
    schema_: Literal[1] = Field(1, alias="schema")
    name: str
    command: str | None
    environment: dict[str, Any]
    models: Models
    surgery: Surgery
    latency: dict[str, dict[str, dict[str, Latency]]] = Field(description="backend -> precision -> b<batch>.")
    engines: list[EngineFile]
    hops: list[Hop]
    verdict: Verdict
    stages: list[Stage]
    not_measured: dict[str, str] = Field(description="Dotted path of each null figure -> why it is null.")
