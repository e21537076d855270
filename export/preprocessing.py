"""Pixels in, answers out: what a server would do around a network, inside its graph.

The image is resized as Pillow resizes with its bilinear filter (antialiased, each pass rounded to whole levels): two
products with constant matrices, because sizes are fixed and TensorRT has no antialiased Resize. Then it is scaled and
normalised as in training. All of that is in fp32, whatever the network's precision.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export import graph
from export.rounded import rounded
from runtime.errors import UserError

Output = Literal["logits", "probabilities", "top_k"]


@dataclass(frozen=True)
class Normalisation:
    """(pixel / scale - mean) / std for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float


@dataclass(frozen=True)
class ServedGraph:
    """A graph with the input `images` uint8 (batch, height, width, channels).

    `max_abs_diff`: largest difference of its answers from those of the graph inside on images prepared in Python.
    """

    path: Path
    height: int
    width: int
    output: Output
    bytes: int
    max_abs_diff: float


def serve_pixels(
    source: Path,
    path: Path,
    *,
    normalisation: Normalisation,
    size: tuple[int, int] | None,
    output: Output,
    k: int,
    pixels: graph.Array,
    max_abs_diff: float,
) -> ServedGraph:
    """Writes `source`, a classifier of (batch, C, H, W) in fp32, with preparation before and `output` after it.

    `size`: height and width of the images sent, None for the network's own. `output`: its `logits`; `probabilities`,
    their softmax; or top_k: `scores` and `classes` (int64), the `k` largest probabilities. `pixels` are uint8 images
    (N, H, W, C) at the network's own size to compare on. Written only where probabilities (logits) agree within
    `max_abs_diff` with the graph inside on images resized by Pillow and normalised in NumPy, else `UserError`; so too
    where `source` is no such classifier or has fewer than `k` classes.
    """
    model = graph.read_graph(source)
    name, channels, inner = _image_input(model, source)
    assert channels == len(normalisation.mean) == pixels.shape[3]
    outer = size or inner
    served = copy.deepcopy(model)
    _before(served, name, outer, inner, normalisation)
    classes = _after(served, output, k, source)
    told = {"height": outer[0], "width": outer[1], "resize": "bilinear", "output": output, "classes": classes}
    served.metadata_props.add(key="demport.serving", value=json.dumps(told))
    onnx.checker.check_model(served, full_check=True)
    images = _resized(pixels, outer)
    try:
        given = graph.run_graph(graph.open_graph(rounded(served)), images)  # no bfloat16 in ONNX Runtime otherwise
        logits = graph.run_graph(graph.open_graph(rounded(model)), prepared(_resized(images, inner), normalisation))[0]
    except graph.GraphError as error:
        raise UserError(f"ONNX Runtime fails on {source}: {error}", "a graph that runs", "leave serving out") from error
    difference = _difference(given, logits, output, k)
    if not difference <= max_abs_diff:
        raise UserError(
            f"answers to pixels differ by {difference:.3g} from those to images prepared in Python",
            f"at most {max_abs_diff:g}",
            "raise serving.max_abs_diff, or leave serving out",
        )
    written = graph.write_graph(served, path)
    return ServedGraph(path, *outer, output, written, difference)


