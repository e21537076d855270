"""What the check measured: the tree of check.json, which is written, read back and rendered as it is.

`write` and `read` are the only ways to and from the file. Accuracies are fractions in [0, 1], latencies milliseconds
for a batch, sizes bytes. A figure that was not measured is null beside its reason. `<engine>` is
`<flavour>.<precision>.<target>`, e.g. `tensorrt_rtx.fp16.SM86`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from pipeline.check.reading import STRICT, read_object, typed
from runtime.files import write_json
from runtime.gate import Verdict
from runtime.measure.latency import Latency as Timing
from runtime.measure.latency import Speedup
from runtime.measure.load import Load
from runtime.measure.statistics import PairedAccuracy

Role = Literal["dense", "compact"]
From = Annotated[str, Field(alias="from")]
To = Annotated[str, Field(alias="to")]


@dataclass(frozen=True)
class ModelFigures:
    """`macs` of one image; `bytes` of the simplified fp32 ONNX file, which is deployed, `files` of each exported one.

    `accuracy`, `top5` (of more than five classes), `macro_f1` and `metric` (check.metric) are by form: "masked", of
    compact, is the trained network before the cut; then "torch", "onnx", "simplified", lower precisions, `<engine>`.
    `denormals` are weights so small that a processor computes slowly with them. `reasons`: form -> why its accuracy is
    null.
    `accuracy` is the task's metric, whatever its name (`CheckDocument.metric_name`); `intervals`: form -> its 95 %
    interval by a bootstrap, where it is no share of images.
    """

    params: int
    macs: int
    denormals: int
    bytes: int
    files: dict[str, int]
    accuracy: dict[str, float | None]
    top5: dict[str, float]
    metric: dict[str, float]
    reasons: dict[str, str]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    macro_f1: dict[str, float] = field(default_factory=dict)
    beside: dict[str, dict[str, float]] = field(default_factory=dict)  # other metrics of the task -> form -> value


@dataclass(frozen=True)
class Models:
    dense: ModelFigures
    compact: ModelFigures


@dataclass(frozen=True)
class ClassAccuracy:
    """Of one class through torch, the share of its n images that are answered rightly, its recall; `forms` are
    compact's, in the order of the line."""

    name: str
    n: int
    dense: float
    compact: float
    forms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hop:
    """What one form changed against the form before it; `accuracy_delta` is a fraction, after less before."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    model: Role
    source: From
    target: To
    max_abs: float | None
    max_rel: float | None
    top1_agreement: float | None
    accuracy_delta: float | None
    paired: PairedAccuracy | None
    non_inferior: Literal["yes", "no", "undecided"] | None
    reason: str | None


@dataclass(frozen=True)
class Broken:
    """The first hop at which compact lost more than max_accuracy_drop against dense through torch."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    model: Role
    source: From
    target: To
    drop_pp: float
    limit_pp: float


@dataclass(frozen=True)
class WorstImage:
    """An image that `from` classified rightly and `to` did not; probabilities are of its own class. Where an image has
    no one class, `from` scored it higher, and these are the scores. `file` lies in the folder of the check."""

    index: int
    label: str
    before: str
    after: str
    p_before: float
    p_after: float
    file: str


@dataclass(frozen=True)
class Worst:
    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    source: From
    target: To
    images: tuple[WorstImage, ...]
    drawn: str = ""
    """What each picture shows, where it is more than the image."""


@dataclass(frozen=True)
class EndToEnd:
    """As LatencyEntry, the copies of inputs and outputs inside the timed part."""

    dense: Timing
    compact: Timing
    speedup: Speedup


@dataclass(frozen=True)
class LatencyEntry:
    """Dense and compact timed in turn; without figures `reason` says why."""

    dense: Timing | None
    compact: Timing | None
    speedup: Speedup | None
    end_to_end: EndToEnd | None
    settings: dict[Role, dict[str, Any]] | None
    protocol: dict[str, Any] | None
    reason: str | None

    @property
    def conditions(self) -> Mapping[str, Any] | None:
        """How busy the machine was, as `runtime.measure.conditions` says it."""
        state = (self.protocol or {}).get("conditions")
        return state if isinstance(state, Mapping) and "before" in state else None


