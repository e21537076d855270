"""What each stage leaves, as frozen dataclasses: the contract between stages, kept in stage.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.engines import Engine
from export.engines.proof import Precision
from export.onnx.from_torch import OnnxGraph
from export.onnx.pixels import ServedGraph
from export.onnx.simplify import Simplified
from export.onnx.weights import Weights
from export.precision.fastest import Best
from export.precision.lower import CastGraph

if TYPE_CHECKING:
    from pipeline.workspace.folder import Done

Role = Literal["dense", "compact"]
ROLES: tuple[Role, Role] = ("dense", "compact")
Format = Literal["triton", "bundle"]


@dataclass(frozen=True)
class Trained:
    """Stages 10 and 20."""

    weights: Path
    """safetensors; of the network that `plan` leaves, where there is one."""
    plan: Path | None
    """Of the channels removed during the training; None where none was."""
    history: Path
    """JSON lines, one an epoch: epoch, loss, accuracy, lr, seconds, images_per_s, macs, params, removals; of DemP also
    lambda, sigma, channels and those dead (as of the last census) and removed, also by layer, and with a target where
    it stands."""
    census: Path | None
    """safetensors: watched output -> uint8, 1 = dead in the last census; DemP only."""
    accuracy: float
    """Fraction of the test split, 0..1, after the last epoch."""
    epochs: int
    seconds: float
    channels: int
    """Output channels of all layers whose channels can go, in the dense network."""
    dead: int
    """Channels without effect, by the last census; removed ones included."""
    reached: dict[str, float] | None
    """Target reached in a steered training, before the last removal: `macs` and `channels` as shares of the dense
    network; where a latency was asked for, `dense_latency_ms`, of the dense network as the training began."""


@dataclass(frozen=True)
class Cut:
    """Stage 30. Channels are output channels of layers."""

    plan: Path
    weights: Path
    certificate: Path
    channels_before: int
    channels_dead: int
    channels_after: int
    revived: int
    """Channels of the last census that the whole training set showed alive."""
    max_abs_diff: float
    """Compact against the dense network with the removed channels held: fp32 logits over the whole test split."""


@dataclass(frozen=True)
class Member:
    """One of two networks that were made elsewhere: `path` is a safetensors file, a folder with a plan, or ONNX."""

    form: Literal["weights", "plan", "onnx"]
    path: Path
    source: str
    """Its value in the section `given`."""
    max_abs_diff: float | None
    """Of an ONNX file: largest difference of its torch form from ONNX Runtime's logits, on test images."""


@dataclass(frozen=True)
class Pair:
    """Stage 05, of a run whose networks were made elsewhere."""

    dense: Member
    compact: Member
    images: int
    """Of the test split, on which both answered in fp32."""
    max_abs: float
    """Largest difference of compact's outputs from dense's on them."""
    top1_changed: int | None
    """Answers that differ; None where an image has no one class."""


@dataclass(frozen=True)
class Exported:
    """Stage 40: `dense.onnx` and `compact.onnx`."""

    dense: OnnxGraph
    compact: OnnxGraph


@dataclass(frozen=True)
class SimplifiedGraphs:
    """Stage 50: the fp32 graphs to go on with, under the same names."""

    dense: Simplified
    compact: Simplified
    weights: Weights | None = None
    """Of compact; None in runs made before it was counted."""


@dataclass(frozen=True)
class CastGraphs:
    """Stage 55: graphs by precision, e.g. `{"fp16": ...}`; empty where the config asks for none.

    `best` is the compact network's, None where it was not asked for. `served`: graphs that take pixels, by network and
    precision, e.g. `compact.fp32`.
    """

    dense: dict[str, CastGraph]
    compact: dict[str, CastGraph]
    best: Best | None = None
    served: dict[str, ServedGraph] = field(default_factory=dict)
    completed: dict[str, Path] = field(default_factory=dict)
    """Graphs with the last step of the task in them, likewise."""


@dataclass(frozen=True)
class EngineResult:
    """One engine that the config asks for: built, or the reason why it is not."""

    model: Role
    precision: Precision
    target: str
    engine: Engine | None
    reason: str | None


@dataclass(frozen=True)
class Engines:
    """Stage 60."""

    engines: tuple[EngineResult, ...]


@dataclass(frozen=True)
class Checked:
    """Stage 70. Accuracies are fractions of the whole test split, through torch; `speedup` is the gated one, None
    where an engine that ran was not to be timed."""

    path: Path
    status: str
    accuracy_dense: float
    accuracy_compact: float
    speedup: float | None


@dataclass(frozen=True)
class Served:
    """One published model; `sha256` of each version's file."""

    name: str
    platform: str
    max_batch_size: int
    sha256: dict[str, str]


@dataclass(frozen=True)
class Omission:
    """Parts of a run that are not published, and the one reason."""

    why: str
    what: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """Stage 80: where the folder stands, the number of its release, and its models.

    `verdict` of the run's check: pass, fail, inconclusive; None where it was not done, or after a rollback.
    """

    directory: str
    format: Format
    serial: int
    swap: str
    models: tuple[Served, ...]
    verdict: str | None = None
    left_out: tuple[Omission, ...] = ()

    def document(self) -> dict[str, Any]:
        """The JSON document that ends the command's output."""
        models = [
            {"name": model.name, "platform": model.platform, "versions": sorted(map(int, model.sha256))}
            for model in self.models
        ]
        release = {"directory": self.directory, "format": self.format, "serial": self.serial, "swap": self.swap}
        left_out = [{"why": one.why, "what": list(one.what)} for one in self.left_out]
        return {"status": "done", **release, "verdict": self.verdict, "models": models, "left_out": left_out}


RESULTS: dict[str, type] = {
    "05-pair": Pair,
    "10-dense": Trained,
    "20-sparse": Trained,
    "30-surgery": Cut,
    "40-onnx": Exported,
    "50-simplify": SimplifiedGraphs,
    "55-precision": CastGraphs,
    "60-engine": Engines,
    "70-check": Checked,
    "80-publish": Published,
}


def result_of(done: Done) -> Any:
    """The dataclass that a finished stage left. UserError: its record does not fit."""
    return done.result(RESULTS[done.stage])
