"""The sections `precision` and `serving`: graphs in lower precision and what they may cost; graphs that take pixels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config_section import NonNegative, Positive, Section, impossible, once

Lower = Literal["fp16", "bf16", "int8"]
ALL: tuple[Lower, ...] = ("fp16", "bf16", "int8")


class Calibration(Section):
    method: Literal["minmax", "percentile", "entropy"] = Field(
        default="percentile", description="How int8 ranges of activations follow from the training images."
    )
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = Field(
        default=99.99, description="Share of the magnitudes inside the range, in percent; for that method."
    )
    images: Positive = Field(default=256, description="Training images to calibrate on.")


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
    best_batch: Positive = Field(default=32, description="Batch size that `best` times.")
    best_threads: Annotated[int, Field(ge=1, le=1024)] = Field(default=2, description="Threads that `best` times with.")

    @property
    def kept(self) -> Literal["auto"] | tuple[str, ...]:
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
        if isinstance(self.keep_fp32, str):
            if self.keep_fp32 != "auto":
                found, remedy = f"keep_fp32 is {self.keep_fp32}", f"write [{self.keep_fp32}]"
                raise impossible("keep_fp32", found, "expected auto or a list of layers", remedy)
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
    output: Literal["logits", "probabilities", "top_k"] = Field(
        default="probabilities", description="What comes out; top_k: `scores` and `classes` of the `k` most probable."
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
