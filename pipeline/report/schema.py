"""report.json, schema 1: what a run measured; a figure that was not measured is `null` beside its reason.

Accuracies and agreements are fractions in [0, 1], latencies milliseconds for a batch, sizes bytes; numbers are finite.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .engine_schema import EngineProof
from .graph_schema import Best, GraphFile
from .parts import Interval, Part, Reasoned, Status
from .speed_schema import Concurrency, Latency, Reference, Why
from .surgery_schema import Surgery


class ModelFigures(Reasoned):
    params: int | None
    macs: int | None = Field(description="Multiply-accumulates for one image.")
    channels: int | None
    bytes: int | None = Field(description="Size of the simplified fp32 ONNX file, which is what is deployed.")
    files: dict[str, int] = Field(description="Size of each exported file: onnx, simplified, fp16, <engine>.")
    accuracy: dict[str, float | None] = Field(
        description="Top-1 on the test split, by hop: masked (compact before the cut), torch, onnx, simplified, ..."
    )
    top5: dict[str, float] = Field(description="Top-5, of more than five classes, at every hop measured.")
    metric: dict[str, float] = Field(description="check.metric at every hop measured.")
    denormals: int | None = Field(description="Weights that are denormal numbers.")


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
    proof: EngineProof | None = Field(default=None, description="From stage 60; null where it could not be built.")


class Hop(Part):
    model: Literal["dense", "compact"]
    source: str = Field(alias="from")
    target: str = Field(alias="to")
    max_abs: float | None
    max_rel: float | None
    top1_agreement: float | None
    accuracy_delta: float | None
    paired: AccuracyDifference | None
    non_inferior: Literal["yes", "no", "undecided"] | None
    reason: str | None


class ClassAccuracy(Part):
    name: str
    n: int
    dense: float
    compact: float
    forms: dict[str, float] = Field(
        default_factory=dict, description="Compact at every form measured, in the order of the line."
    )


class Broken(Part):
    """The first hop at which compact lost more than max_accuracy_drop against dense through torch."""

    model: Literal["dense", "compact"]
    source: str = Field(alias="from")
    target: str = Field(alias="to")
    drop_pp: float
    limit_pp: float


class WorstImage(Part):
    """An image that `from` classified rightly and `to` did not; probabilities are of its own class."""

    index: int
    label: str
    before: str
    after: str
    p_before: float
    p_after: float
    file: str = Field(description="In 70-check.")


class Worst(Part):
    source: str = Field(alias="from")
    target: str = Field(alias="to")
    images: list[WorstImage]


class Gate(Part):
    name: str
    status: Status
    value: float | None
    limit: float | None
    reason: str | None


class Verdict(Part):
    status: Status
    gates: list[Gate]


class Published(Part):
    """What `demport publish` wrote last; `current` is false where the run has changed since."""

    directory: str
    format: Literal["triton", "bundle"]
    serial: int
    models: list[str]
    current: bool


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
    classes: list[ClassAccuracy] = Field(description="Through torch, the class that lost most first.")
    surgery: Surgery
    latency: dict[str, dict[str, dict[str, Latency]]] = Field(description="backend -> precision -> b<batch>.")
    concurrency: list[Concurrency]
    reference: Reference | None = Field(description="null without check.reference.")
    why: list[Why]
    graphs: list[GraphFile]
    best: Best | None = Field(description="null without `best` in precision.graphs.")
    engines: list[EngineFile]
    hops: list[Hop]
    broken: Broken | None = Field(description="null where no hop of compact broke the budget.")
    worst: Worst | None
    published: Published | None = Field(description="null where the run was not published.")
    verdict: Verdict
    stages: list[Stage]