Latencies = dict[str, dict[str, dict[str, LatencyEntry]]]
"""backend -> precision -> b<batch>. Backends: onnxruntime, torch, tensorrt, tensorrt_rtx."""


@dataclass(frozen=True)
class Concurrency:
    """`streams` sessions at once of `threads` each (null of an engine); `speedup` is the ratio of throughputs."""

    backend: str
    precision: str
    streams: int
    batch: int
    threads: int | None
    dense: Load | None
    compact: Load | None
    speedup: Speedup | None
    reason: str | None


@dataclass(frozen=True)
class Reference:
    """Compact in fp32 through ONNX Runtime against the file of check.reference: its p50 over compact's."""

    file: str
    sha256: str
    batch: int
    reference: Timing
    compact: Timing
    speedup: Speedup
    protocol: dict[str, Any]


@dataclass(frozen=True)
class LayerTime:
    """A layer with weights in both networks, in microseconds and multiply-accumulates of one run. `width`: channels
    that the kernel computes, where the profiler says it. `bound` and `floor_us` are compact's by the roofline."""

    layer: str
    channels_before: int | None
    channels_after: int | None
    width: int | None
    dense_us: float
    compact_us: float
    dense_macs: int
    compact_macs: int
    bound: str
    floor_us: float

    @property
    def excess_us(self) -> float:
        """What compact takes more than it would at dense's time a multiply-accumulate."""
        return self.compact_us - self.dense_us * self.compact_macs / max(self.dense_macs, 1)


@dataclass(frozen=True)
class RunTime:
    """Where the microseconds of a run go; `kernels` counts them by operator."""

    run_us: float
    layers_us: float
    reformat_us: float
    other_us: float
    between_us: float
    kernels: dict[str, int]


@dataclass(frozen=True)
class Times:
    dense: RunTime
    compact: RunTime


@dataclass(frozen=True)
class Finding:
    """What slows compact, what to try, and the share of its run that is touched, in percent."""

    what: str
    remedy: str
    pct: float


@dataclass(frozen=True)
class Why:
    """Where compact's time goes at one batch of one backend. `share` is speedup / macs_ratio; `bound_pct` the part of
    the run by what binds it, `verdict` the largest of them."""

    where: str
    batch: int
    threads: int | None
    speedup: float
    macs_ratio: float
    share: float
    roofline: dict[str, Any]
    layers: tuple[LayerTime, ...]
    time: Times
    bound_pct: dict[str, float]
    verdict: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class EngineFile:
    """An engine that was asked for; without a path it could not be built, and `reason` says why."""

    model: Role
    flavour: str | None
    precision: str
    target: str
    path: str | None
    sha256: str | None
    bytes: int | None
    measured_on: str | None
    reason: str | None


@dataclass(frozen=True)
class CheckDocument:
    """check.json. `accuracy_difference`: compact less dense through torch on the same images; `classes`: the one that
    lost most first; `why`: ONNX Runtime at gate_batch and the engines that run here; `metric_name`: what the task is
    judged by, which stands under `accuracy` everywhere."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    environment: dict[str, Any]
    models: Models
    accuracy_difference: PairedAccuracy
    classes: tuple[ClassAccuracy, ...]
    hops: tuple[Hop, ...]
    broken: Broken | None
    worst: Worst | None
    latency: Latencies
    reference: Reference | None
    concurrency: tuple[Concurrency, ...]
    why: tuple[Why, ...]
    engines: tuple[EngineFile, ...]
    verdict: Verdict
    metric_name: str = "accuracy"
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1


def write(path: Path, document: CheckDocument) -> None:
    write_json(path, TypeAdapter(CheckDocument).dump_python(document, mode="json", by_alias=True))


def read(path: Path) -> CheckDocument:
    """check.json; UserError, one line, where it is no plain file, too large, damaged or implausible."""
    return typed(CheckDocument, read_object(path), path)
