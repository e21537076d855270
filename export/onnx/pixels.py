"""Pixels in, answers out: what a server would do around a network, inside its graph.

The image is fitted to the network's size as in training (`runtime.images.Fit`), resized as Pillow resizes with its
bilinear filter (antialiased, each pass rounded to whole levels): two products with constant matrices, because sizes are
fixed and TensorRT has no antialiased Resize. Then it is scaled and normalised as in training. All of that is in fp32,
whatever the network's precision.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.onnx import graph
from export.onnx.rounded import rounded
from runtime.errors import UserError
from runtime.images import Fit

Output = Literal["logits", "probabilities", "top_k", "classes"]


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
    fit: Fit | None = None,
) -> ServedGraph:
    """Writes `source`, a classifier of images (batch, C, H, W) or of their pixels in fp32, with preparation before and
    `output` after it.

    `size`: height and width of the images sent, None for the network's own; another one is made the network's by `fit`,
    None: stretched. `output`: its `logits` (batch, K) or, of pixels, (batch, K, height, width) at the network's size;
    `probabilities`, their softmax over the K; `classes`, the largest's (uint8 of pixels, else int64); or top_k, of
    images: `scores` and `classes` (int64), the `k` largest probabilities. `pixels` are uint8 images
    (N, H, W, C) at the network's own size to compare on. Written only where probabilities (logits) agree within
    `max_abs_diff` with the graph inside on images resized by Pillow and normalised in NumPy, else `UserError`; so too
    where `source` is no such classifier or has fewer than `k` classes.
    """
    model = graph.read_graph(source)
    name, channels, inner = _image_input(model, source)
    assert channels == len(normalisation.mean) == pixels.shape[3]
    outer = size or inner
    served = copy.deepcopy(model)
    policy = Fit("stretch", inner, min(inner)) if fit is None or outer == inner else fit
    assert policy.size == inner, (policy, inner)
    _before(served, name, outer, policy, normalisation)
    classes = _after(served, output, k, source)
    settings = {
        "height": outer[0],
        "width": outer[1],
        "resize": "bilinear",
        "fit": policy.policy,
        "output": output,
        "classes": classes,
    }
    served.metadata_props.add(key="demport.serving", value=json.dumps(settings))
    onnx.checker.check_model(served, full_check=True)
    images = _resized(pixels, outer)
    try:
        answers = graph.run_graph(graph.open_graph(rounded(served)), images)  # no bfloat16 in ONNX Runtime otherwise
        logits = graph.run_graph(graph.open_graph(rounded(model)), prepared(_fitted(images, policy), normalisation))[0]
    except graph.GraphError as error:
        raise UserError(f"ONNX Runtime fails on {source}: {error}", "a graph that runs", "leave serving out") from error
    difference = _difference(answers, logits, output, k)
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


def _fitted(pixels: graph.Array, fit: Fit) -> graph.Array:
    """As training fits images to the network."""
    inner, begin = fit.placed(*pixels.shape[1:3])
    resized = _resized(pixels, inner)
    (rows, inside_rows), (columns, inside_columns) = map(_taken, inner, begin, fit.size)
    background = np.resize(np.array(fit.background, np.uint8), pixels.shape[3])
    whole = np.tile(background, (len(pixels), *fit.size, 1))
    whole[:, inside_rows[:, None], inside_columns] = resized[:, rows[:, None], columns]
    return whole


def _taken(length: int, begin: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions that are taken out of `length`, and where they lie among `size`, which begins at `begin`."""
    inside = np.flatnonzero((np.arange(size) + begin >= 0) & (np.arange(size) + begin < length))
    return inside + begin, inside


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


