"""ONNX Runtime's TensorRT-RTX plug-in: what is missing is one clear line, and what is there is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from runtime.backends import open_session, rtx_provider
from runtime.errors import UserError
from tests.runtime.nets import write_onnx


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    rtx_provider.provider_devices.cache_clear()
    yield
    rtx_provider.provider_devices.cache_clear()


def installed(monkeypatch: pytest.MonkeyPatch, register: Any, devices: list[Any]) -> None:
    plugin = SimpleNamespace(get_library_path=lambda: "plugin.so", get_ep_name=lambda: "Rtx")
    monkeypatch.setattr(rtx_provider, "find_spec", lambda name: name)
    monkeypatch.setattr(rtx_provider, "import_module", lambda name: plugin)
    monkeypatch.setattr(ort, "register_execution_provider_library", register, raising=False)
    monkeypatch.setattr(ort, "get_ep_devices", lambda: devices, raising=False)


def test_what_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(tmp_path / "net.onnx")

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            open_session(path, "onnxruntime_tensorrt_rtx")
        assert "\n" not in str(caught.value) and caught.value.remedy
        return caught.value.found

    monkeypatch.setattr(rtx_provider, "find_spec", lambda name: None)
    assert refusal() == "onnxruntime-ep-nv-tensorrt-rtx-cu13 is not installed"

    def no_driver(name: str, library: str) -> None:
        raise RuntimeError("Failed to load plugin.so:\nlibcuda.so.1: cannot open shared object file")

    installed(monkeypatch, no_driver, [])
    assert refusal() == "onnxruntime-ep-nv-tensorrt-rtx-cu13 is installed, and there is no NVIDIA driver"
    installed(monkeypatch, lambda name, library: None, [SimpleNamespace(ep_name="CPUExecutionProvider")])
    assert refusal() == "onnxruntime-ep-nv-tensorrt-rtx-cu13 is installed, and finds no GPU"
    with pytest.raises(UserError, match="device cpu for the TensorRT-RTX provider"):
        open_session(path, "onnxruntime_tensorrt_rtx", device="cpu")


def test_its_devices_are_registered_once_and_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    devices = [SimpleNamespace(ep_name="Rtx"), SimpleNamespace(ep_name="CPUExecutionProvider")]
    installed(monkeypatch, lambda name, library: calls.append(library), devices)
    assert rtx_provider.provider_devices() == (devices[0],)
    assert rtx_provider.provider_devices() == (devices[0],) and calls == ["plugin.so"]


def test_here_it_is_used_or_said_why_not(tmp_path: Path) -> None:
    """With the real package, where that is installed."""
    path = write_onnx(tmp_path / "net.onnx")
    try:
        session = open_session(path, "onnxruntime_tensorrt_rtx")
    except UserError as error:
        assert error.found.startswith("onnxruntime-ep-nv-tensorrt-rtx-cu13 is")
        assert "\n" not in error.found
    else:
        assert (session.device, session.settings["copies"]) == ("cuda", "within a run")
        session.close()
