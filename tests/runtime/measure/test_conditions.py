"""How busy the machine was, on a machine whose figures the test sets, and once on this one."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from runtime import gpu as nvml
from runtime.measure import conditions as watching
from runtime.measure.conditions import Watch, complaints, conditions

GPU = {
    "name": "GPU", "sm_mhz": 1400, "memory_mhz": 9000, "temperature_c": 60, "power_w": 200.0, "power_limit_w": 300.0,
    "busy_pct": 99, "slowed_by": [],
}  # fmt: skip


def test_conditions_are_numbers_or_null() -> None:
    told = conditions()
    assert set(told) == {"load_1m", "governor", "cpu_mhz", "gpus"}
    assert told["load_1m"] is None or told["load_1m"] >= 0
    assert json.dumps(told, allow_nan=False)


class Machine:
    """`busy` and `steal` are seconds of all cores since boot; looking is allowed at `now`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.busy, self.own, self.steal, self.looks = 100.0, 50.0, 5.0, 1.0, 0
        self.gpu: dict[str, Any] = dict(GPU)
        patch.setattr(time, "perf_counter", lambda: self.now)
        patch.setattr(time, "process_time", lambda: self.own)
        other = SimpleNamespace(_asdict=lambda: {"user": 1e6 * self.now})  # a core that this process may not use
        patch.setattr(psutil, "cpu_times", lambda percpu: [other, self] if percpu else None)
        patch.setattr(watching, "usable", lambda: [1])
        patch.setattr(watching, "usable_cores", lambda: 4)
        patch.setattr(nvml, "gpu_states", self.states)

    def _asdict(self) -> dict[str, float]:
        return {"user": self.busy, "idle": 7.0, "iowait": 2.0, "steal": self.steal, "guest": 1000.0}

    def states(self) -> list[dict[str, Any]]:
        self.looks += 1
        return [dict(self.gpu)]


def test_what_others_and_the_hypervisor_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 s on 4 cores are 40 core seconds: 18 busy, 8 of them our own, 4 stolen."""
    machine = Machine(monkeypatch)
    watch = Watch()
    machine.now, machine.busy, machine.own, machine.steal = 110.0, 68.0, 13.0, 5.0
    told = watch.document()
    assert (told["others_busy_pct"], told["stolen_pct"]) == (25.0, 10.0)
    assert complaints(told)[:2] == ["other processes took 25 % of the cores", "the hypervisor took 10 % of the cores"]


def test_gpus_are_watched_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    watch = Watch()
    machine.gpu |= {"sm_mhz": 900, "temperature_c": 91, "slowed_by": ["temperature, driver"]}
    machine.now = 100.5
    watch.look()
    assert machine.looks == 1
    machine.now = 101.5
    watch.look()
    machine.gpu |= {"sm_mhz": 1300, "slowed_by": [], "power_w": None}
    (gpu,) = watch.document()["gpus"]
    assert machine.looks == 3
    assert gpu["sm_mhz"] == [900, 1400]
    assert gpu["temperature_c"] == [60, 91]
    assert gpu["power_w"] == [200.0, 200.0]
    assert gpu["slowed_by"] == ["temperature, driver"]


def test_gpus_are_not_looked_at_for_what_runs_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process makes of a GPU disturbs nothing there."""
    machine = Machine(monkeypatch)
    machine.gpu |= {"slowed_by": ["power limit"]}
    watch = Watch(gpus=False)
    machine.now += 2.0
    watch.look()
    told = watch.document()
    assert told["looks"] == 3 and machine.looks == 0 and told["gpus"] == told["before"]["gpus"] == []
    assert complaints(Watch().document())[-1] == "GPU was throttled: power limit"


def test_a_quiet_machine_has_no_complaints() -> None:
    quiet = {"before": {"governor": "performance"}, "others_busy_pct": 2.0, "stolen_pct": None, "gpus": []}
    assert complaints(quiet) == []
    throttled = {**quiet, "before": {"governor": "powersave"}, "gpus": [{"name": "L4", "slowed_by": ["power limit"]}]}
    assert complaints(throttled) == ["the CPU governor is powersave", "L4 was throttled: power limit"]
    assert complaints(throttled, settings=False) == ["L4 was throttled: power limit"]


class NotSupportedError(Exception):
    """pynvml.NVMLError."""


def library(**changes: Any) -> Any:
    """pynvml with one GPU, whose binding is that of 13.x."""

    def refuse(handle: Any) -> Any:
        raise NotSupportedError

    names = {
        "NVMLError": NotSupportedError, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: f"gpu{index}", "nvmlDeviceGetName": lambda handle: b"L4",
        "nvmlDeviceGetClockInfo": lambda handle, which: {1: 1410, 2: 6251}[which],
        "nvmlDeviceGetTemperature": lambda handle, sensor: 71, "nvmlDeviceGetPowerUsage": lambda handle: 68_500,
        "nvmlDeviceGetEnforcedPowerLimit": refuse,
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=97),
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x1 | 0x4 | 0x40,
        "nvmlClocksEventReasonSwPowerCap": 0x4, "nvmlClocksEventReasonHwSlowdown": 0x8,
        "nvmlClocksThrottleReasonHwThermalSlowdown": 0x40,
    }  # fmt: skip
    return SimpleNamespace(**{**names, **changes})


def test_states_in_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliwatts become watts, a mask becomes words (an idle clock, 0x1, is no throttling), a refusal null."""
    monkeypatch.setitem(__import__("sys").modules, "pynvml", library())
    (state,) = nvml.gpu_states()
    assert (state["name"], state["sm_mhz"], state["memory_mhz"], state["temperature_c"]) == ("L4", 1410, 6251, 71)
    assert (state["power_w"], state["power_limit_w"], state["busy_pct"]) == (68.5, None, 97)
    assert state["slowed_by"] == ["power limit", "temperature, hardware"]


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NotSupportedError

    monkeypatch.setitem(__import__("sys").modules, "pynvml", library(nvmlInit=fail))
    assert nvml.gpu_states() == []
    assert conditions()["gpus"] == []


def test_the_names_are_those_of_the_library() -> None:
    import pynvml

    names = set(vars(library())) - {"nvmlClocksThrottleReasonHwThermalSlowdown"}
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []
    assert {nvml._bit(pynvml, name) for name in nvml._SLOWED_BY} == {0x4, 0x8, 0x40, 0x20, 0x80, 0x10}
