"""Ask a server that was given a published folder: the recorded requests, or an image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.recorded import REQUEST, RESPONSE, tensors
from export.release_index import ImageInput, Index, PublishedModel, read_index
from export.triton_ensemble import CLASS, IMAGE, PROBABILITY
from runtime.errors import UserError
from runtime.inference_client import Server

MAX_BYTES = 256 << 20


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
    models = [model for model in _chosen(index, order.model) if (order.directory / model.name / RESPONSE).is_file()]
    if not models:
        raise UserError(f"{order.directory} holds no recorded answers", "models with some", "publish from a run")
    server = Server(order.url)
    server.wait_until_ready([model.name for model in models], order.wait_s)
    told = []
    for model in models:
        folder = order.directory / model.name
        answers = server.infer(model.name, _read(folder / REQUEST))
        recorded = {output["name"]: output for output in _read(folder / RESPONSE)["outputs"]}
        worst = max(_difference(recorded[name], answers.get(name)) for name in recorded)
        same = worst <= order.tolerance
        told.append({"name": model.name, "status": "pass" if same else "fail", "difference": _finite(worst)})
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
    server = Server(order.url)
    server.wait_until_ready([model.name for model, _ in takers], order.wait_s)
    told = []
    for model, wanted in takers:
        answers = server.infer(model.name, {"inputs": tensors({IMAGE: load_image(image, wanted)[None]})})
        try:
            name, probability = str(answers[CLASS]["data"][0]), float(answers[PROBABILITY]["data"][0])
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{order.url}: no class in the answer", "the ensemble of the folder", "publish it"
            ) from error
        told.append({"name": model.name, "class": name, "probability": round(probability, 6)})
    return {"status": "done", "url": order.url, "image": str(image), "models": told}


def load_image(path: Path, wanted: ImageInput) -> NDArray[Any]:
    """(H, W, C) as the model takes it: grey or colour, scaled to its size, 0..255 mapped to 0..`high`."""
    from PIL import Image, UnidentifiedImageError

    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if wanted.channels not in modes:
        raise UserError(f"a model of {wanted.channels} channels", "1, 3 or 4", "ask it with arrays of your own")
    try:
        with Image.open(path) as opened:
            ready = opened.convert(modes[wanted.channels])
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read: {error}", "an image", "give a PNG or JPEG") from error
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


def _difference(recorded: Mapping[str, Any], answer: Mapping[str, Any] | None) -> float:
    """Largest difference relative to the largest recorded value; infinite for another type, shape or text."""
    if answer is None or (answer.get("datatype"), answer.get("shape")) != (recorded["datatype"], recorded["shape"]):
        return float("inf")
    if recorded["datatype"] == "BYTES":
        return 0.0 if answer["data"] == recorded["data"] else float("inf")
    wanted, got = np.asarray(recorded["data"], np.float64), np.asarray(answer["data"], np.float64)
    if wanted.shape != got.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(wanted - got).max(initial=0.0) / max(1e-12, np.abs(wanted).max(initial=0.0)))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is over {MAX_BYTES >> 20} MiB", "a recorded request", "publish the run again")
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", "a recorded request", "publish the run again") from error
    assert isinstance(document, dict)
    return document
