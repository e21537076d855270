"""NVIDIA GPUs as the driver's management library (NVML) describes them: no CUDA package and no context needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# NVML's clock event reasons that take speed away; idle clocks and clocks that somebody set are no throttling.
_SLOWED_BY = {
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "HwThermalSlowdown": "temperature, hardware",
    "SwThermalSlowdown": "temperature, driver",
    "HwPowerBrakeSlowdown": "power brake",
    "SyncBoost": "sync boost",
}


@dataclass(frozen=True)
class Gpu:
    """`target` is the compute capability as TensorRT names it, e.g. SM86; `driver_cuda` the CUDA version it serves."""

    name: str
    target: str
    driver_cuda: str


def first_gpu() -> Gpu | None:
    """The first GPU that CUDA_VISIBLE_DEVICES shows to this process, None where there is no driver or no GPU."""
    with _library() as nvml:
        if nvml is None:
            return None
        try:
            handle = _visible(nvml)
            if handle is None:
                return None
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
            return Gpu(
                _text(nvml.nvmlDeviceGetName(handle)), f"SM{major}{minor}", f"{cuda // 1000}.{cuda % 1000 // 10}"
            )
        except nvml.NVMLError:
            return None


def gpu_names() -> tuple[str, ...]:
    """Names of all GPUs of the machine, in the driver's order."""
    return tuple(state["name"] for state in gpu_states() if state["name"])


def gpu_states() -> list[dict[str, Any]]:
    """One entry a GPU: name, sm_mhz, memory_mhz, temperature_c, power_w, power_limit_w, busy_pct, and slowed_by, the
    reasons for which the driver holds the clock down now.

    A figure that the GPU does not report is None. [] where there is no driver.
    """
    with _library() as nvml:
        if nvml is None:
            return []
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [_state(nvml, handle) for handle in handles]


@contextmanager
def _library() -> Iterator[Any]:
    """NVML while it is in use; None where there is no driver that it can talk to."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _visible(nvml: Any) -> Any:
    """The handle of the process's first GPU; NVML lists all of the machine. None where it is hidden."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(first))
    return nvml.nvmlDeviceGetHandleByUUID(first) if first.startswith(("GPU-", "MIG-")) else None


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name  # older bindings answer in bytes


def _state(nvml: Any, handle: Any) -> dict[str, Any]:
    def ask(question: Callable[[], Any]) -> Any:
        """None for what this GPU or driver does not support."""
        try:
            return question()
        except nvml.NVMLError:
            return None

    watts = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    limit = ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    reasons = ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    use = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    name = ask(lambda: nvml.nvmlDeviceGetName(handle))
    return {
        "name": None if name is None else _text(name),
        "sm_mhz": ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "memory_mhz": ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        "temperature_c": ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "power_w": None if watts is None else watts / 1000,
        "power_limit_w": None if limit is None else limit / 1000,
        "busy_pct": None if use is None else use.gpu,
        "slowed_by": None if reasons is None else _reasons(nvml, int(reasons)),
    }


def _reasons(nvml: Any, bits: int) -> list[str]:
    """`bits` is NVML's mask of clock event reasons."""
    return [text for name, text in _SLOWED_BY.items() if bits & int(_bit(nvml, name))]


def _bit(nvml: Any, name: str) -> int:
    """Older bindings know the events as throttle reasons."""
    return int(getattr(nvml, f"nvmlClocksEventReason{name}", getattr(nvml, f"nvmlClocksThrottleReason{name}", 0)))
