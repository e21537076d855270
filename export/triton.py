"""A Triton model repository from ONNX files and engines: whole or absent, and nothing in it but what was asked for.

Layout: `<repository>/<model>/{config.pbtxt, labels.txt, input-data.json, <version>/model.onnx | model.plan}` and
`<repository>/demport.json`, which lists the files with their hashes. Triton reads folders only at the top, so it passes
over that list.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import manifest
from export.files import sha256, write_json
from export.graph import Array, GraphError, open_graph, read_graph, rows, run_graph
from export.triton_config import Signature, config_text, signature_of_engine, signature_of_onnx
from runtime.errors import UserError

INDEX = "demport.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
SAMPLES = 4  # rows of input-data.json


@dataclass(frozen=True)
class Model:
    """A model to publish: its versions (1 dense, 2 compact) are all ONNX files or all engines (`.engine`, `.plan`).

    `reference` is the ONNX graph whose outputs go into input-data.json; None takes the highest version where that is
    ONNX, and records no outputs for engines.
    """

    name: str
    versions: Mapping[int, Path]
    reference: Path | None = None


@dataclass(frozen=True)
class PublishedModel:
    """One model of the repository; `sha256` of each version's file."""

    name: str
    platform: str
    max_batch_size: int
    sha256: dict[int, str]


@dataclass(frozen=True)
class Repository:
    path: Path
    models: tuple[PublishedModel, ...]


