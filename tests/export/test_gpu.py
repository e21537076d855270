"""What the driver says, and what it means when it says nothing."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from export.gpu import Gpu, first_gpu


class Driver:
    """Stands in for libcuda: a GPU of compute capability 8.9 under CUDA 13.2; one call may fail."""

    def __init__(self, fails: str | None = None) -> None:
        self.fails = fails
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == self.fails:
                return 100  # CUDA_ERROR_NO_DEVICE
            if name == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA L4"
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 9}[arguments[1]]
            if name == "cuDriverGetVersion":
                arguments[0]._obj.value = 13020
            return 0

        return call


def test_describes_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert first_gpu() == Gpu("NVIDIA L4", "SM89", "13.2")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver("cuDriverGetVersion"))
    assert first_gpu() is None


def test_no_driver_or_no_device_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Driver("cuInit")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: failing)
    assert first_gpu() is None
    assert failing.called == ["cuInit"]

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert first_gpu() is None