def _before(model: onnx.ModelProto, name: str, outer: tuple[int, int], fit: Fit, normalisation: Normalisation) -> None:
    """Puts the nodes that turn `images` into the value `name` in front, and makes `images` the input."""
    channels = len(normalisation.mean)
    constants: dict[str, graph.Array] = {}
    nodes: list[onnx.NodeProto] = []
    value = "images"

    def then(kind: str, *others: str, **attributes: int | list[int]) -> None:
        nonlocal value
        output_name = f"serving_{kind.lower()}_{len(nodes)}"
        attributes_of: dict[str, object] = dict(attributes)
        inputs = [*others[:1], value] if others and others[0] == "serving_rows" else [value, *others]
        nodes.append(helper.make_node(kind, inputs, [output_name], name=output_name, **attributes_of))  # type: ignore[arg-type]
        value = output_name

    then("Cast", to=TensorProto.FLOAT)
    then("Transpose", perm=[0, 3, 1, 2])
    if outer != fit.size:
        inner, begin = fit.placed(*outer)
        matrices = [np.zeros((size, before), np.float32) for size, before in zip(fit.size, outer, strict=True)]
        empty = np.ones(fit.size, bool)
        parts = [_taken(*row) for row in zip(inner, begin, fit.size, strict=True)]
        for matrix, before, after, (positions, inside) in zip(matrices, outer, inner, parts, strict=True):
            matrix[inside] = bilinear(before, after)[positions]
        empty[np.ix_(parts[0][1], parts[1][1])] = False
        constants |= {"serving_columns": matrices[1].T, "serving_rows": matrices[0]}
        constants["serving_half"] = np.array(0.5, np.float32)
        for step in ("serving_columns", "serving_rows"):
            then("MatMul", step)
            then("Add", "serving_half")
            then("Floor")
        if empty.any():
            colour = np.resize(np.array(fit.background, np.float32), channels)
            constants["serving_background"] = colour[None, :, None, None] * empty
            then("Add", "serving_background")
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
    nodes_of_network = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.input.append(images)
    model.graph.node.extend([*nodes, *nodes_of_network])
    model.graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in constants.items())


def _after(model: onnx.ModelProto, output: Output, k: int, source: Path) -> int:
    """Appends softmax and the largest k; the number of classes."""
    specs = {spec.name: spec for spec in graph.outputs_of(model)}
    spec = specs.get("logits") or next(iter(specs.values()))
    pixels = [side for side in spec.shape[2:] if side is not None]
    classes = spec.shape[1] if len(spec.shape) in (2, 4) and len(pixels) == len(spec.shape) - 2 else None
    if classes is None or (output == "top_k" and (k > classes or pixels)):
        raise UserError(
            f"{source} has the outputs {graph.listing(tuple(specs.values()))}",
            f"logits (batch, classes) of at least {k} classes"
            if output == "top_k"
            else "logits (batch, classes), or of each pixel",
            "set serving.output: classes for pixels, lower serving.k, or leave serving out",
        )
    if output == "logits":
        return classes
    batch = model.graph.output[0].type.tensor_type.shape.dim[0].dim_param or spec.shape[0]
    nodes, infos = _answers(spec.name, output, k, batch, classes, pixels)
    model.graph.node.extend(nodes)
    if output == "top_k":
        model.graph.initializer.append(numpy_helper.from_array(np.array([k], np.int64), "serving_k"))
    del model.graph.output[:]
    model.graph.output.extend(infos)
    return classes


def _answers(
    logits: str, output: Output, k: int, batch: object, classes: int, pixels: list[int]
) -> tuple[list[onnx.NodeProto], list[onnx.ValueInfoProto]]:
    """The nodes after the logits, and what they give."""

    def info(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [batch, *shape])  # type: ignore[list-item]

    if output == "classes":
        label = "serving_label" if pixels else "classes"
        largest = helper.make_node("ArgMax", [logits], [label], axis=1, keepdims=0, name="serving_largest")
        if not pixels:
            return [largest], [info("classes", TensorProto.INT64)]
        cast = helper.make_node("Cast", [label], ["classes"], to=TensorProto.UINT8, name="serving_classes")
        return [largest, cast], [info("classes", TensorProto.UINT8, *pixels)]
    soft = "probabilities" if output == "probabilities" else "serving_softmax"
    softmax = helper.make_node("Softmax", [logits], [soft], axis=1, name="serving_softmax")
    if output == "probabilities":
        return [softmax], [info("probabilities", TensorProto.FLOAT, classes, *pixels)]
    top = helper.make_node("TopK", [soft, "serving_k"], ["scores", "classes"], axis=1, name="serving_top_k")
    return [softmax, top], [info("scores", TensorProto.FLOAT, k), info("classes", TensorProto.INT64, k)]


def _difference(answers: list[graph.Array], logits: graph.Array, output: Output, k: int) -> float:
    """Of logits or probabilities; classes are compared by the probability that Python gives them."""
    if output == "logits":
        return graph.worst_difference(answers, [logits])
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    expected = shifted / shifted.sum(axis=1, keepdims=True)
    if output == "probabilities":
        return graph.worst_difference(answers, [expected])
    if output == "classes":
        chosen = np.take_along_axis(expected, answers[0][:, None].astype(np.int64), axis=1)
        return graph.worst_difference([chosen], [expected.max(axis=1, keepdims=True)])
    largest = -np.sort(-expected, axis=1)[:, :k]
    named = np.take_along_axis(expected, answers[1], axis=1)  # classes of equal probability may change places
    return graph.worst_difference([answers[0], named], [largest, largest])
