"""Ask a server that was given a published folder: the recorded requests, or an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.serving.recorded import RESPONSE, RecordedTensor, read_recorded, tensors
from export.serving.release_index import ImageInput, Index, PublishedModel, read_index
from export.serving.triton_ensemble import CLASS, IMAGE, PROBABILITY
from runtime.client import Server, floats, texts
from runtime.errors import UserError
from runtime.images import Fit, read_picture

FORMATS = ("PNG", "JPEG")  # Pillow's other readers are many, and one of them starts Ghostscript

CLASS_BYTES = 1 << 20
VALUE_BYTES = 64
"""Of a number as text with what stands around it; float64 with 17 digits, sign and exponent takes 24."""


@dataclass(frozen=True)
class Order:
    """`wait_s`: how long to wait for the server; `tolerance` is relative to an output's largest recorded value."""

    url: str
    directory: Path
    model: str | None = None
    wait_s: float = 0.0
    tolerance: float = 1e-4


def compare(order: Order) -> dict[str, Any]:
    """Send each model its recorded request and compare; the JSON document that ends the command. Raises UserError."""
    index = read_index(order.directory)
    models = models_with_answers(order, index)
    recorded = {model.name: read_recorded(order.directory, index, model.name) for model in models}
    server = Server(order.url)
    server.wait_until_ready(list(recorded), order.wait_s)
    results = []
    for name, (request, outputs) in recorded.items():
        answers = server.infer(name, request, limit=answer_bytes(outputs))
        worst = max(difference(output, answers.get(output.name)) for output in outputs)
        same = worst <= order.tolerance
        results.append({"name": name, "status": "pass" if same else "fail", "difference": _finite(worst)})
    status = "pass" if all(one["status"] == "pass" for one in results) else "fail"
    return {"status": status, "url": order.url, "models": results}


def models_with_answers(order: Order, index: Index) -> list[PublishedModel]:
    """Those of the models asked for that have recorded answers; UserError where there is none."""
    models = [model for model in _chosen(index, order.model) if f"{model.name}/{RESPONSE}" in index.files]
    if not models:
        raise UserError(f"{order.directory} holds no recorded answers", "models with some", "publish from a run")
    return models


def classify(order: Order, image: Path) -> dict[str, Any]:
    """The class of an image by each ensemble of the folder. Raises UserError."""
    index = read_index(order.directory)
    takers = [(model, model.image) for model in _chosen(index, order.model) if model.image is not None]
    if not takers:
        raise UserError(
            f"{order.model or order.directory} takes no images",
            "an ensemble",
            "publish a classifier with publish.classify=true",
        )
    pixels = {model.name: load_image(image, spec) for model, spec in takers}
    server = Server(order.url)
    server.wait_until_ready(list(pixels), order.wait_s)
    models = []
    for name, array in pixels.items():
        answers = server.infer(name, {"inputs": tensors({IMAGE: array[None]})}, limit=CLASS_BYTES)
        names, probabilities = texts(answers.get(CLASS)), floats(answers.get(PROBABILITY))
        if not names or probabilities is None or not probabilities.size:
            raise UserError(f"{order.url}: no class in the answer", "the ensemble of the folder", "publish it")
        models.append({"name": name, "class": names[0], "probability": round(float(probabilities[0]), 6)})
    return {"status": "done", "url": order.url, "image": str(image), "models": models}


def load_image(path: Path, image: ImageInput) -> NDArray[Any]:
    """(H, W, C) as the model takes it: read and fitted as in training, 0..255 mapped to 0..`high`.

    UserError: no PNG or JPEG, a broken one, or over 64 million pixels.
    """
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if image.channels not in modes:
        raise UserError(f"a model of {image.channels} channels", "1, 3 or 4", "ask it with arrays of your own")
    size = image.height, image.width
    red, green, blue = image.background
    fit = Fit(image.fit, size, image.resize or min(size), (red, green, blue))
    picture = fit(
        read_picture(path, FORMATS, None if image.channels == 4 else fit.background).convert(modes[image.channels])
    )
    scaled = np.asarray(picture, np.float32).reshape(*size, image.channels) * (image.high / 255)
    return np.rint(scaled).astype(np.uint8) if image.dtype == "uint8" else scaled


def _chosen(index: Index, name: str | None) -> list[PublishedModel]:
    models = [model for model in index.models if name in (None, model.name)]
    if not models:
        names = ", ".join(model.name for model in index.models)
        raise UserError(f"no model {name!r}", f"one of {names}", "name one of them")
    return models


def difference(recorded: RecordedTensor, answer: Mapping[str, Any] | None) -> float:
    """Largest difference relative to the largest recorded value; infinite for another type, shape or text."""
    if answer is None or (answer.get("datatype"), answer.get("shape")) != (recorded.datatype, recorded.shape):
        return float("inf")
    if recorded.datatype == "BYTES":
        return 0.0 if texts(answer) == recorded.data else float("inf")
    expected, got = floats(recorded.model_dump()), floats(answer)
    if expected is None or got is None:
        return float("inf")
    return float(np.abs(expected - got).max(initial=0.0) / max(1e-12, np.abs(expected).max(initial=0.0)))


def answer_bytes(outputs: Sequence[RecordedTensor]) -> int:
    """The most that an answer like the recorded one may take as JSON."""
    texts_of = (len(value) if isinstance(value, str) else 0 for output in outputs for value in output.data)
    return CLASS_BYTES + VALUE_BYTES * sum(len(output.data) for output in outputs) + 6 * sum(texts_of)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
