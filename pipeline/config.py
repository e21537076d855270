"""The one frozen config tree: every default and the sentence that explains it live here.

A section belongs to a stage; a stage reads its own section and nothing else, so a change in one section
re-runs that stage and what depends on it. Reading files and overrides is `config_file.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config_engine import Engine as Engine
from pipeline.config_engine import Profile as Profile
from pipeline.config_precision import PrecisionSection as PrecisionSection
from pipeline.config_precision import Serving as Serving
from pipeline.config_publish import Publish
from pipeline.config_section import NonNegative, Positive, Section, impossible, once
from pipeline.config_training import Demp as Demp
from pipeline.config_training import Target as Target
from pipeline.config_training import Training as Training

SOURCES = "digits | npz:FILE | torchvision:NAME | imagefolder:DIR | module:function"
MODELS = "demo:resnet | cifar:NAME | torchvision:NAME | timm:NAME | module:function"
MODULE_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class Data(Section):
    source: str = Field(default="digits", description=SOURCES)
    image_size: Positive | None = Field(
        default=None,
        description="Side in pixels that images of a folder are resized and cropped to; null keeps fixed-size sets.",
    )
    resize: Positive | None = Field(
        default=None,
        description="Shorter side in pixels that images of a folder are resized to before their middle, image_size x "
        "image_size, is cut out; null: image_size.",
    )
    root: str = Field(default="~/.cache/demport", description="Folder that torchvision downloads into.")
    workers: Positive = Field(default=4, description="Threads that decode the images of a folder.")

    @model_validator(mode="after")
    def _source_is_known(self) -> Self:
        kind, _, rest = self.source.partition(":")
        known = kind in ("npz", "torchvision", "imagefolder") and rest
        if self.source != "digits" and not known and not MODULE_FUNCTION.fullmatch(self.source):
            raise impossible(
                "source", f"`{self.source}` names no data", f"expected {SOURCES}", "write one of these forms"
            )
        return self

    @model_validator(mode="after")
    def _what_is_cut_out_is_there(self) -> Self:
        if self.resize is None:
            return self
        if not self.source.startswith("imagefolder:") or self.image_size is None or self.resize < self.image_size:
            raise impossible(
                "resize",
                f"resize {self.resize} with data.source {self.source} and image_size {self.image_size or 'null'}",
                "expected imagefolder:DIR, and no less than its image_size",
                "take it out, or set both, e.g. {resize: 256, image_size: 224}",
            )
        return self


class Model(Section):
    name: str = Field(default="demo:resnet", description=MODELS)
    weights: str | None = Field(
        default=None, description="safetensors file to start both trainings from; null starts afresh."
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the model's constructor.")

    @model_validator(mode="after")
    def _name_is_a_spec(self) -> Self:
        kind, _, rest = self.name.partition(":")
        known = kind in ("demo", "cifar", "torchvision", "timm") and rest
        if not known and not MODULE_FUNCTION.fullmatch(self.name):
            raise impossible("name", f"`{self.name}` names no model", f"expected {MODELS}", "write one of these forms")
        return self


class Surgery(Section):
    align: Literal[1, 2, 4, 8, 16, 32, 64, "auto"] = Field(
        default=16,
        description="Keep the most alive of the dead channels up to this multiple (exact: they are zeros). auto: "
        "the fastest of several and of not cutting at all, timed with ONNX Runtime at `check.gate_batch`.",
    )
    residual: Literal["tied", "untied"] = Field(
        default="tied",
        description="tied: a channel of a residual stream goes only if dead at every member; untied: block by block.",
    )
    law_tolerance: NonNegative = Field(
        default=1e-9, description="Largest relative difference of compact and dense in float64."
    )


class Onnx(Section):
    opset: Literal[18, 19, 20, 21, 22, 23, "auto"] = Field(
        default="auto",
        description="ONNX operator set of the exported graph; auto: the first of 18, 20, 22 that passes.",
    )
    max_abs_diff: NonNegative = Field(
        default=1e-4, description="Largest absolute difference of ONNX Runtime's logits from torch's."
    )


class Simplify(Section):
    enabled: bool = Field(
        default=True,
        description="Run onnxsim, then onnxslim where that fails the check; false keeps the exported graph.",
    )
    max_abs_diff: NonNegative = Field(
        default=1e-4, description="Largest absolute difference of the simplified graph from its input."
    )


class Gates(Section):
    max_accuracy_drop: NonNegative = Field(
        default=1.0, description="Largest loss of accuracy against dense, in percentage points."
    )
    min_speedup: NonNegative = Field(
        default=1.5, description="Smallest ratio of the dense to the compact p50 latency; 0 asks for nothing."
    )
    max_abs_diff: NonNegative = Field(
        default=1e-5, description="Largest difference of compact from dense-with-removed-held, fp32 logits."
    )
    non_inferiority_margin: NonNegative | None = Field(
        default=None, description="Percentage points that the whole interval of the accuracy lost must stay within."
    )
    max_metric_drop: NonNegative | None = Field(
        default=None, description="Largest loss in `metric` against dense, in its unit."
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

    @model_validator(mode="after")
    def _gate_is_measured(self) -> Self:
        once("batch_sizes", self.batch_sizes)
        once("streams", self.streams)
        if self.gates.max_metric_drop is not None and self.metric is None:
            raise impossible(
                "gates.max_metric_drop",
                "there is no metric",
                "expected check.metric",
                "name your function in check.metric, or leave the limit out",
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
    dense: Training = Field(default_factory=Training, description="Training of the dense baseline.")
    demp: Demp = Field(default_factory=Demp, description="Training with DemP.")
    surgery: Surgery = Field(default_factory=Surgery, description="Cutting the dead channels out.")
    onnx: Onnx = Field(default_factory=Onnx, description="Export to ONNX.")
    simplify: Simplify = Field(default_factory=Simplify, description="Simplification of the ONNX graphs.")
    precision: PrecisionSection = Field(default_factory=PrecisionSection, description="Lower precision in the graph.")
    serving: Serving = Field(default_factory=Serving, description="Graphs that take pixels, beside the others.")
    engine: Engine = Field(default_factory=Engine, description="TensorRT engines.")
    check: Check = Field(default_factory=Check, description="Accuracy, latency and the verdict.")
    publish: Publish = Field(default_factory=Publish, description="What `demport publish` writes for a server.")

    @model_validator(mode="after")
    def _images_can_be_resized(self) -> Self:
        resized = self.data.source.startswith("imagefolder:") and self.data.image_size is not None
        for name in ("dense", "demp"):
            if getattr(self, name).augment == "resize_crop_flip" and not resized:
                raise impossible(
                    f"{name}.augment",
                    f"resize_crop_flip with data.source {self.data.source}",
                    "expected imagefolder:DIR and data.image_size",
                    "choose crop_flip, or set data.image_size of an image folder",
                )
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
