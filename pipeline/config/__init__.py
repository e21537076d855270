"""The one frozen config tree: every default and the sentence that explains it live here.

A section belongs to a stage; a stage reads its own section and nothing else, so a change in one section
re-runs that stage and what depends on it. Reading files and overrides is `config_file.py`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from pydantic import Field, create_model, model_validator

from pipeline.config.engine import Engine as Engine
from pipeline.config.engine import Profile as Profile
from pipeline.config.model import Data as Data
from pipeline.config.model import Model as Model
from pipeline.config.model import Pair as Pair
from pipeline.config.precision import Onnx as Onnx
from pipeline.config.precision import PrecisionSection as PrecisionSection
from pipeline.config.precision import Qat as Qat
from pipeline.config.precision import Serving as Serving
from pipeline.config.precision import Simplify as Simplify
from pipeline.config.publish import Publish
from pipeline.config.section import NonNegative, Positive, Section, impossible, once
from pipeline.config.sparse import Sparse as Sparse
from pipeline.config.sparse import Surgery as Surgery
from pipeline.config.sparse import section_of
from pipeline.config.sparse import sparse_of as sparse_of
from pipeline.config.task import Task as Task
from pipeline.config.task import distils
from pipeline.config.task import section_of as section_of_task
from pipeline.config.task import task_section as task_section
from pipeline.config.training import Dense as Dense
from pipeline.config.training import Distill as Distill
from pipeline.config.training import Target as Target
from pipeline.config.training import Training as Training
from pipeline.data import sources

if TYPE_CHECKING:
    DempSection = Sparse
    Classification = Task
else:
    DempSection = section_of("demp")
    Classification = section_of_task("classification")


class Gates(Section):
    max_accuracy_drop: NonNegative = Field(
        default=1.0,
        description="Percentage points of accuracy, or of the task's metric, that compact may lose, by its whole "
        "interval; 100 asks for nothing.",
    )
    min_speedup: NonNegative = Field(
        default=1.5,
        description="Smallest ratio of the dense to the compact p50 latency, of the engines that run here, in fp32 or "
        "their first precision, else in ONNX Runtime; 0 asks for nothing.",
    )
    max_abs_diff: NonNegative = Field(
        default=1e-5, description="Largest difference of compact from dense-with-removed-held, fp32 logits."
    )
    max_metric_drop: NonNegative | None = Field(
        default=None,
        description="With check.metric the largest loss in it against dense, in its unit; without it another name of "
        "max_accuracy_drop, for tasks whose metric is not accuracy.",
    )


class Check(Section):
    batch_sizes: tuple[Positive, ...] = Field(default=(1, 8, 32), description="Batch sizes whose latency is measured.")
    streams: tuple[Positive, ...] = Field(
        default=(1, 2),
        description="Numbers of sessions at once whose throughput is measured in every form; empty for none.",
    )
    reference: str | None = Field(
        default=None, description="An ONNX file that compact is timed against too, e.g. the one in production."
    )
    metric: str | None = Field(
        default=None, description="`module:function` of (logits (N, K), labels (N,)) to a number; more is better."
    )
    gate_batch: Positive = Field(default=32, description="Batch size whose speedup is gated.")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(default=2, description="Threads of ONNX Runtime.")
    min_blocks: Positive = Field(default=30, description="Fewest ABBA blocks a latency comparison takes.")
    time_limit_s: Positive = Field(default=20, description="Seconds one latency comparison may take.")
    gates: Gates = Field(default_factory=Gates, description="Limits that decide the verdict.")

    @property
    def limit_pp(self) -> float:
        """Percentage points of the task's metric that compact may lose."""
        own = self.gates.max_metric_drop if self.metric is None else None
        return self.gates.max_accuracy_drop if own is None else own

    @model_validator(mode="after")
    def _gate_is_measured(self) -> Self:
        once("batch_sizes", self.batch_sizes)
        once("streams", self.streams)
        usual, own = Gates.model_fields["max_accuracy_drop"].default, self.gates.max_metric_drop
        if self.metric is None and own is not None and self.gates.max_accuracy_drop not in (usual, own):
            raise impossible(
                "gates.max_metric_drop",
                "it is set beside max_accuracy_drop, and there is no check.metric: both limit the task's metric",
                "expected one of them",
                "leave one out, or name your function in check.metric",
            )
        if self.gate_batch not in self.batch_sizes:
            listed = ", ".join(map(str, self.batch_sizes)) or "none"
            raise impossible(
                "gate_batch",
                f"{self.gate_batch} is not measured (batch_sizes: {listed})",
                "expected one of batch_sizes",
                f"add {self.gate_batch} to batch_sizes or choose one that is there",
            )
        return self


