"""A detector's graph with non-maximum suppression inside: the best boxes of each image come out, as many for each.

The outputs have the names and types of TensorRT's EfficientNMS, which detectors are commonly exported with; the nodes
are plain ONNX (NonMaxSuppression, ScatterND, TopK), so any runtime takes them, at any batch size.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx import graph
from export.onnx.rounded import rounded
from runtime.errors import UserError

OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")
CLOSE = 1e-3
"""How far boxes (shares of the image) and scores may lie from those that Python keeps."""


@dataclass(frozen=True)
class Nms:
    """Scores at or below `score_threshold` are none; a box goes that overlaps a better one of its class by more than
    `iou_threshold`; at most `max_detections` of an image."""

    score_threshold: float
    iou_threshold: float
    max_detections: int


Reference = Callable[[graph.Array, graph.Array], list[graph.Array]]
"""boxes (N, A, 4), scores (N, A, K) -> of each image (D, 6): x1, y1, x2, y2, score, class, the best first."""


def with_nms(source: Path, path: Path, nms: Nms, samples: graph.Array, reference: Reference) -> Path:
    """Writes `source`, which gives `boxes` (batch, A, 4) and `scores` (batch, A, K), with NMS after it to `path`:

    num_dets int32 (batch, 1); det_boxes float32 (batch, D, 4), det_scores float32 (batch, D) and det_classes int32
    (batch, D), of which the first num_dets count and the others are 0 and -1. UserError: the source has no such
    outputs, or on `samples` (N, C, H, W) the detections are not those of `reference`.
    """
    model = graph.read_graph(source)
    specs = {spec.name: spec for spec in graph.outputs_of(model)}
    shapes = [specs[name].shape[1:] if name in specs else () for name in ("boxes", "scores")]
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or None in (*shapes[0], *shapes[1]) or shapes[0][1] != 4:
        listed = graph.listing(tuple(specs.values()))
        raise UserError(
            f"{source} has the outputs {listed}", "boxes (batch, A, 4) and scores (batch, A, K)", "export it so"
        )
    outputs = graph.run_graph(graph.open_graph(rounded(model)), samples)
    boxes, scores = (outputs[list(specs).index(name)].astype(np.float32) for name in ("boxes", "scores"))
    expected = reference(boxes, scores)
    _append(model, nms, int(shapes[1][0] or 0), int(shapes[1][1] or 0))
    model.metadata_props.add(key="demport.nms", value=json.dumps(asdict(nms)))
    onnx.checker.check_model(model, full_check=True)
    answers = graph.run_graph(graph.open_graph(rounded(model)), samples)
    _demand_same(answers, expected, source)
    graph.write_graph(model, path)
    return path


def _append(model: onnx.ModelProto, nms: Nms, anchors: int, classes: int) -> None:
    """The nodes after `boxes` (batch, anchors, 4) and `scores` (batch, anchors, classes)."""
    most = min(nms.max_detections, anchors * classes)
    whole: dict[str, object] = {
        "most": [nms.max_detections], "top": [most], "anchors": anchors, "flat": [0, -1], "last": [-1], "one": [1],
        "none": 0, "no_class": -1,
    }  # fmt: skip
    real: dict[str, object] = {"iou": [nms.iou_threshold], "score": [nms.score_threshold], "zero": 0.0}
    constants = {name: np.array(value, np.int64) for name, value in whole.items()}
    constants |= {name: np.array(value, np.float32) for name, value in real.items()}
    for name, array in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(array, f"nms_{name}"))
    low = helper.make_tensor("value", TensorProto.FLOAT, [1], [-1.0])
    steps: list[tuple[str, str, str, dict[str, object]]] = [
        ("Cast", "boxes", "nms_corners", {"to": TensorProto.FLOAT}),
        ("Cast", "scores", "nms_wide", {"to": TensorProto.FLOAT}),
        ("Transpose", "nms_wide", "nms_by_class", {"perm": [0, 2, 1]}),
        ("NonMaxSuppression", "nms_corners nms_by_class nms_most nms_iou nms_score", "nms_places", {}),
        ("GatherND", "nms_by_class nms_places", "nms_values", {}),
        ("Shape", "nms_by_class", "nms_shape", {}),
        ("ConstantOfShape", "nms_shape", "nms_nothing", {"value": low}),
        ("ScatterND", "nms_nothing nms_places nms_values", "nms_scattered", {}),
        ("Reshape", "nms_scattered nms_flat", "nms_row", {}),
        ("TopK", "nms_row nms_top", "nms_best nms_index", {"axis": 1}),
        ("Greater", "nms_best nms_zero", "nms_valid", {}),
        ("Div", "nms_index nms_anchors", "nms_label", {}),
        ("Mod", "nms_index nms_anchors", "nms_anchor", {}),
        ("Unsqueeze", "nms_anchor nms_last", "nms_rows", {}),
        ("GatherND", "nms_corners nms_rows", "nms_boxes", {"batch_dims": 1}),
        ("Unsqueeze", "nms_valid nms_last", "nms_valid_boxes", {}),
        ("Where", "nms_valid_boxes nms_boxes nms_zero", "det_boxes", {}),
        ("Where", "nms_valid nms_best nms_zero", "det_scores", {}),
        ("Where", "nms_valid nms_label nms_no_class", "nms_classes", {}),
        ("Cast", "nms_classes", "det_classes", {"to": TensorProto.INT32}),
        ("Cast", "nms_valid", "nms_counted", {"to": TensorProto.INT32}),
        ("ReduceSum", "nms_counted nms_one", "num_dets", {"keepdims": 1}),
    ]
    for kind, inputs, outputs, attributes in steps:
        node = helper.make_node(kind, inputs.split(), outputs.split(), name=outputs.split()[0], **attributes)  # type: ignore[arg-type]
        model.graph.node.append(node)
    batch = model.graph.output[0].type.tensor_type.shape.dim[0]
    del model.graph.output[:]
    sizes = {"num_dets": [1], "det_boxes": [most, 4], "det_scores": [most], "det_classes": [most]}
    for name in OUTPUTS:
        kind_of = TensorProto.FLOAT if name in ("det_boxes", "det_scores") else TensorProto.INT32
        info = helper.make_tensor_value_info(name, kind_of, [1, *sizes[name]])
        info.type.tensor_type.shape.dim[0].CopyFrom(batch)
        model.graph.output.append(info)


def _demand_same(answers: list[graph.Array], expected: list[graph.Array], source: Path) -> None:
    """UserError where an image's detections are not those expected, whatever the order of equal scores."""
    counts, boxes, scores, classes = answers
    for index, rows in enumerate(expected):
        count = int(counts[index, 0])
        own = np.concatenate([boxes[index], scores[index][:, None], classes[index][:, None]], 1)[:count]
        if count != len(rows):
            raise UserError(
                f"the graph with NMS of {source} gives {count} detections of image {index}",
                f"{len(rows)}, as NMS in Python",
                "raise task.candidates, or leave task.nms_in_graph out",
            )
        far = [np.abs(own - row).max(axis=1).min() for row in rows]
        if count and not max(far) <= CLOSE:
            raise UserError(
                f"detections of the graph with NMS of {source} are {max(far):.3g} off",
                f"at most {CLOSE:g}",
                "report it",
            )
