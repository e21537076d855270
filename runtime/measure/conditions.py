"""How busy the machine is while something is measured: load, clocks, what others take of the processors, GPU states."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runtime import gpu as nvml
from runtime.device import usable, usable_cores

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_EVERY_S = 1.0  # looking costs about a millisecond, and is done between samples


def conditions(*, gpus: bool = True) -> dict[str, Any]:
    """load_1m, governor, cpu_mhz, and per GPU, if asked, `nvml.gpu_states`; None where the system does not
    say."""
    import psutil

    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return {
        "load_1m": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "governor": _GOVERNOR.read_text(encoding="utf-8").strip() if _GOVERNOR.is_file() else None,
        "cpu_mhz": round(frequency.current) if frequency and frequency.current else None,
        "gpus": nvml.gpu_states() if gpus else [],
    }


class Watch:
    """Looks at the machine from its making to `document()`, in between whenever `look` is called, once a second at
    most; at its GPUs only with `gpus`, for what they do matters to nothing that runs on the processor."""

    def __init__(self, *, gpus: bool = True) -> None:
        self._gpus = gpus
        self._seen = [conditions(gpus=gpus)]
        self._last = self._start = time.perf_counter()
        self._cpu = _cpu_seconds()

    def look(self) -> None:
        """Call it between samples; does nothing within a second of the last look."""
        now = time.perf_counter()
        if now - self._last >= _EVERY_S:
            self._seen.append(conditions(gpus=self._gpus))
            self._last = now

    def document(self) -> dict[str, Any]:
        """`before` and `after` (`conditions()`); `others_busy_pct` and `stolen_pct`, the share of the usable cores'
        time that other processes and the hypervisor took; `cpu_mhz` and the GPUs' figures as [lowest, highest]; and
        `slowed_by`, every reason a GPU was throttled for. None where the system does not say."""
        self._seen.append(conditions(gpus=self._gpus))
        before, after = self._cpu, _cpu_seconds()
        capacity = max(time.perf_counter() - self._start, 1e-9) * usable_cores()
        busy, own, stolen = (now - then for now, then in zip(after, before, strict=True))
        count = min(len(seen["gpus"]) for seen in self._seen)
        return {
            "before": self._seen[0],
            "after": self._seen[-1],
            "looks": len(self._seen),
            "others_busy_pct": round(min(max(100 * (busy - own) / capacity, 0.0), 100.0), 1),
            "stolen_pct": round(min(max(100 * stolen / capacity, 0.0), 100.0), 1),
            "cpu_mhz": _range(seen["cpu_mhz"] for seen in self._seen),
            "gpus": [_gpu([seen["gpus"][index] for seen in self._seen]) for index in range(count)],
        }


def complaints(document: Mapping[str, Any], *, settings: bool = True) -> list[str]:
    """What in a Watch's document makes figures doubtful, in words; [] where nothing does.

    Without `settings`, only what happened meanwhile: the governor is the machine's as long as nobody changes it.
    """
    reasons = []
    if (others := document.get("others_busy_pct") or 0) >= 10:
        reasons.append(f"other processes took {others:.0f} % of the cores")
    if (stolen := document.get("stolen_pct") or 0) >= 5:
        reasons.append(f"the hypervisor took {stolen:.0f} % of the cores")
    if settings and (governor := document["before"]["governor"]) not in (None, "performance"):
        reasons.append(f"the CPU governor is {governor}")
    for gpu in document.get("gpus", ()):
        if gpu["slowed_by"]:
            reasons.append(f"{gpu['name']} was throttled: {', '.join(gpu['slowed_by'])}")
    return reasons


def _gpu(states: list[Mapping[str, Any]]) -> dict[str, Any]:
    figures = ("sm_mhz", "memory_mhz", "temperature_c", "power_w", "busy_pct")
    slowed = dict.fromkeys(reason for state in states for reason in state["slowed_by"] or ())
    ranges = {name: _range(state[name] for state in states) for name in figures}
    return {"name": states[0]["name"], "power_limit_w": states[0]["power_limit_w"], **ranges, "slowed_by": list(slowed)}


def _range(values: Iterable[float | None]) -> list[float] | None:
    numbers = [value for value in values if value is not None]
    return [min(numbers), max(numbers)] if numbers else None


def _cpu_seconds() -> tuple[float, float, float]:
    """Seconds of the cores that this process may use, since boot: busy, busy with this process, stolen by the
    hypervisor."""
    import psutil

    cores = psutil.cpu_times(percpu=True)
    mine = [cores[core] for core in usable() if core < len(cores)] or cores
    busy, stolen = 0.0, 0.0
    for times in mine:
        counted = {name: value for name, value in times._asdict().items() if name not in ("guest", "guest_nice")}
        stolen += counted.get("steal", 0.0)
        busy += sum(counted.values()) - sum(counted.get(name, 0.0) for name in ("idle", "iowait", "steal"))
    return busy, time.process_time(), stolen
