"""How busy the machine is while something is measured: load, clocks, what others take of the processors, GPU states."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runtime import nvml
from runtime.device import usable, usable_cores
from runtime.handover import handover_us

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
STEADY = 1.4
HANDOVER = 1.15  # of another handover_us: more is another state of the machine
_EVERY_S = 1.0  # looking costs about a millisecond, and is done between samples


def conditions(*, gpus: bool = True) -> dict[str, Any]:
    """load_1m, governor, cpu_mhz, and per GPU, if asked, what `nvml.gpu_states` tells; None where the system does not
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
    most; at its GPUs only with `gpus`, for what they do matters to nothing that runs on the processor, and at how long
    the cores take to hand each other data (`handover`) only with `handovers`, which matters to several threads."""

    def __init__(self, *, gpus: bool = True, handovers: bool = False) -> None:
        self._gpus, self._handovers = gpus, handovers
        self._handover_us = [handover_us()] if handovers else []
        self._seen = [conditions(gpus=gpus)]
        self._last = self._start = time.perf_counter()
        self._cpu = _cpu_seconds()

    def look(self) -> None:
        """Call it between samples; does nothing within a second of the last look."""
        now = time.perf_counter()
        if now - self._last >= _EVERY_S:
            self._seen.append(conditions(gpus=self._gpus))
            if self._handovers:
                self._handover_us.append(handover_us())
            self._last = now

    def document(self) -> dict[str, Any]:
        """`before` and `after` (`conditions()`); `others_busy_pct` and `stolen_pct`, the share of the usable cores'
        time that other processes and the hypervisor took; `handover_us`, the median; `cpu_mhz` and the GPUs' figures as
        [lowest, highest]; and `slowed_by`, every reason a GPU was throttled for. None where the system does not say."""
        self._seen.append(conditions(gpus=self._gpus))
        before, after = self._cpu, _cpu_seconds()
        capacity = max(time.perf_counter() - self._start, 1e-9) * usable_cores()
        busy, own, stolen = (now - then for now, then in zip(after, before, strict=True))
        count = min(len(seen["gpus"]) for seen in self._seen)
        handovers = [one for one in self._handover_us if one is not None]
        return {
            "before": self._seen[0],
            "after": self._seen[-1],
            "looks": len(self._seen),
            "others_busy_pct": round(min(max(100 * (busy - own) / capacity, 0.0), 100.0), 1),
            "stolen_pct": round(min(max(100 * stolen / capacity, 0.0), 100.0), 1),
            "handover_us": round(statistics.median(handovers), 2) if handovers else None,
            "cpu_mhz": _range(seen["cpu_mhz"] for seen in self._seen),
            "gpus": [_gpu([seen["gpus"][index] for seen in self._seen]) for index in range(count)],
        }


def complaints(document: Mapping[str, Any], *, settings: bool = True) -> list[str]:
    """What in a Watch's document makes figures doubtful, in words; [] where nothing does.

    Without `settings`, only what happened meanwhile: the governor is the machine's as long as nobody changes it.
    """
    found = []
    if (others := document.get("others_busy_pct") or 0) >= 10:
        found.append(f"other processes took {others:.0f} % of the cores")
    if (stolen := document.get("stolen_pct") or 0) >= 5:
        found.append(f"the hypervisor took {stolen:.0f} % of the cores")
    if settings and (governor := document["before"]["governor"]) not in (None, "performance"):
        found.append(f"the CPU governor is {governor}")
    for gpu in document.get("gpus", ()):
        if gpu["slowed_by"]:
            found.append(f"{gpu['name']} was throttled: {', '.join(gpu['slowed_by'])}")
    return found


def scatter(*timings: Mapping[str, Any]) -> list[str]:
    """Which networks' launches tell of a disturbance that the system does not: half of them took STEADY times as long
    as the fastest or more. Timings have name, p50_ms and best_ms; [] where all were steady."""
    shares = [(timing, timing["p50_ms"] / timing["best_ms"]) for timing in timings if timing.get("best_ms")]
    return [
        f"half of the launches of {timing.get('name', 'a network')} took {share:.1f} times the fastest or longer"
        for timing, share in shares
        if share >= STEADY
    ]


def _gpu(states: list[Mapping[str, Any]]) -> dict[str, Any]:
    figures = ("sm_mhz", "memory_mhz", "temperature_c", "power_w", "busy_pct")
    slowed = dict.fromkeys(reason for state in states for reason in state["slowed_by"] or ())
    ranges = {name: _range(state[name] for state in states) for name in figures}
    return {"name": states[0]["name"], "power_limit_w": states[0]["power_limit_w"], **ranges, "slowed_by": list(slowed)}


def _range(values: Iterable[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [min(known), max(known)] if known else None


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
