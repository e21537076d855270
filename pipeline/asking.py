"""Ask a server that was given a published folder: the recorded requests, or an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.recorded import RESPONSE, RecordedTensor, read_recorded, tensors
from export.release_index import ImageInput, Index, PublishedModel, read_index
from export.triton_ensemble import CLASS, IMAGE, PROBABILITY
from runtime.errors import UserError
from runtime.inference_client import Server, floats, texts

FORMATS = ("PNG", "JPEG")  # Pillow's other readers are many, and one of them starts Ghostscript
MAX_PIXELS = 1 << 26


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
    models = [model for model in _chosen(index, order.model) if f"{model.name}/{RESPONSE}" in index.files]
    if not models:
        raise UserError(f"{order.directory} holds no recorded answers", "models with some", "publish from a run")
    recorded = {model.name: read_recorded(order.directory, index, model.name) for model in models}
    server = Server(order.url)
    server.wait_until_ready(list(recorded), order.wait_s)
    told = []
    for name, (request, outputs) in recorded.items():
        answers = server.infer(name, request)
        worst = max(_difference(output, answers.get(output.name)) for output in outputs)
        same = worst <= order.tolerance
        told.append({"name": name, "status": "pass" if same else "fail", "difference": _finite(worst)})
    status = "pass" if all(one["status"] == "pass" for one in told) else "fail"
    return {"status": status, "url": order.url, "models": told}


def classify(order: Order, image: Path) -> dict[str, Any]:
    """The class of an image by each ensemble of the folder. Raises UserError."""
    index = read_index(order.directory)
    takers = [(model, model.image) for model in _chosen(index, order.model) if model.image is not None]
    if not takers:
        raise UserError(
            f"{order.model or order.directory} takes no images", "an ensemble", "publish with publish.classify=true"
        )
    pixels = {model.name: load_image(image, wanted) for model, wanted in takers}
    server = Server(order.url)
    server.wait_until_ready(list(pixels), order.wait_s)
    told = []
    for name, array in pixels.items():
        answers = server.infer(name, {"inputs": tensors({IMAGE: array[None]})})
        names, probabilities = texts(answers.get(CLASS)), floats(answers.get(PROBABILITY))
        if not names or probabilities is None or not probabilities.size:
            raise UserError(f"{order.url}: no class in the answer", "the ensemble of the folder", "publish it")
        told.append({"name": name, "class": names[0], "probability": round(float(probabilities[0]), 6)})
    return {"status": "done", "url": order.url, "image": str(image), "models": told}


def load_image(path: Path, wanted: ImageInput) -> NDArray[Any]:
    """(H, W, C) as the model takes it: grey or colour, scaled to its size, 0..255 mapped to 0..`high`.

    A PNG of 16 bits keeps its upper eight. UserError: no PNG or JPEG, a broken one, or over 64 million pixels.
    """
    from PIL import Image

    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if wanted.channels not in modes:
        raise UserError(f"a model of {wanted.channels} channels", "1, 3 or 4", "ask it with arrays of your own")
    try:
        if not path.is_file():
            raise OSError("no such file" if not path.exists() else "no plain file")
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise OSError(f"{opened.width}x{opened.height} pixels")
            whole = opened.mode.startswith("I")  # 16 bits, which Pillow would cut off at 255
            plain = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)) if whole else opened
            ready = plain.convert(modes[wanted.channels])
    except Exception as error:  # Pillow's readers raise what they like on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}", "an image", "give a PNG or JPEG") from error
    if ready.size != (wanted.width, wanted.height):
        ready = ready.resize((wanted.width, wanted.height), Image.Resampling.BILINEAR)
    scaled = np.asarray(ready, np.float32).reshape(wanted.height, wanted.width, wanted.channels) * (wanted.high / 255)
    return np.rint(scaled).astype(np.uint8) if wanted.dtype == "uint8" else scaled


def _chosen(index: Index, name: str | None) -> list[PublishedModel]:
    models = [model for model in index.models if name in (None, model.name)]
    if not models:
        known = ", ".join(model.name for model in index.models)
        raise UserError(f"no model {name!r}", f"one of {known}", "name one of them")
    return models


def _difference(recorded: RecordedTensor, answer: Mapping[str, Any] | None) -> float:
    """Largest difference relative to the largest recorded value; infinite for another type, shape or text."""
    if answer is None or (answer.get("datatype"), answer.get("shape")) != (recorded.datatype, recorded.shape):
        return float("inf")
    if recorded.datatype == "BYTES":
        return 0.0 if texts(answer) == recorded.data else float("inf")
    wanted, got = floats(recorded.model_dump()), floats(answer)
    if wanted is None or got is None:
        return float("inf")
    return float(np.abs(wanted - got).max(initial=0.0) / max(1e-12, np.abs(wanted).max(initial=0.0)))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
