"""The fingerprint and the environment."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from runtime import device


@pytest.fixture(autouse=True)
def fresh() -> None:
    device.gpus.cache_clear()


def test_the_environment_says_what_a_figure_needs() -> None:
    environment = device.environment()
    assert set(environment) == {
        "fingerprint", "machine", "system", "cpu", "cores", "gpus", "memory_gib", "os", "kernel", "python", "versions",
    }  # fmt: skip
    assert environment["cores"] >= 1
    assert environment["memory_gib"] > 0.1
    assert environment["versions"]["onnxruntime"].count(".") == 2
    assert json.loads(json.dumps(environment, allow_nan=False)) == environment


def test_the_fingerprint_changes_with_the_machine_and_not_with_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    first = device.fingerprint()
    assert len(first) == 16
    assert int(first, 16) >= 0
    monkeypatch.setattr(device, "versions", lambda: {"torch": "9"})
    assert device.fingerprint() == first
    for name, other in (("cpu_model", "Other CPU"), ("usable_cores", 99), ("gpus", ("Other GPU",))):
        with monkeypatch.context() as patch:
            patch.setattr(device, name, lambda other=other: other)
            assert device.fingerprint() != first


def test_a_figure_names_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpu_names", lambda: ("NVIDIA L4", "NVIDIA L4"))
    assert device.gpus() == ("NVIDIA L4", "NVIDIA L4")
    assert device.identity()["gpus"] == ["NVIDIA L4", "NVIDIA L4"]


def test_no_library_is_imported_for_its_version() -> None:
    code = (
        "import sys; from runtime.device import environment; v = environment()['versions'];"
        "print('torch' in v, [m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"
    assert done.stderr == ""
