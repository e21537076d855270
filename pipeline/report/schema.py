"""report.json, schema 1: what a run measured; a figure that was not measured is `null` beside its reason.

Accuracies and agreements are fractions in [0, 1], latencies milliseconds for a batch, sizes bytes; numbers are finite.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Status = Literal["pass", "fail", "inconclusive"]
Interval = tuple[float, float]


class Part(BaseModel):
    """Every key is required, so that a renamed figure is an error here and not a hole in the report; what a stage tells
    beyond the contract stays in its own file."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)


class Reasoned(Part):
    """A part whose null figures each have an entry in `reasons`."""

    reasons: dict[str, str] = Field(default_factory=dict, description="Name of a null figure -> why it is null.")

    @model_validator(mode="after")
    def every_null_has_its_reason(self) -> Reasoned:
        for name, value in self:
            flat = value.items() if isinstance(value, dict) and name != "reasons" else ()
            for key in [name] if value is None else [f"{name}.{inner}" for inner, item in flat if item is None]:
                assert key in self.reasons, f"{type(self).__name__}.{key} is null without a reason"
        return self


class ModelFigures(Reasoned):
    params: int | None
    macs: int | None = Field(description="Multiply-accumulates for one image.")
    channels: int | None
    bytes: int | None = Field(description="Size of the simplified fp32 ONNX file, which is what is deployed.")
    files: dict[str, int] = Field(description="Size of each exported file: onnx, simplified, fp16, <engine>.")
    accuracy: dict[str, float | None] = Field(
        description="Top-1 on the test split, by hop: torch, onnx, simplified, ..."
    )


class Models(Part):
    dense: ModelFigures
    compact: ModelFigures


class AccuracyDifference(Part):
    """Compact minus dense on the same images, in percentage points, with its 95 % interval."""

    n: int
    only_first: int = Field(description="Images that only dense classifies rightly.")
    only_second: int = Field(description="Images that only compact classifies rightly.")
    difference_pp: float
    ci95_pp: Interval
    p_value: float
    method: str


class Layer(Part):
    """Output channels of a layer; `after` is `before` minus what was cut out, which may be less than what is dead."""

    layer: str
    before: int
    dead: int
    after: int


class Evidence(Part):
    """What the removal rests on, counted in groups of channels that go together."""

    by_proof: int
    by_measurement: int


class Law(Part):
    """compact(x) == dense(x) in float64, measured channels held at zero where `held`."""

    max_rel_diff: float
    tolerance: float
    inputs: tuple[str, ...]
    held: bool


class Confirmation(Part):
    """The census taken again on the whole training split: a channel that fired once was kept as alive."""

    images: int
    revived: int
    largest_activation: dict[str, float] = Field(
        description="Activation -> largest value of a channel that stays dead."
    )
    approximate: list[str] = Field(description="Activations other than ReLU, where a measured death is not exactly 0.")


class Candidate(Part):
    """One choice of `align: auto`; p50 over all rounds, its lowest and highest, None where nothing was timed."""

    align: str
    channels: int
    p50_ms: float | None
    p50_ms_low: float | None
    p50_ms_high: float | None
    chosen: bool


class Alignment(Part):
    """What each alignment would have cost, timed where the cut was made; `backend` is None where nothing was timed."""

    backend: str | None
    device: str
    threads: int
    batch: int
    candidates: list[Candidate]


class Folded(Part):
    layer: str
    bias: str
    largest: float


class Frozen(Part):
    where: str
    reason: str
    channels: int


class Surgery(Reasoned):
    channels_before: int | None
    channels_dead: int | None
    channels_after: int | None
    max_abs_diff: float | None = Field(
        description="Largest fp32 difference of compact from dense with removed held at 0."
    )
    evidence: Evidence | None
    confirmation: Confirmation | None
    law: Law | None
    layers: list[Layer]
    folded: list[Folded] = Field(description="Layers whose bias took up constant channels.")
    alignment: Alignment | None
    frozen: list[Frozen] = Field(description="Channels that could not be cut, where and why.")


class Timing(Part):
    name: str
    p50_ms: float
    p95_ms: float
    mean_ms: float
    best_ms: float
    n: int
    repeats: int = Field(description="Launches a sample.")


class Speedup(Part):
    ratio: float = Field(description="Dense p50 / compact p50.")
    ci95: Interval
    verdict: Literal["faster", "not distinguishable", "slower"]


class Latency(Part):
    dense: Timing | None
    compact: Timing | None
    speedup: Speedup | None
    protocol: dict[str, Any] | None
    reason: str | None


class EngineFile(Part):
    """An engine that was asked for; without a path it could not be built, and `reason` says why."""

    model: Literal["dense", "compact"]
    flavour: str | None
    precision: str
    target: str
    path: str | None
    sha256: str | None
    bytes: int | None
    measured_on: str | None
    reason: str | None


class Hop(Part):
    model: Literal["dense", "compact"]
    source: str = Field(alias="from")
    target: str = Field(alias="to")
    max_abs: float | None
    max_rel: float | None
    top1_agreement: float | None
    accuracy_delta: float | None
    reason: str | None


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
    environment: dict[str, Any]
    models: Models
    accuracy_difference: AccuracyDifference | None
    surgery: Surgery
    latency: dict[str, dict[str, dict[str, Latency]]] = Field(description="backend -> precision -> b<batch>.")
    engines: list[EngineFile]
    hops: list[Hop]
    verdict: Verdict
    stages: list[Stage]
