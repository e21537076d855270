"""What the driver says of the first GPU, and what it means when it says nothing."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.gpu import Gpu, first_gpu, gpu_names


class NotSupportedError(Exception):
    """pynvml.NVMLError."""


def machine(monkeypatch: pytest.MonkeyPatch, fails: str | None = None) -> None:
    """Two GPUs of compute capability 8.9 and 12.0 under CUDA 13.2; one call may fail."""

    def refuse(*arguments: Any) -> Any:
        raise NotSupportedError

    names = {
        "NVMLError": NotSupportedError, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": int, "nvmlDeviceGetHandleByUUID": {"GPU-1f": 1}.__getitem__,
        "nvmlDeviceGetName": [b"NVIDIA L4", "NVIDIA RTX"].__getitem__,
        "nvmlDeviceGetCudaComputeCapability": [(8, 9), (12, 0)].__getitem__,
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13020,
        **dict.fromkeys((
            "nvmlDeviceGetPowerUsage", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetTemperature",
            "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetClockInfo",
        ), refuse),
    }  # fmt: skip
    if fails is not None:
        names[fails] = refuse
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**names))


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, Gpu("NVIDIA L4", "SM89", "13.2")),
        ("1,0", Gpu("NVIDIA RTX", "SM120", "13.2")),
        ("GPU-1f", Gpu("NVIDIA RTX", "SM120", "13.2")),
        ("", None),
        ("-1", None),
    ],
)
def test_the_first_gpu_that_the_process_sees(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: Gpu | None
) -> None:
    machine(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert first_gpu() == expected
    assert gpu_names() == ("NVIDIA L4", "NVIDIA RTX")


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetCudaComputeCapability"])
def test_no_driver_or_no_device_is_none(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine(monkeypatch, fails)
    assert first_gpu() is None
    machine(monkeypatch, "nvmlInit")
    assert gpu_names() == ()
