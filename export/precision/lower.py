"""A lower precision written into the graph: TensorRT's networks are strongly typed and follow it.

fp16 and bf16 by casting (`half.py`), int8 by pairs of quantisation and dequantisation (`int8.py`). What a graph
loses is measured before it is written: int8 in ONNX Runtime as it is, fp16 and bf16 with every value rounded
(`rounded.py`). Where it loses more than allowed, the layers that it hurts most stay in fp32 (`sensitivity.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto

from export.onnx import graph
from export.onnx.rounded import rounded, value_types
from export.precision.counts import Precision as Precision
from export.precision.counts import counts, demand_layers
from export.precision.half import FP16_MAX, Half, peaks, to_half, too_large
from export.precision.int8 import WEIGHTED, Calibration, layers_of, quantise, ranges_of
from export.precision.pairs import Tune, Tuning, Values, with_constants, with_values
from export.precision.sensitivity import LayerError, Make, fewest, rank
from runtime.errors import UserError
from runtime.measure.judged import Judge, Judged, Judging, chosen

BATCH_SIZES = (1, 4)
RANKED_IMAGES = 32


@dataclass(frozen=True)
class Images:
    """What a lower precision is made and judged with; each call gives its batches anew, float32 (B, C, H, W).

    `samples` are rows for comparing values; `calibration` training images; `evaluation` images with their targets
    (B, ...); `judge` judges outputs by them.
    """

    samples: graph.Array
    calibration: Callable[[], Iterable[graph.Array]]
    evaluation: Callable[[], Iterable[tuple[graph.Array, graph.Array]]]
    judge: Judge


@dataclass(frozen=True)
class Rules:
    """`max_accuracy_drop` in percentage points against fp32, on the evaluation images.

    `keep_fp32`: layers that stay in fp32, by the name of the node or of its weight; auto: as few as are needed.
    `tune` trains the int8 graph before it is judged.
    """

    max_accuracy_drop: float
    keep_fp32: Literal["auto"] | tuple[str, ...] = "auto"
    calibration: Calibration = field(default_factory=Calibration)
    tune: Tune | None = None


@dataclass(frozen=True)
class LayerInFp32:
    """A layer that stays in fp32; `error` is that of `LayerError`, None where something else is the reason."""

    layer: str
    weight: str
    reason: str
    error: float | None


@dataclass(frozen=True)
class CastGraph:
    """A graph in lower precision with fp32 inputs and outputs.

    `nodes_low`, `nodes_fp32`: nodes that compute in the precision and in fp32; `layers`: convolutions and matrix
    products among all of them. `conversions`: casts, or quantisations. `max_abs_diff`: largest difference of the
    outputs from the fp32 graph's, on the samples. `largest`: largest magnitude of an activation in fp16 (None
    elsewhere). `accuracy` and `accuracy_fp32` are the metric of the `images` evaluated, `drop_pp` their difference in
    percentage points; `holds`: it is at most what is allowed. `measured_by` says how the values were made. `tuning`:
    None for a graph that was not trained in its precision.
    """

    path: Path
    precision: Precision
    opset: int
    nodes_low: int
    nodes_fp32: int
    layers: int
    conversions: int
    bytes: int
    max_abs_diff: float
    largest: float | None
    accuracy: float
    accuracy_fp32: float
    drop_pp: float
    images: int
    holds: bool
    kept: tuple[LayerInFp32, ...]
    measured_by: str
    tuning: Tuning | None = None


MEASURED_BY = {
    "fp16": "ONNX Runtime in fp32, every value rounded to fp16",
    "bf16": "ONNX Runtime in fp32, every value rounded to bfloat16: it has no bfloat16 convolution on the CPU",
    "int8": "ONNX Runtime",
}


class Lowering:
    """One fp32 graph, to be written in several precisions. `UserError`: it is unreadable or does not run."""

    def __init__(self, source: Path, images: Images) -> None:
        self.source, self.images = source, images
        self.model = graph.read_graph(source)
        graph.name_nodes(self.model)
        self.feeds = graph.feeds_of(self.model, images.samples, source)
        if len(self.feeds) != 1:
            inputs = graph.listing(graph.inputs_of(self.model))
            raise UserError(f"{source} has the inputs {inputs}", "one, the images", "export a classifier")
        self.layers = layers_of(self.model)
        weight = {node.name: node.input[1] for node in self.model.graph.node if node.op_type in WEIGHTED}
        self.weights = {name: weight[name].removesuffix(".weight") for name in self.layers}

    @cached_property
    def full(self) -> Judged:
        """The fp32 graph on the evaluation images."""
        return self._judged(self.model)

    @cached_property
    def _peaks(self) -> dict[str, float]:
        return peaks(self.model, graph.rows(self.images.samples, graph.fixed_batch(self.model) or 4))

    def write(self, path: Path, precision: Precision, rules: Rules) -> CastGraph:
        """Writes the graph in `precision` to `path`, the layers that `rules` say in fp32, inputs and outputs in fp32.

        Where `keep_fp32` is auto and not even all layers but one are enough, none stays and `holds` is false.
        `UserError`: a weight or an activation is beyond 65504 and may not stay in fp32, no layer ends in the
        precision, a layer of `keep_fp32` is unknown, there is no image, or a converter or ONNX Runtime fails.
        """
        try:
            forced = self._named(rules.keep_fp32) | (self._beyond_fp16(rules) if precision == "fp16" else {})
            make, tuning = self._maker(precision, rules, forced)
            exempt, low = self._search(make, precision, rules, forced)
            runnable = low if precision == "int8" else rounded(low)
            judged = self._judged(runnable)
            difference = self._difference(runnable)
        except graph.GraphError as error:
            raise UserError(
                f"ONNX Runtime fails on {self.source} or its {precision} form: {error}",
                "a graph that runs", f"leave {precision} out",
            ) from error  # fmt: skip
        demand_layers(low, precision, self.source)
        own = rules.calibration.runtime == "onnxruntime"
        drop = 100 * (self.full.value - judged.value)
        size = graph.write_graph(low, path)
        return CastGraph(
            path,
            precision,
            graph.opset_of(low),
            *counts(low, precision),
            bytes=size,
            max_abs_diff=difference,
            largest=self._largest(low) if precision == "fp16" else None,
            accuracy=judged.value,
            accuracy_fp32=self.full.value,
            drop_pp=drop,
            images=len(judged.scores),
            holds=drop <= rules.max_accuracy_drop,
            kept=exempt,
            measured_by=MEASURED_BY[precision] + (", in its own form" if precision == "int8" and own else ""),
            tuning=tuning,
        )

    def _maker(
        self, precision: Precision, rules: Rules, forced: Collection[str]
    ) -> tuple[Callable[..., onnx.ModelProto], Tuning | None]:
        """keep -> the graph with those layers, and `forced`, in fp32; and what training it took."""
        if precision != "int8":
            half: Half = precision
            return lambda keep: to_half(self.model, half, {*keep, *forced}, self.source), None
        ranges = ranges_of(self.source, self.images.calibration(), rules.calibration)

        def paired(keep: Collection[str], model: onnx.ModelProto = self.model) -> onnx.ModelProto:
            return quantise(model, ranges, {*keep, *forced}, self.source, rules.calibration)

        if rules.tune is None:
            return paired, None
        calibrated = paired(())
        demand_layers(calibrated, precision, self.source)
        before = self._judged(calibrated).value
        values: Values = rules.tune(self.model, calibrated)
        trained = with_constants(self.model, values)
        tuning = Tuning(values.epochs, values.seconds, before)
        return lambda keep: with_values(self.model, paired(keep, trained), values), tuning

    def _search(
        self, make: Make, precision: Precision, rules: Rules, forced: dict[str, str]
    ) -> tuple[tuple[LayerInFp32, ...], onnx.ModelProto]:
        """The layers that stay in fp32, and the graph with them there."""

        def runnable(keep: Collection[str]) -> onnx.ModelProto:
            return make(keep) if precision == "int8" else rounded(make(keep))

        def holds(keep: Collection[str]) -> bool:
            return 100 * (self.full.value - self._judged(runnable(keep)).value) <= rules.max_accuracy_drop

        already = tuple(LayerInFp32(name, self.weights.get(name, ""), why, None) for name, why in forced.items())
        if rules.keep_fp32 != "auto" or holds(()):
            return already, make(())
        free = [name for name in self.layers if name not in forced]
        batches = self._ranking_batches()
        session = graph.open_graph(self.model)
        ranked = rank(free, runnable, [graph.run_graph(session, feeds) for feeds in batches], batches)
        count = fewest(len(free) - 1, lambda n: holds([item.layer for item in ranked[:n]]))
        chosen = ranked[: count or 0]
        return already + tuple(map(self._sensitive, chosen)), make([item.layer for item in chosen])

    def _sensitive(self, item: LayerError) -> LayerInFp32:
        return LayerInFp32(
            item.layer, self.weights[item.layer], "sensitive", item.error if np.isfinite(item.error) else None
        )

    def _ranking_batches(self) -> list[graph.Feeds]:
        """The first calibration images, in batches of 8."""
        (name,) = self.feeds
        taken: list[graph.Array] = []
        for batch in self.images.calibration():
            taken.append(batch[: RANKED_IMAGES - sum(map(len, taken))])
            if sum(map(len, taken)) >= RANKED_IMAGES:
                break
        rows = np.concatenate(taken) if taken else self.feeds[name]
        size = graph.fixed_batch(self.model) or 8
        return [{name: graph.rows(rows[start:], size)} for start in range(0, len(rows), size)]

    def _judged(self, model: onnx.ModelProto) -> Judged:
        session, fixed = graph.open_graph(model), graph.fixed_batch(model)
        names, judging = [spec.name for spec in graph.outputs_of(model)], Judging(self.images.judge)
        for images, targets in self.images.evaluation():
            for start in range(0, len(images), fixed or max(len(images), 1)):
                piece = images[start : start + (fixed or len(images))]
                values = graph.run_graph(session, graph.rows(piece, fixed or len(piece)))
                each = {name: value[: len(piece)] for name, value in zip(names, values, strict=True)}
                judging.add(chosen(each, self.images.judge.outputs, str(self.source)), targets[start:][: len(piece)])
        if not judging.scores:
            raise UserError("no images to measure the accuracy on", "at least one", "check the data section")
        return judging.judged()

    def _difference(self, runnable: onnx.ModelProto) -> float:
        full, low = graph.open_graph(self.model), graph.open_graph(runnable)
        fixed = graph.fixed_batch(self.model)
        batches = [graph.rows(self.images.samples, n) for n in (BATCH_SIZES if fixed is None else (fixed,))]
        return max(graph.worst_difference(graph.run_graph(full, x), graph.run_graph(low, x)) for x in batches)

    def _named(self, keep: Literal["auto"] | Sequence[str]) -> dict[str, str]:
        """Layer -> why, of the layers that the config names by node or by weight."""
        if keep == "auto":
            return {}
        by_name = {name: name for name in self.layers} | {weight: name for name, weight in self.weights.items()}
        unknown = [name for name in keep if name not in by_name]
        if unknown:
            names = ", ".join(sorted(set(self.weights.values()))[:12])
            expected = f"a layer of {self.source}, e.g. {names}"
            raise UserError(f"precision.keep_fp32 names {unknown[0]!r}", expected, "name one of them")
        return {by_name[name]: "precision.keep_fp32" for name in keep}

    def _beyond_fp16(self, rules: Rules) -> dict[str, str]:
        """Node -> why, of the nodes that read or write values beyond 65504. `UserError` unless `keep_fp32` is auto."""
        names = {name: f"holds {peak:.6g}" for name, peak in too_large(self.model).items()}
        reached = {name: peak for name, peak in self._peaks.items() if not peak <= FP16_MAX and name not in names}
        names |= {name: f"reaches {peak:.6g} on the samples" for name, peak in reached.items()}
        if names and rules.keep_fp32 != "auto":
            name, why = next(iter(names.items()))
            expected = "weights and activations up to 65504, the end of fp16"
            remedy = "set precision.keep_fp32: auto, or leave fp16 out"
            raise UserError(f"{name!r} in {self.source} {why}", expected, remedy)
        return {
            node.name: f"{name} {names[name]}"
            for node in self.model.graph.node
            for name in (*node.input, *node.output)
            if name in names
        }

    def _largest(self, low: onnx.ModelProto) -> float:
        types = value_types(low)
        low_ones = (peak for name, peak in self._peaks.items() if types.get(name) == TensorProto.FLOAT16)
        return max(low_ones, default=0.0)
