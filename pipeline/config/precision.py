"""The sections of ONNX graphs: `onnx`, `simplify`, `precision` (lower ones and what they may cost), `serving`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import NonNegative, Positive, Section, impossible, once
from pipeline.config.training import Distill, Training

Lower = Literal["fp16", "bf16", "int8"]
ALL: tuple[Lower, ...] = ("fp16", "bf16", "int8")


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


class Calibration(Section):
    method: Literal["minmax", "percentile", "entropy"] = Field(
        default="percentile", description="How int8 ranges of activations follow from the training images."
    )
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = Field(
        default=99.99, description="Share of the magnitudes inside the range, in percent; for that method."
    )
    images: Positive = Field(default=256, description="Training images to calibrate on.")
    weights: Literal["channel", "tensor"] = Field(
        default="channel",
        description="channel: a scale for each output channel of a weight; tensor: one for all of it, for targets "
        "that take no more.",
    )

    @property
    def ranges(self) -> dict[str, Any]:
        """The keys that say how scales follow from the images."""
        return self.model_dump(exclude={"images"})


class Qat(Training):
    """Keys of a training, with defaults for one that starts from trained weights."""

    epochs: Positive = Field(default=5, description="Passes over the training split.")
    optimizer: Literal["sgd", "adamw"] = Field(
        default="adamw", description="sgd: with `momentum`; adamw: betas 0.9, 0.999."
    )
    lr: NonNegative = Field(default=1e-4, description="Peak learning rate, of weights and of the logarithms of scales.")
    weight_decay: NonNegative = Field(default=0.0, description="Decoupled weight decay, scales included.")
    norm_momentum: None = Field(default=None, description="Batch norms are part of the convolutions before them.")
    compile: Literal[False] = Field(default=False, description="Not for this training.")
    ema: None = Field(default=None, description="Not for this training.")
    log: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        default=(), max_length=0, description="Not for this training."
    )
    distill: Distill | Literal["auto"] | None = Field(
        default="auto",
        description="How it learns from the fp32 graph. auto: from its answers alone, {weight: 1, temperature: 4}, "
        "where the task says how far two are apart, else from the targets alone; null: from the targets alone.",
    )

    def teaching(self, distils: bool) -> Distill | None:
        """`distill` for a task that says how far two answers are apart, or does not."""
        if self.distill != "auto":
            return self.distill
        return Distill(weight=1.0) if distils else None


class PrecisionSection(Section):
    graphs: tuple[Literal["fp16", "bf16", "int8", "best"], ...] = Field(
        default=("fp16",),
        description="Lower precisions to write graphs for, beside fp32. best: time them (all three where no other is "
        "listed) and name the fastest within `max_accuracy_drop`.",
    )
    max_accuracy_drop: NonNegative = Field(
        default=1.0, description="Percentage points a graph may lose against its own fp32 one."
    )
    int8_for: Literal["tensorrt", "onnxruntime"] = Field(
        default="tensorrt",
        description="Who runs the int8 graphs: tensorrt: symmetric int8; onnxruntime: the form that its CPU kernels "
        "compute in int8, of which no engine can be built.",
    )
    keep_fp32: str | tuple[str, ...] = Field(
        default="auto",
        description="Layers that stay in fp32, by the name of their weight; auto: the most sensitive, as few as hold "
        "`max_accuracy_drop`.",
    )
    evaluation_images: Positive = Field(default=2000, description="Images of the test split that decide, at most.")
    calibration: Calibration = Field(default_factory=Calibration, description="Ranges for int8.")
    qat: Qat | None = Field(
        default=None,
        description="Train the compact network's int8 graph (quantisation-aware training), e.g. {epochs: 5}; null: "
        "calibrate it only.",
    )
    best_batch: Positive = Field(default=32, description="Batch size that `best` times.")
    best_threads: Annotated[int, Field(ge=1, le=1024)] = Field(default=2, description="Threads that `best` times with.")

    @property
    def fp32_layers(self) -> Literal["auto"] | tuple[str, ...]:
        """`keep_fp32`, whose only text is auto."""
        return "auto" if isinstance(self.keep_fp32, str) else self.keep_fp32

    @property
    def written(self) -> tuple[Lower, ...]:
        """The precisions graphs are written in."""
        listed = tuple(name for name in self.graphs if name != "best")
        return ALL if self.graphs == ("best",) else listed

    @model_validator(mode="after")
    def _possible(self) -> Self:
        once("graphs", self.graphs)
        if self.qat is not None and "int8" not in self.written:
            raise impossible(
                "qat",
                f"qat trains the int8 graph, and graphs has {', '.join(self.graphs) or 'none'}",
                "expected int8 among them",
                "add int8 to precision.graphs, or leave qat out",
            )
        if isinstance(self.keep_fp32, str):
            if self.keep_fp32 != "auto":
                problem, remedy = f"keep_fp32 is {self.keep_fp32}", f"write [{self.keep_fp32}]"
                raise impossible("keep_fp32", problem, "expected auto or a list of layers", remedy)
            return self
        once("keep_fp32", self.keep_fp32)
        if not self.written and self.keep_fp32:
            raise impossible(
                "keep_fp32",
                "keep_fp32 names layers, and no lower precision is written",
                "expected a precision in graphs",
                "list one, or remove keep_fp32",
            )
        return self


class Serving(Section):
    enabled: bool = Field(
        default=False,
        description="Write each graph a second time with preparation inside: `images` uint8 (batch, H, W, C) in.",
    )
    height: Positive | None = Field(default=None, description="Height of the images sent; null: the network's own.")
    width: Positive | None = Field(default=None, description="Width of the images sent; null: the network's own.")
    output: Literal["logits", "probabilities", "top_k", "classes"] = Field(
        default="probabilities",
        description="What comes out; classes: the most probable, of each pixel in segmentation; top_k: `scores` and "
        "`classes` of the `k` most probable.",
    )
    k: Positive = Field(default=5, description="Classes of top_k.")
    max_abs_diff: NonNegative = Field(
        default=1e-3, description="Largest difference from answers to images prepared in Python."
    )

    @model_validator(mode="after")
    def _a_whole_size(self) -> Self:
        if (self.height is None) != (self.width is None):
            one, other = ("height", "width") if self.width is None else ("width", "height")
            raise impossible(other, f"{one} is set and {other} is not", "expected both or none", f"set serving.{other}")
        return self
