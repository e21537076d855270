"""A small run, its models, and the Triton repository that is published from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.serving import triton
from export.serving.files import Model, Sources
from export.serving.pbtxt import Serving
from export.serving.triton import Content, Repository
from tests.export.graphs import conv_net
from tests.export.small_engines import stand_in

LABELS = ("zero", "one", "two", "three", "größer")


def write_run(folder: Path) -> Path:
    """A run with a dense and a compact network of the same interface, and an engine of each."""
    folder.mkdir()
    conv_net(folder / "dense.onnx", width=8)
    conv_net(folder / "compact.onnx", width=4)
    stand_in(folder / "dense.engine", b"dense engine")
    stand_in(folder / "compact.engine", b"compact engine", profiles=[{"input": shapes(1, 4, 8)}])
    return folder


def shapes(low: int, opt: int, high: int) -> dict[str, list[int]]:
    return {key: [size, 3, 8, 8] for key, size in (("min", low), ("opt", opt), ("max", high))}


def publish(
    models: list[Model],
    directory: Path,
    *,
    root: Path,
    labels: tuple[str, ...] = (),
    samples: Any = None,
    hashes: dict[Path, str] | None = None,
    max_batch: int = 256,
    allow_rtx: bool = False,
    replace: bool = False,
    **serving: Any,
) -> Repository:
    return triton.publish(
        models,
        directory,
        Sources(root, hashes or {}, max_batch, allow_rtx),
        content=Content(labels, samples),
        serving=Serving(**serving),
        replace=replace,
    )


def onnx_model(run: Path, **changes: Any) -> Model:
    return Model(**{"name": "digits", "versions": {1: run / "dense.onnx", 2: run / "compact.onnx"}, **changes})


def engine_model(run: Path, **changes: Any) -> Model:
    return Model(**{"name": "digits_trt", "versions": {1: run / "dense.engine", 2: run / "compact.engine"}, **changes})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def config_of(repository: Repository, name: str) -> Any:
    text_format = pytest.importorskip("google.protobuf.text_format")
    pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    return text_format.Parse((repository.path / name / "config.pbtxt").read_text(), pb2.ModelConfig())