def safe_name(text: str) -> str:
    """`text` as a name that is no path: other characters than letters, digits, '_', '.', '-' become '_'."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:128]
    return name if NAME.fullmatch(name) else f"m{name}"[:128]


def publish(
    models: Sequence[Model],
    directory: Path,
    *,
    root: Path,
    labels: Sequence[str] = (),
    samples: Array | None = None,
    hashes: Mapping[Path, str] | None = None,
    max_batch: int = 256,
    instances: int = 1,
    queue_delay_us: int = 100,
    allow_rtx: bool = False,
    replace: bool = False,
) -> Repository:
    """Writes the Triton model repository `directory`; it appears complete, by one rename.

    Every file must lie in `root` and be no symbolic link. `labels` are the class names of the first output, `samples`
    (N, C, H, W) float32 real inputs, of which four go into input-data.json (perf_analyzer's format) with the outputs.
    `hashes` are the SHA-256 that ONNX files must have; engines are held against their manifests. `max_batch` bounds
    batches of ONNX models (engines have their profile); `instances` run per device. `replace` puts the repository in
    place of an earlier one. `allow_rtx` also takes engines of `tensorrt_rtx`, which Triton's own TensorRT backend, made
    for engines of `tensorrt`, does not load. `UserError`: any of this does not hold.
    """
    _check_request(models, directory, labels, replace)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent))
    try:
        staging.chmod(0o755)  # mkdtemp makes it private; a server runs as another user
        published = []
        for model in models:
            signature, digests = _copy_versions(model, staging / model.name, root, hashes or {}, max_batch, allow_rtx)
            _write_labels(staging / model.name, model, signature, labels)
            text = config_text(
                model.name,
                signature,
                labels="labels.txt" if labels else None,
                instances=instances,
                queue_delay_us=queue_delay_us,
            )
            (staging / model.name / "config.pbtxt").write_text(text, encoding="utf-8")
            if samples is not None:
                _write_samples(staging / model.name, model, signature, samples, root)
            published.append(PublishedModel(model.name, signature.platform, signature.max_batch, digests))
        write_json(staging / INDEX, {"schema": 1, "models": [dataclasses.asdict(item) for item in published]})
        _swap(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Repository(directory, tuple(published))


def _check_request(models: Sequence[Model], directory: Path, labels: Sequence[str], replace: bool) -> None:
    names = [model.name for model in models]
    for name in names:
        if not NAME.fullmatch(name) or name == INDEX:
            raise UserError(
                f"the model name {name!r}", "letters, digits, '_', '.', '-', at most 128, no '.' first", "rename it"
            )
    if not models or len(set(names)) != len(names):
        raise UserError(f"the model names {names}", "one or more different names", "name each model once")
    for model in models:
        if not model.versions or min(model.versions) < 1:
            raise UserError(
                f"the versions {sorted(model.versions)} of {model.name!r}", "whole numbers from 1", "number them so"
            )
    if any(not label.strip() or len(label.splitlines()) != 1 for label in labels):
        raise UserError("a class name that is empty or spans lines", "one line per class", "rename the class")
    if directory.is_symlink() or (directory.exists() and not replace):
        raise UserError(f"{directory} exists", "a new folder", "choose another, or replace it (--replace)")
    if directory.exists() and not (directory / INDEX).is_file():
        raise UserError(f"{directory} holds no {INDEX}", "a repository that demport published", "choose another folder")


def _copy_versions(
    model: Model, folder: Path, root: Path, hashes: Mapping[Path, str], max_batch: int, allow_rtx: bool
) -> tuple[Signature, dict[int, str]]:
    """Copies the files of all versions; what they have in common, and their hashes."""
    folder.mkdir()
    signatures: dict[int, Signature] = {}
    digests: dict[int, str] = {}
    for version, source in sorted(model.versions.items()):
        onnx = source.suffix == ".onnx"
        target = folder / str(version) / ("model.onnx" if onnx else "model.plan")
        target.parent.mkdir()
        _copy(source, target, root)
        digests[version] = sha256(target)
        if onnx:
            signatures[version] = signature_of_onnx(read_graph(target, shown=source), max_batch)
            expected = hashes.get(source)
        else:
            described = manifest.read(source)
            expected = described.sha256
            signatures[version] = _engine_signature(described, allow_rtx)
        if expected not in (None, digests[version]):
            raise UserError(
                f"{source} has the SHA-256 {digests[version][:12]}...", f"{expected} as recorded", "make it again"
            )
    if len({signature.interface for signature in signatures.values()}) != 1:
        raise UserError(
            f"the versions of {model.name!r} differ in kind, inputs or outputs",
            "the same for all",
            "publish them apart",
        )
    smallest = min(signatures.values(), key=lambda signature: signature.max_batch)
    return smallest, digests


def _engine_signature(described: manifest.Manifest, allow_rtx: bool) -> Signature:
    if described.flavour == "tensorrt_rtx" and not allow_rtx:
        raise UserError(
            f"{described.file} was built by tensorrt_rtx",
            "an engine of tensorrt, which is what Triton's TensorRT backend loads",
            "publish the ONNX file, or build the engine with tensorrt on the serving machine's GPU",
        )
    return signature_of_engine(described)


def _copy(source: Path, target: Path, root: Path) -> None:
    """Copies a plain file from within `root`; a symbolic link is refused, also one put there at the last moment."""
    if not source.parent.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{source} lies outside {root}", "files of the run", "copy it into the run")
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a FIFO must not hang
    except OSError as error:
        what = "is a symbolic link" if source.is_symlink() else f"cannot be read ({error.strerror})"
        raise UserError(f"{source} {what}", "a plain file", "give the file itself") from error
    with os.fdopen(handle, "rb") as reader, target.open("wb") as writer:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UserError(f"{source} is no plain file", "a plain file", "give the file itself")
        shutil.copyfileobj(reader, writer, 1 << 20)


def _write_labels(folder: Path, model: Model, signature: Signature, labels: Sequence[str]) -> None:
    if not labels:
        return
    classes = signature.outputs[0].shape[-1] if signature.outputs[0].shape else None
    if classes != len(labels):
        raise UserError(
            f"{len(labels)} class names for {model.name!r}",
            f"{classes}, one per logit",
            "give the names of its data set",
        )
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _write_samples(folder: Path, model: Model, signature: Signature, samples: Array, root: Path) -> None:
    """input-data.json: per row the input, and the outputs that the reference graph gives for it alone."""
    spec = signature.inputs[0]
    batch = 1 if signature.max_batch else spec.shape[0] or 1
    fits = len(spec.shape) == samples.ndim and all(
        want in (None, got) for want, got in zip(spec.shape[1:], samples.shape[1:], strict=True)
    )
    if len(signature.inputs) != 1 or spec.dtype != str(samples.dtype) or not fits:
        raise UserError(
            f"samples {samples.dtype}{list(samples.shape[1:])} for {model.name!r}",
            f"one input {spec.dtype}{list(spec.shape[1:])}",
            "give samples that it takes, or none",
        )
    latest = folder / str(max(model.versions)) / "model.onnx"
    session = None
    if model.reference is not None:
        copy = folder / "reference.tmp"
        _copy(model.reference, copy, root)
        session = open_graph(read_graph(copy, shown=model.reference))
        copy.unlink()
    elif latest.exists():
        session = open_graph(read_graph(latest))
    document: dict[str, Any] = {"data": [], "validation_data": []}
    for row in range(min(SAMPLES, len(samples))):
        images = rows(samples[row:], batch)
        document["data"].append({spec.name: _content(images, signature)})
        if session is not None:
            document["validation_data"].append(_outputs(session, images, signature, model))
    if session is None:
        del document["validation_data"]
    (folder / "input-data.json").write_text(json.dumps(document, allow_nan=False), encoding="utf-8")


def _outputs(session: Any, images: Array, signature: Signature, model: Model) -> dict[str, Any]:
    try:
        values = run_graph(session, images)
    except GraphError as error:
        raise UserError(
            f"ONNX Runtime fails on the samples for {model.name!r}: {error}", "a run", "give samples that it takes"
        ) from error
    return {spec.name: _content(value, signature) for spec, value in zip(signature.outputs, values, strict=True)}


def _content(array: Array, signature: Signature) -> dict[str, Any]:
    """One request's tensor: flat values and the shape, without the batch where Triton adds it."""
    return {"content": array.ravel().tolist(), "shape": list(array.shape[1:] if signature.max_batch else array.shape)}


def _swap(staging: Path, directory: Path) -> None:
    """Puts `staging` in the place of `directory`; what was there is removed once the new one stands."""
    if not directory.exists():
        staging.rename(directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".old", dir=directory.parent))
    directory.rename(old / "was")
    try:
        staging.rename(directory)
    except OSError:
        (old / "was").rename(directory)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
