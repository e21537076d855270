"""report.json, schema 1: the results of the stages under the names it has always had.

A figure that was not measured is null beside its reason. `seal` is the hash of all other keys: a report that was
changed by hand or damaged is refused where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from pipeline.check.reading import STRICT, damaged, implausible, read_object
from pipeline.check.results import Broken, ClassAccuracy, Concurrency, EngineFile, Hop, Latencies, Reference, Why, Worst
from pipeline.report.method import Masked
from pipeline.report.pair import Pair
from runtime.documents import seal_of, write_sealed
from runtime.gate import Verdict
from runtime.measure.statistics import PairedAccuracy

OMITTED = {"samples_ms", "settings"}
"""Keys of check.json that report.json leaves out: thousands of numbers, and what `protocol` says too."""


@dataclass(frozen=True)
class ModelFigures:
    """As `pipeline.check.results.ModelFigures`, with channels; figures are null where no check has run."""

    params: int | None
    macs: int | None
    channels: int | None
    bytes: int | None
    denormals: int | None
    files: dict[str, int]
    accuracy: dict[str, float | None]
    top5: dict[str, float]
    metric: dict[str, float]
    reasons: dict[str, str]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    macro_f1: dict[str, float] = field(default_factory=dict)
    beside: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Models:
    dense: ModelFigures
    compact: ModelFigures


@dataclass(frozen=True)
class Layer:
    """Output channels of a layer; `after` is `before` less what was cut out, which may be less than what is dead."""

    layer: str
    before: int
    dead: int
    after: int


@dataclass(frozen=True)
class Evidence:
    """What the removal after training rests on; with `removed_in_training` these are the channels that are gone."""

    by_proof: int
    by_measurement: int


@dataclass(frozen=True)
class Law:
    """compact(x) == dense(x) in float64, measured channels held at zero where `held`; operators `single` in float32."""

    max_rel_diff: float
    tolerance: float
    inputs: tuple[str, ...]
    held: bool
    single: tuple[str, ...] = ()


@dataclass(frozen=True)
class Confirmation:
    """The census again on the whole training split. `largest_activation`: activation -> largest value of a channel
    that stays dead; `approximate`: activations where a measured death is not exactly 0."""

    images: int
    revived: int
    largest_activation: dict[str, float]
    approximate: tuple[str, ...]


@dataclass(frozen=True)
class Moved:
    """How far compact's outputs are from those of the network that was cut, nothing held, in fp32."""

    images: int
    max_abs: float
    top1_changed: int


@dataclass(frozen=True)
class Change:
    test: Moved
    train: Moved | None


@dataclass(frozen=True)
class Candidate:
    """A choice of `align: auto`; p50 over all rounds, its lowest and highest, None where nothing was timed."""

    align: str
    channels: int
    p50_ms: float | None
    p50_ms_low: float | None
    p50_ms_high: float | None
    chosen: bool


@dataclass(frozen=True)
class Alignment:
    backend: str | None
    device: str
    threads: int
    batch: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Folded:
    layer: str
    bias: str
    largest: float


@dataclass(frozen=True)
class Frozen:
    where: str
    reason: str
    channels: int


@dataclass(frozen=True)
class Surgery:
    """`removal_rel_diff`: largest relative float64 difference of a removal during training; `max_abs_diff`: largest
    fp32 difference of compact from the trained network whose removed channels are held at 0."""

    channels_before: int | None
    channels_dead: int | None
    channels_after: int | None
    removed_in_training: int
    removal_rel_diff: float | None
    max_abs_diff: float | None
    evidence: Evidence | None
    confirmation: Confirmation | None
    change: Change | None
    law: Law | None
    alignment: Alignment | None
    layers: tuple[Layer, ...]
    folded: tuple[Folded, ...]
    frozen: tuple[Frozen, ...]
    reasons: dict[str, str]


@dataclass(frozen=True)
class Fp32Layer:
    """A layer that stays in fp32; `error` is null where something else than its sensitivity is the reason."""

    layer: str
    weight: str
    reason: str
    error: float | None


@dataclass(frozen=True)
class GraphFile:
    """An ONNX file. `drop_pp` against its own fp32 form on `images` of the test split, null for fp32 itself. `refused`:
    simplifiers and operator sets that were tried before, and why not."""

    model: str
    precision: str
    made_by: str
    opset: int | None
    nodes_before: int | None
    nodes: int
    refused: dict[str, str]
    drop_pp: float | None
    images: int | None
    holds: bool | None
    in_fp32: Annotated[tuple[Fp32Layer, ...], Field(alias="kept")]
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class BestCandidate:
    precision: str
    p50_ms: float | None
    speedup: float | None
    reason: str | None


@dataclass(frozen=True)
class Best:
    """The fastest precision of compact on this machine among those that hold."""

    precision: str
    batch: int
    backend: str
    device: str
    candidates: tuple[BestCandidate, ...]


@dataclass(frozen=True)
class EngineProof:
    """In which type an engine's layers compute, by TensorRT's inspector (`engine`) or the strongly typed network."""

    source: Literal["engine", "network"]
    share: float
    products: dict[str, int]
    others: tuple[str, ...]
    unknown: int
    reformats: int
    casts: int
    quantizes: int


@dataclass(frozen=True)
class Engine(EngineFile):
    proof: EngineProof | None = None


@dataclass(frozen=True)
class Published:
    """What `demport publish` wrote last; `current` is false where the run has changed since."""

    directory: str
    format: Literal["triton", "bundle"]
    serial: int
    models: tuple[str, ...]
    current: bool


@dataclass(frozen=True)
class Stage:
    folder: str
    status: Literal["done", "not run"]
    seconds: float | None
    fingerprint: str | None
    device: str | None
    seed: int | None
    command: str | None


@dataclass(frozen=True)
class Report:
    name: str
    environment: dict[str, Any]
    models: Models
    accuracy_difference: PairedAccuracy | None
    classes: tuple[ClassAccuracy, ...]
    surgery: Surgery
    latency: Latencies
    concurrency: tuple[Concurrency, ...]
    reference: Reference | None
    why: tuple[Why, ...]
    graphs: tuple[GraphFile, ...]
    best: Best | None
    engines: tuple[Engine, ...]
    hops: tuple[Hop, ...]
    broken: Broken | None
    worst: Worst | None
    published: Published | None
    verdict: Verdict
    stages: tuple[Stage, ...]
    masked: Masked | None = None  # None where the training had no masks
    pair: Pair | None = None
    """None where the run trained and cut both networks."""
    metric_name: str = "accuracy"
    """What the task is judged by, under `accuracy` everywhere."""
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


def write(path: Path, report: Report) -> None:
    write_sealed(path, _without(TypeAdapter(Report).dump_python(report, mode="json", by_alias=True)))


def read(path: Path) -> dict[str, Any]:
    """A report as plain values. UserError, one line, where it is no plain file, was changed, or is implausible."""
    document = read_object(path)
    if problem := next(implausible(document), None):
        raise damaged(path, problem)
    if document.get("seal") != seal_of(document):
        raise damaged(path, "it was changed after it was written")
    return document


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items() if key not in OMITTED}
    return [_without(inner) for inner in value] if isinstance(value, list) else value