def prepared(pixels: graph.Array, normalisation: Normalisation) -> graph.Array:
    """float32 (N, C, H, W) of uint8 (N, H, W, C), as in training."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (normalisation.mean, normalisation.std))
    planes = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(normalisation.scale)
    return np.ascontiguousarray((planes - mean) / std)


def pixels_of(images: graph.Array, normalisation: Normalisation) -> graph.Array:
    """uint8 (N, H, W, C), the inverse of `prepared`; `UserError` where the images were no whole levels up to 255."""
    mean, std = (np.array(values, np.float64)[:, None, None] for values in (normalisation.mean, normalisation.std))
    levels = (images.astype(np.float64) * std + mean) * normalisation.scale
    whole = np.clip(np.rint(levels), 0, 255)
    if np.abs(levels - whole).max() > 0.01:
        raise UserError("the images are not whole levels from 0 to 255", "pixels", "leave serving out for such data")
    return np.ascontiguousarray(whole.astype(np.uint8).transpose(0, 2, 3, 1))


def _image_input(model: onnx.ModelProto, source: Path) -> tuple[str, int, tuple[int, int]]:
    """Name, channels, and height and width of the only input."""
    inputs = graph.inputs_of(model)
    dims = [dim for dim in inputs[0].shape[1:] if dim is not None] if inputs else []
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or len(dims) != 3 or inputs[0].dtype != "float32":
        raise UserError(
            f"{source} has the inputs {graph.listing(inputs)}", "float32 (batch, C, H, W)", "leave serving out"
        )
    return inputs[0].name, dims[0], (dims[1], dims[2])


def _resized(pixels: graph.Array, size: tuple[int, int]) -> graph.Array:
    """By Pillow, each channel by itself."""
    from PIL import Image

    if pixels.shape[1:3] == size:
        return pixels
    resize = [
        [Image.fromarray(image[:, :, c]).resize(size[::-1], Image.Resampling.BILINEAR) for c in range(image.shape[2])]
        for image in pixels
    ]
    return np.stack([np.stack([np.asarray(plane) for plane in planes], axis=-1) for planes in resize])


def bilinear(before: int, after: int) -> graph.Array:
    """float32 (after, before): the weights of Pillow's bilinear filter along one axis, rows summing to 1."""
    step = before / after
    reach = max(step, 1.0)
    centres = (np.arange(after)[:, None] + 0.5) * step
    first = np.maximum((centres - reach + 0.5).astype(int), 0)
    last = np.minimum((centres + reach + 0.5).astype(int), before)
    positions = np.arange(before)[None, :]
    weights = np.maximum(1.0 - np.abs((positions + 0.5 - centres) / reach), 0.0)
    weights[(positions < first) | (positions >= last)] = 0.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _before(
    model: onnx.ModelProto, name: str, outer: tuple[int, int], inner: tuple[int, int], normalisation: Normalisation
) -> None:
    """Puts the nodes that turn `images` into the value `name` in front, and makes `images` the input."""
    channels = len(normalisation.mean)
    constants: dict[str, graph.Array] = {}
    nodes: list[onnx.NodeProto] = []
    value = "images"

    def then(kind: str, *others: str, **attributes: int | list[int]) -> None:
        nonlocal value
        made = f"serving_{kind.lower()}_{len(nodes)}"
        attributes_of: dict[str, object] = dict(attributes)
        inputs = [*others[:1], value] if others and others[0] == "serving_rows" else [value, *others]
        nodes.append(helper.make_node(kind, inputs, [made], name=made, **attributes_of))  # type: ignore[arg-type]
        value = made

    then("Cast", to=TensorProto.FLOAT)
    then("Transpose", perm=[0, 3, 1, 2])
    if outer != inner:
        constants |= {"serving_columns": bilinear(outer[1], inner[1]).T, "serving_rows": bilinear(outer[0], inner[0])}
        constants["serving_half"] = np.array(0.5, np.float32)
        for matrix in ("serving_columns", "serving_rows"):
            then("MatMul", matrix)
            then("Add", "serving_half")
            then("Floor")
    scale = np.float32(normalisation.scale)
    shape = (1, channels, 1, 1)
    constants["serving_mean"] = (np.array(normalisation.mean, np.float32) * scale).reshape(shape)
    constants["serving_spread"] = (np.array(normalisation.std, np.float32) * scale).reshape(shape)
    then("Sub", "serving_mean")
    then("Div", "serving_spread")
    nodes[-1].output[0] = name
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, *outer, channels])
    images.type.tensor_type.shape.dim[0].CopyFrom(batch)
    kept = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.input.append(images)
    model.graph.node.extend([*nodes, *kept])
    model.graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in constants.items())


def _after(model: onnx.ModelProto, output: Output, k: int, source: Path) -> int:
    """Appends softmax and the largest k; the number of classes."""
    specs = {spec.name: spec for spec in graph.outputs_of(model)}
    spec = specs.get("logits") or next(iter(specs.values()))
    classes = spec.shape[1] if len(spec.shape) == 2 else None
    if classes is None or (output == "top_k" and k > classes):
        raise UserError(
            f"{source} has the outputs {graph.listing(tuple(specs.values()))}",
            f"logits (batch, classes) of at least {k} classes" if output == "top_k" else "logits (batch, classes)",
            "lower serving.k, or leave serving out",
        )
    if output == "logits":
        return classes
    batch = model.graph.output[0].type.tensor_type.shape.dim[0].dim_param or spec.shape[0]
    soft = "probabilities" if output == "probabilities" else "serving_softmax"
    model.graph.node.append(helper.make_node("Softmax", [spec.name], [soft], axis=1, name="serving_softmax"))
    made = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, classes])]
    if output == "top_k":
        model.graph.initializer.append(numpy_helper.from_array(np.array([k], np.int64), "serving_k"))
        names = ["scores", "classes"]
        model.graph.node.append(helper.make_node("TopK", [soft, "serving_k"], names, axis=1, name="serving_top_k"))
        types = (TensorProto.FLOAT, TensorProto.INT64)
        made = [helper.make_tensor_value_info(n, kind, [batch, k]) for n, kind in zip(names, types, strict=True)]
    del model.graph.output[:]
    model.graph.output.extend(made)
    return classes


def _difference(given: list[graph.Array], logits: graph.Array, output: Output, k: int) -> float:
    """Of logits or probabilities; classes are compared by the probability that Python gives them."""
    if output == "logits":
        return graph.worst_difference(given, [logits])
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    expected = shifted / shifted.sum(axis=1, keepdims=True)
    if output == "probabilities":
        return graph.worst_difference(given, [expected])
    largest = -np.sort(-expected, axis=1)[:, :k]
    named = np.take_along_axis(expected, given[1], axis=1)  # classes of equal probability may change places
    return graph.worst_difference([given[0], named], [largest, largest])
