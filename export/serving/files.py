"""What a server is given, whatever its layout: model files copied out of a run, held against their hashes."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export.engines import manifest
from export.onnx.graph import read_graph
from export.serving.pbtxt import LABELS, Signature, signature_of_engine, signature_of_onnx
from export.serving.release_index import INDEX
from runtime.errors import UserError
from runtime.files import sha256

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Model:
    """A model to publish: its versions (1 dense, 2 compact) are all ONNX files or all engines (`.engine`, `.plan`).

    `reference` is the ONNX graph whose outputs are recorded beside the samples; None takes the highest version where
    that is ONNX, and records no outputs for engines.
    """

    name: str
    versions: Mapping[int, Path]
    reference: Path | None = None


@dataclass(frozen=True)
class Sources:
    """Where model files may come from, and what they may be.

    Every file lies in `root` and is no symbolic link. `hashes` are the SHA-256 that ONNX files must have; engines are
    held against their manifests; `measured` has, for some, the name beside which a manifest with figures lies.
    `max_batch` bounds batches (an engine also has its profiles). `allow_rtx` also takes engines of `tensorrt_rtx`,
    which Triton's own TensorRT backend, made for engines of `tensorrt`, does not load.
    """

    root: Path
    hashes: Mapping[Path, str]
    max_batch: int = 256
    allow_rtx: bool = False
    measured: Mapping[Path, Path] = field(default_factory=dict)


def safe_name(text: str) -> str:
    """`text` as a name that is no path: other characters than letters, digits, '_', '.', '-' become '_'."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:128]
    return name if NAME.fullmatch(name) else f"m{name}"[:128]


def check_models(models: Sequence[Model], labels: Sequence[str], more_names: Sequence[str] = ()) -> None:
    """UserError for names that are paths or are there twice, versions below 1, and class names that are no line."""
    names = [*(model.name for model in models), *more_names]
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


def copy_versions(model: Model, folder: Path, sources: Sources) -> tuple[Signature, dict[str, str]]:
    """Copies the files of all versions into `folder`/<version>/, an engine with its manifest, sealed for its new name;
    what they have in common, and their hashes."""
    folder.mkdir()
    signatures: list[Signature] = []
    digests: dict[str, str] = {}
    for version, source in sorted(model.versions.items()):
        onnx = source.suffix == ".onnx"
        target = folder / str(version) / ("model.onnx" if onnx else "model.plan")
        target.parent.mkdir()
        copy_file(source, target, sources.root)
        digest = digests[str(version)] = sha256(target)
        if onnx:
            signatures.append(signature_of_onnx(read_graph(target, shown=source), sources.max_batch))
            expected = sources.hashes.get(source)
        else:
            described = manifest.read(sources.measured.get(source, source))
            expected = described.sha256
            signatures.append(_engine_signature(described, sources))
            manifest.write(target, described.model_copy(update={"file": target.name}))
        if expected not in (None, digest):
            raise UserError(f"{source} has the SHA-256 {digest[:12]}...", f"{expected} as recorded", "make it again")
    if len({signature.interface for signature in signatures}) != 1:
        raise UserError(
            f"the versions of {model.name!r} differ in kind, inputs or outputs",
            "the same for all",
            "publish them apart (publish.layout=names)",
        )
    return min(signatures, key=lambda signature: signature.max_batch), digests


def _engine_signature(described: manifest.Manifest, sources: Sources) -> Signature:
    if described.flavour == "tensorrt_rtx" and not sources.allow_rtx:
        raise UserError(
            f"{described.file} was built by tensorrt_rtx",
            "an engine of tensorrt, which is what Triton's TensorRT backend loads",
            "publish the ONNX file, or build the engine with tensorrt on the serving machine's GPU",
        )
    return signature_of_engine(described, sources.max_batch)


def copy_file(source: Path, target: Path, root: Path) -> None:
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


def write_labels(folder: Path, model: str, signature: Signature, labels: Sequence[str]) -> bool:
    """`labels.txt`, one class name a line; whether each is a position of the first output, so that a server may name
    it. UserError where logits (batch, K), or of each pixel (batch, K, height, width), are for other than K names."""
    shape = signature.outputs[0].shape if len(signature.outputs) == 1 else ()
    classes = shape[1] if len(shape) in (2, 4) else len(labels)
    if classes != len(labels):
        raise UserError(
            f"{len(labels)} class names for {model!r}",
            f"{classes}, one per logit",
            "give the names of its data set",
        )
    (folder / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    return len(shape) == 2