class Config(Section):
    name: str = Field(default="run", description="Title of the report.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0, description="Seed of weights, data order, augmentation and noise."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=2, description="CPU threads of training; the same number gives the same bytes."
    )
    data: Data = Field(default_factory=Data, description="Images and labels.")
    model: Model = Field(default_factory=Model, description="The network.")
    given: Pair | None = Field(
        default=None, description="Two networks made elsewhere, to go on with; nothing is trained."
    )
    task: Classification = Field(default_factory=Classification, description="What the network is trained for.")
    dense: Dense = Field(default_factory=Dense, description="Training of the dense baseline.")
    sparse: DempSection = Field(default_factory=DempSection, description="Training with a method that prunes.")
    surgery: Surgery = Field(default_factory=Surgery, description="Cutting the dead channels out.")
    onnx: Onnx = Field(default_factory=Onnx, description="Export to ONNX.")
    simplify: Simplify = Field(default_factory=Simplify, description="Simplification of the ONNX graphs.")
    precision: PrecisionSection = Field(default_factory=PrecisionSection, description="Lower precision in the graph.")
    serving: Serving = Field(default_factory=Serving, description="Graphs that take pixels, beside the others.")
    engine: Engine = Field(default_factory=Engine, description="TensorRT engines.")
    check: Check = Field(default_factory=Check, description="Accuracy, latency and the verdict.")
    publish: Publish = Field(default_factory=Publish, description="What `demport publish` writes for a server.")

    @property
    def starts_dense(self) -> bool:
        """Whether the sparse training goes on from the dense one."""
        return self.sparse.start == "dense" or (self.sparse.start == "auto" and self.model.weights is not None)

    @property
    def distill(self) -> Distill | None:
        """How the sparse training learns from the dense network, if it does."""
        asked = self.sparse.distill
        if asked != "auto":
            return asked
        return Distill() if self.starts_dense and distils(self.task) else None

    @model_validator(mode="after")
    def _images_can_be_resized(self) -> Self:
        source, side = self.data.source, self.data.image_size
        resized = sources.gives_boxes(source) or (sources.reads_pictures(source) and side is not None)
        trainings = {"dense": self.dense, "sparse": self.sparse, "precision.qat": self.precision.qat}
        for name, section in trainings.items():
            augment = None if section is None else section.augment
            if augment == "resize_crop_flip" and not resized:
                reason, expected = (
                    f"{augment} with data.source {source}",
                    "expected a folder of images and data.image_size",
                )
                remedy = "choose crop_flip, or set data.image_size of an image folder"
                raise impossible(f"{name}.augment", reason, expected, remedy)
            if augment == "crop_flip" and sources.gives_boxes(source):
                reason = "crop_flip, which mirrors objects at the border that then have no box"
                expected = "expected none, shift, zero_crop_flip or resize_crop_flip"
                raise impossible(f"{name}.augment", reason, expected, "take zero_crop_flip")
        return self

    @model_validator(mode="after")
    def _baseline_can_be_taken_and_taught(self) -> Self:
        if self.given is not None:
            self.given.demand_alone(self.model, self.sparse.asked)
        elif self.dense.epochs == 0 and (self.model.weights is None or self.model.new_head):
            what = "a new head is not trained" if self.model.new_head else "there are no weights to take as they are"
            remedy = "set dense.epochs, e.g. 5" if self.model.new_head else "set model.weights, or dense.epochs"
            raise impossible("dense.epochs", f"0, and {what}", "expected a trained network", remedy)
        lessons = {"sparse": self.sparse.distill, "precision.qat": self.precision.qat and self.precision.qat.distill}
        for name, distill in lessons.items():
            if isinstance(distill, Distill) and not distils(self.task):
                reason, remedy = f"answers are distilled, and not of the task {self.task.name}", "leave it out, or null"
                raise impossible(f"{name}.distill", reason, "expected a task that says how far two are apart", remedy)
        return self

    @model_validator(mode="after")
    def _engines_can_be_built_and_measured(self) -> Self:
        if self.engine.flavour == "none":
            return self
        if missing := [p for p in self.engine.precisions if p != "fp32" and p not in self.precision.written]:
            raise impossible(
                "engine.precisions",
                f"{missing[0]} engines need a {missing[0]} graph, and precision.graphs has none",
                "expected each lower precision of the engines in precision.graphs",
                f"add {missing[0]} to precision.graphs or remove it here",
            )
        if "int8" in self.engine.precisions and self.precision.int8_for == "onnxruntime":
            raise impossible(
                "precision.int8_for",
                "int8 graphs are for onnxruntime, and engine.precisions asks for int8 engines",
                "expected tensorrt, whose form engines are built from",
                "set it so, or remove int8 from engine.precisions",
            )
        profile = self.engine.profile
        for batch in self.check.batch_sizes:
            if not self.engine.takes(batch):
                raise impossible(
                    "check.batch_sizes",
                    f"{batch} is outside engine.profile ({profile.min} to {profile.max})",
                    "expected batches the engines take",
                    "widen engine.profile or measure other batches",
                )
        return self


@cache
def config_of(method: str = "demp", task: str = "classification") -> type[Config]:
    """The tree whose sections `sparse` and `task` have these keys. Raises UserError where they are not there."""
    sections = {
        name: section
        for name, section, default in (
            ("sparse", section_of(method), DempSection),
            ("task", section_of_task(task), Classification),
        )
        if section is not default
    }
    if not sections:
        return Config
    described = {name: Config.model_fields[name].description for name in sections}
    fields: Any = {k: (one, Field(default_factory=one, description=described[k])) for k, one in sections.items()}
    return cast(type[Config], create_model("Config", __base__=Config, __module__=__name__, **fields))
