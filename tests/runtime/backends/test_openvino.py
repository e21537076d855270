"""What OpenVINO computes in is what was asked for, and everything that decides speed or values is recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.backends import open_session
from runtime.errors import UserError
from tests.runtime.nets import expected, images, write_onnx

pytest.importorskip("openvino")

from runtime.backends import openvino as backend  # after the skip: the library is an extra


def answers(path: Path, precision: str) -> np.ndarray:
    session = backend.OpenVinoSession(path, threads=1, precision=precision)
    session.bind({"input": images(4)})
    session.launch()
    session.wait()
    logits = session.fetch()["logits"]
    session.close()
    return logits


def executed(path: Path, precision: str) -> set[str]:
    session = backend.OpenVinoSession(path, threads=1, precision=precision)
    operations = session.compiled.get_runtime_model().get_ordered_ops()
    kinds = {
        operation.get_rt_info()["runtimePrecision"].astype(str)
        for operation in operations
        if operation.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    }
    session.close()
    return kinds


def test_float32_means_float32_on_a_cpu_with_bfloat16(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx")
    np.testing.assert_allclose(answers(path, "fp32"), expected(images(4)), rtol=1e-5, atol=1e-6)
    assert executed(path, "fp32") == {"f32"}
    if "bf16" in backend.precisions():
        far = np.abs(answers(path, "bf16") - expected(images(4))).max()
        assert executed(path, "bf16") == {"bf16"}
        assert far > 1e-5


def test_what_decides_speed_is_fixed_and_recorded(tmp_path: Path) -> None:
    session = open_session(write_onnx(tmp_path / "net.onnx"), "openvino", threads=2)
    assert session.settings == {
        "threads": 2, "streams": 1, "precision hint": "f32", "pinning": False, "denormals": "flushed to zero",
        "cache": "none",
    }  # fmt: skip
    assert (session.backend, session.device, session.inputs[0].shape[0]) == ("openvino", "cpu", None)
    session.close()


def test_what_does_not_open_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(tmp_path / "net.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    for name, options, words in (
        ("bad.onnx", {}, "OpenVINO cannot load"),
        ("net.onnx", {"device": "cuda"}, "device cuda for openvino"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            open_session(tmp_path / name, "openvino", **options)  # type: ignore[arg-type]  # a table of options
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(backend, "precisions", lambda: ("fp32",))
    with pytest.raises(UserError, match=r"net\.onnx is for bf16, and this CPU computes in fp32"):
        backend.OpenVinoSession(path, precision="bf16")
    backend.core.cache_clear()
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="openvino is not installed"):
        backend.OpenVinoSession(path)
    backend.core.cache_clear()
