"""A backend is one folder that builds, one file that runs, and a row in each table: here both stand in this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import engines
from export.engines import Engine, Order, choose, engine_from_onnx, engine_name
from export.engines.machine import Image, Preflight
from export.engines.manifest import Manifest
from runtime import backends
from runtime.backends import Array, Guard, Setting, TensorSpec, open_session
from tests.export.graphs import conv_net


class ReferenceSession:
    """Runs by the evaluator of the onnx package."""

    backend, device = "reference", "cpu"

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        from onnx.reference import ReferenceEvaluator

        self.name, self._guard = path.name, Guard(path.name)
        self._network = ReferenceEvaluator(str(path))
        self.inputs = (TensorSpec("input", (None, 3, 8, 8), "float32"),)
        self.outputs = (TensorSpec("logits", (None, 5), "float32"),)
        self.settings: dict[str, Setting] = {"threads": 1}

    def bind(self, feeds: Mapping[str, Array]) -> None:
        with self._guard("bind"):
            self._feeds = {name: np.array(feed) for name, feed in feeds.items()}

    def launch(self) -> None:
        with self._guard("launch"):
            self._answers: Any = self._network.run(None, self._feeds)

    def wait(self) -> None:
        with self._guard("wait"):
            return

    def fetch(self) -> dict[str, Array]:
        with self._guard("fetch"):
            return {"logits": np.array(self._answers[0])}

    def close(self) -> None:
        with self._guard("close"):
            return


class ReferenceBuilder:
    """Builds by copying the graph."""

    suffix = ".reference"

    def version(self) -> str:
        return "1.0"

    def targets(self, requested: Sequence[str]) -> tuple[str, ...]:
        return ("CPU",)

    def build(self, order: Order) -> Engine:
        order.path.write_bytes(order.onnx.read_bytes())
        facts: dict[str, Any] = {"layers": {}, "proof": {}, "notes": ()}
        return Engine(
            path=order.path, manifest=order.path, log=order.path, flavour="reference", version="1.0",
            precision=order.precision, target=order.target, sha256=order.onnx_sha256,
            bytes=order.path.stat().st_size, seconds=0.0, **facts,
        )  # fmt: skip

    def preflight(self, engine: Path, content: Manifest, image: Image | None, target: str | None) -> Preflight:
        return Preflight(engine, "this machine", "ok", (), None)


REFERENCE = ReferenceBuilder()


def test_a_backend_of_ones_own_builds_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.BUILDERS, "reference", f"{__name__}:REFERENCE")
    monkeypatch.setitem(backends.BACKENDS, "reference", f"{__name__}:ReferenceSession")
    monkeypatch.setitem(backends.SUFFIXES, ".reference", ("reference",))
    source = conv_net(tmp_path / "net.onnx")
    assert choose("reference", ("SM86",)).targets == ("CPU",)
    engine = engine_from_onnx(source, tmp_path / engine_name("net", "fp32", "CPU", "reference"), flavour="reference")
    assert engine.path.name == "net.fp32.CPU.reference"
    logits = []
    for path, name in ((engine.path, "reference"), (source, "onnxruntime")):
        session = open_session(path, name)
        session.bind({"input": np.ones((2, 3, 8, 8), np.float32)})
        session.launch()
        session.wait()
        logits.append(session.fetch()["logits"])
        session.close()
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)
