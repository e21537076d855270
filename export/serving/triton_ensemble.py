"""Pixels in, class name out: an ONNX graph before the network, one after it, and Triton's ensemble of the three.

Everything runs in ONNX Runtime, so that a published folder holds no code. Decoding a JPEG is left to the client: ONNX
Runtime has no operator for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.onnx.graph import Array, TensorSpec, open_graph, write_graph
from export.serving.pbtxt import Signature, quoted, tensor_lines
from export.serving.recorded import Exchange, answers
from export.serving.release_index import ImageInput
from runtime.images import Fit

IMAGE, CLASS, PROBABILITY = "image", "class", "probability"
PIXELS, NAMES, CLASSIFY = "pixels", "names", "classify"  # suffixes of the models' names
SAMPLE = "sample.png"
_OPSET, _IR = 18, 10


@dataclass(frozen=True)
class Images:
    """Images before normalisation, (N, H, W, C) uint8 or float32 in 0..`high`; a network takes
    (pixel / scale - mean) / std as (N, C, H, W), mean and std per channel.
    """

    pixels: Array
    mean: Sequence[float]
    std: Sequence[float]
    scale: float
    high: float
    fit: Fit | None = None

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(IMAGE, str(self.pixels.dtype), (None, *self.pixels.shape[1:]))

    @property
    def described(self) -> ImageInput:
        height, width, channels = self.pixels.shape[1:]
        dtype: Any = str(self.pixels.dtype)
        described = ImageInput(height=height, width=width, channels=channels, dtype=dtype, high=float(self.high))
        if (fit := self.fit) is None:
            return described
        fitted = {"fit": fit.policy, "resize": fit.resize, "background": list(fit.background)}
        return described.model_copy(update=fitted)


def fits(images: Images, signature: Signature, labels: Sequence[str]) -> bool:
    """Whether the model takes these images, one by one, and answers with a logit for each label."""
    height, width, channels = images.pixels.shape[1:]
    inputs = [(spec.dtype, spec.shape) for spec in signature.inputs]
    outputs = [(spec.dtype, spec.shape) for spec in signature.outputs]
    wanted_in, wanted_out = ("float32", (None, channels, height, width)), ("float32", (None, len(labels)))
    return signature.max_batch > 0 and inputs == [wanted_in] and outputs == [wanted_out]


def pixels_graph(images: Images) -> onnx.ModelProto:
    """`image` (batch, H, W, C) -> `input` float32 (batch, C, H, W), as the network was trained on."""
    height, width, channels = images.pixels.shape[1:]
    kind = TensorProto.UINT8 if images.pixels.dtype == np.uint8 else TensorProto.FLOAT
    constants = {
        "scale": np.float32(images.scale),
        "mean": np.array(images.mean, np.float32).reshape(-1, 1, 1),
        "std": np.array(images.std, np.float32).reshape(-1, 1, 1),
    }
    nodes = [
        helper.make_node("Cast", [IMAGE], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["turned", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["input"]),
    ]
    return _graph(
        PIXELS,
        nodes,
        [helper.make_tensor_value_info(IMAGE, kind, ["batch", height, width, channels])],
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", channels, height, width])],
        constants,
    )


def names_graph(labels: Sequence[str]) -> onnx.ModelProto:
    """`logits` float32 (batch, classes) -> `class`, the name, and `probability` by softmax, both (batch, 1)."""
    nodes = [
        helper.make_node("ArgMax", ["logits"], ["index"], axis=1, keepdims=1),
        helper.make_node("Gather", ["labels", "index"], [CLASS], axis=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("GatherElements", ["probabilities", "index"], [PROBABILITY], axis=1),
    ]
    return _graph(
        NAMES,
        nodes,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(labels)])],
        [
            helper.make_tensor_value_info(CLASS, TensorProto.STRING, ["batch", 1]),
            helper.make_tensor_value_info(PROBABILITY, TensorProto.FLOAT, ["batch", 1]),
        ],
        {"labels": np.array([label.encode() for label in labels], dtype=object)},
    )


def write_step(folder: Path, graph: onnx.ModelProto) -> Path:
    """The graph as version 1 of the model `folder`; its file."""
    path = folder / "1" / "model.onnx"
    write_graph(graph, path)
    return path


def ensemble_config(
    name: str, steps: tuple[str, str, str], network: Signature, images: Images, logits: str, max_batch: int
) -> str:
    """config.pbtxt of the ensemble `name`; `steps` are the models: pixels, network, names. The network's latest version
    served answers.
    """
    outputs = (TensorSpec(CLASS, "object", (None, 1)), TensorSpec(PROBABILITY, "float32", (None, 1)))
    before, model, after = steps
    wires: list[tuple[str, Mapping[str, str], Mapping[str, str]]] = [
        (before, {IMAGE: IMAGE}, {"input": "normalised"}),
        (model, {network.inputs[0].name: "normalised"}, {logits: "scores"}),
        (after, {"logits": "scores"}, {CLASS: CLASS, PROBABILITY: PROBABILITY}),
    ]
    lines = [f"name: {quoted(name)}", 'platform: "ensemble"', f"max_batch_size: {max_batch}"]
    lines += tensor_lines("input", images.spec, batched=True)
    for spec in outputs:
        lines += tensor_lines("output", spec, batched=True)
    lines.append("ensemble_scheduling {")
    for step, ins, outs in wires:
        mapped = [_mapping("input_map", a, b) for a, b in ins.items()] + [
            _mapping("output_map", a, b) for a, b in outs.items()
        ]
        lines += ["  step {", f"    model_name: {quoted(step)}", "    model_version: -1", *mapped, "  }"]
    return "\n".join([*lines, "}"]) + "\n"


def record_classes(images: Images, labels: Sequence[str], network: onnx.ModelProto, count: int) -> list[Exchange]:
    """What the three graphs answer in a row, for each of the first `count` images alone."""
    before, model, after = (open_graph(g) for g in (pixels_graph(images), network, names_graph(labels)))
    exchanges = []
    for row in range(min(count, len(images.pixels))):
        pixels = images.pixels[row : row + 1]
        (normalised,) = answers(before, pixels, PIXELS)
        logits = answers(model, normalised, CLASSIFY)[0]
        name, probability = answers(after, logits, NAMES)
        exchanges.append(Exchange({IMAGE: pixels}, {CLASS: name, PROBABILITY: probability}))
    return exchanges


def write_sample(folder: Path, images: Images) -> None:
    """The first image as `sample.png`, its 0..`high` told as 0..255: something to send to the ensemble.

    None of a number of channels that a PNG has not, or of pixels below 0, which `high` does not describe.
    """
    from PIL import Image

    first = images.pixels[0]
    if first.shape[2] in (1, 3, 4) and first.min() >= 0:
        grey = np.rint(first.astype(np.float64) * (255 / images.high)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grey[:, :, 0] if grey.shape[2] == 1 else grey).save(folder / SAMPLE)


def _mapping(kind: str, key: str, value: str) -> str:
    return f"    {kind} {{ key: {quoted(key)} value: {quoted(value)} }}"


def _graph(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: Mapping[str, Any],
) -> onnx.ModelProto:
    weights = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    onnx.checker.check_model(model, full_check=True)
    return model
