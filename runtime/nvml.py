"""Clocks, temperature, power and throttling of NVIDIA GPUs, from the driver's own library (NVML)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def gpu_states() -> list[dict[str, Any]]:
    """One entry a GPU: name, sm_mhz, memory_mhz, temperature_c, power_w, power_limit_w, busy_pct, and slowed_by, the
    reasons for which the driver holds the clock down now.

    A figure that the GPU does not tell is None. [] where there is no driver.
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


def _state(nvml: Any, handle: Any) -> dict[str, Any]:
    def told(ask: Callable[[], Any]) -> Any:
        """None for what this GPU or driver does not support."""
        try:
            return ask()
        except nvml.NVMLError:
            return None

    watts = told(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    limit = told(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    reasons = told(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    use = told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    name = told(lambda: nvml.nvmlDeviceGetName(handle))
    return {
        "name": name.decode() if isinstance(name, bytes) else name,  # older bindings answer in bytes
        "sm_mhz": told(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        "memory_mhz": told(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        "temperature_c": told(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
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
