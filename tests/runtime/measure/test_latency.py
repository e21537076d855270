"""The comparison on sessions with a clock of their own: nothing here depends on this machine's speed."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import gpu as nvml
from runtime.backends import Array, TensorSpec, open_session
from runtime.backends.feeds import random_feeds
from runtime.measure.conditions import complaints
from runtime.measure.latency import MAX_SAMPLES, MIN_EFFECT, Comparison, Speedup, compare, speedup
from tests.runtime.nets import write_onnx


@dataclass
class Clock:
    """Nanoseconds that pass only when a session works. `log` names who was launched."""

    now: float = 0.0
    log: list[str] = field(default_factory=list)

    def __call__(self) -> int:
        return int(self.now)


@dataclass
class Timed:
    """A session whose launch takes `duration(launch number)` nanoseconds and whose bind takes a second."""

    name: str
    clock: Clock
    duration: Callable[[int], float]
    launches: int = 0
    waiting: bool = False
    backend: str = "fake"
    device: str = "cpu"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=lambda: {"threads": 1})

    def bind(self, feeds: Mapping[str, Array]) -> None:
        self.clock.now += 1e9

    def launch(self) -> None:
        assert not self.waiting
        assert not gc.isenabled()
        self.waiting = True
        self.clock.log.append(self.name)

    def wait(self) -> None:
        assert self.waiting
        self.waiting = False
        self.clock.now += self.duration(self.launches)
        self.launches += 1

    def fetch(self) -> dict[str, Array]:
        raise AssertionError("a copy inside the timed part")

    def close(self) -> None:
        pass


def run(*durations: Callable[[int], float], **options: Any) -> tuple[Comparison, Clock]:
    clock = Clock()
    sessions = [Timed("ABCDEFG"[i], clock, duration) for i, duration in enumerate(durations)]
    return compare(sessions, [{}] * len(sessions), clock=clock, **options), clock


def constant(ms: float) -> Callable[[int], float]:
    return lambda launch: ms * 1e6


def noisy(ms: float, seed: int) -> Callable[[int], float]:
    generator = np.random.default_rng(seed)
    return lambda launch: float(ms * 1e6 * np.exp(0.2 * generator.standard_normal()))


def test_figures_of_constant_times() -> None:
    result, _ = run(constant(2.0), constant(1.0))
    assert [(m.p50_ms, m.p95_ms, m.p99_ms, m.mean_ms, m.best_ms) for m in result.models] == [(2.0,) * 5, (1.0,) * 5]
    assert [m.images_per_s for m in result.models] == [None, None]  # nothing is fed
    assert [m.n for m in result.models] == [60, 60]
    assert (result.speedups[0].ratio, result.speedups[0].ci95) == (2.0, (2.0, 2.0))
    assert result.speedups[0].verdict == "faster"
    assert result.protocol["blocks"] == 30
    assert result.protocol["stopped"] == "interval narrow enough"
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["settings"][0]["backend"] == "fake"
    assert gc.isenabled()


@pytest.mark.parametrize(("device", "watched"), [("cpu", []), ("cuda", ["L4"])])
def test_gpus_are_watched_where_a_session_runs_on_one(
    device: str, watched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = ("sm_mhz", "memory_mhz", "temperature_c", "power_w", "busy_pct", "power_limit_w")
    state = {**dict.fromkeys(figures), "name": "L4", "slowed_by": ["power limit"]}
    monkeypatch.setattr(nvml, "gpu_states", lambda: [state])
    clock = Clock()
    sessions = [Timed("A", clock, constant(1.0)), Timed("B", clock, constant(1.0), device=device)]
    told = compare(sessions, [{}, {}], clock=clock).conditions
    assert [gpu["name"] for gpu in told["gpus"]] == watched
    assert any("L4 was throttled" in one for one in complaints(told)) == bool(watched)


def test_one_session_alone_has_figures_and_no_speedup() -> None:
    result, _ = run(constant(3.0))
    assert result.models[0].p50_ms == 3.0
    assert result.speedups == ()


def test_blocks_go_there_and_back_and_turn() -> None:
    """Each sample is one launch that is not timed and one that is."""
    result, clock = run(constant(1.0), constant(1.0), constant(1.0))
    taken = "".join(clock.log[-result.protocol["blocks"] * 3 * 2 * 2 :])
    assert taken[0::2] == taken[1::2]
    blocks = [taken[0::2][i : i + 6] for i in range(0, 18, 6)]
    assert blocks == ["ABCCBA", "BCAACB", "CABBAC"]
    two, clock = run(constant(1.0), constant(1.0))
    taken = "".join(clock.log[-two.protocol["blocks"] * 2 * 2 * 2 :])[0::2]
    assert taken[:8] == "ABBABAAB"


def test_the_launch_after_another_session_is_not_timed() -> None:
    """Every first launch of a sample is cold and takes ten times as long."""
    result, _ = run(lambda launch: 1e6 if launch % 2 else 1e7, constant(1.0), time_limit_s=60)
    assert result.models[0].p95_ms == 1.0
    assert result.speedups[0].ratio == 1.0


def test_a_fast_network_is_launched_often_enough_for_the_clock() -> None:
    result, _ = run(constant(0.004), constant(0.2))
    assert [m.repeats for m in result.models] == [13, 1]  # 13 x 4 us >= 50 us
    assert result.models[0].p50_ms == pytest.approx(0.004)
    assert result.speedups[0].ratio == pytest.approx(0.02)


def test_warm_up_lasts_until_times_are_stable() -> None:
    warming, _ = run(lambda launch: 1e6 * (1 + 9 * 0.97**launch), constant(1.0))
    steady, _ = run(constant(1.0), constant(1.0))
    assert steady.protocol["warmup_rounds"] == 15
    assert warming.protocol["warmup_rounds"] > 40
    assert warming.models[0].p95_ms < 1.5


def test_warm_up_takes_at_most_a_quarter_of_the_time() -> None:
    """Times that triple every few launches and fall back are never stable. Binding took 2 of the 4 s."""
    result, clock = run(lambda launch: 1e6 * 3 ** (launch // 8 % 4), constant(1.0), time_limit_s=4, min_blocks=5)
    warm_up = clock.now - 2e9 - sum(m.mean_ms * m.n for m in result.models) * 2e6
    assert 0.5e9 < warm_up < 0.6e9
    _, steady = run(constant(1.0), constant(1.0), time_limit_s=4, min_blocks=5)
    assert steady.now < 2e9 + 0.2e9


def test_noise_takes_more_blocks_until_the_interval_is_narrow() -> None:
    result, _ = run(noisy(1.0, 1), noisy(1.0, 2), precision=0.02)
    low, high = result.speedups[0].ci95
    assert result.protocol["blocks"] > 100
    assert result.protocol["stopped"] == "interval narrow enough"
    assert (high - low) / 2 <= 0.02 * result.speedups[0].ratio
    assert result.speedups[0].verdict == "not distinguishable"


def test_the_time_limit_ends_it_and_withholds_the_verdict_below_min_blocks() -> None:
    result, clock = run(constant(200.0), constant(100.0), time_limit_s=12)
    assert 5 <= result.protocol["blocks"] < 30
    assert result.protocol["stopped"] == f"time limit after {result.protocol['blocks']} of 30 blocks"
    assert result.speedups[0].ratio == 2.0
    assert result.speedups[0].verdict == "undecided"
    assert clock.now < 2e9 + 12e9 + 2e9
    noisy_result, _ = run(noisy(10.0, 1), noisy(10.0, 2), time_limit_s=10, precision=1e-6)
    assert noisy_result.protocol["stopped"] == "time limit"
    assert noisy_result.protocol["blocks"] >= 30


def test_a_drift_of_the_machine_does_not_look_like_a_difference() -> None:
    """The clock frequency falls by half over the experiment, for both alike."""
    clock = Clock()

    def drift(launch: int) -> float:
        return 1e6 * (1 + len(clock.log) / 1000)

    sessions = [Timed(name, clock, drift) for name in "AB"]
    result = compare(sessions, [{}, {}], clock=clock, min_blocks=200, precision=0.05)
    assert result.models[0].p95_ms > 1.2 * result.models[0].best_ms
    assert result.speedups[0].ratio == pytest.approx(1.0, abs=0.01)
    assert result.speedups[0].verdict == "not distinguishable"


def test_few_false_alarms_and_ten_percent_found() -> None:
    """Noise of 10 % a sample, 120 blocks: 100 comparisons of a model with itself, 40 with a copy slowed by 10 %."""
    generator = np.random.default_rng(0)

    def verdict(ms: float) -> str:
        first, other = np.exp(0.1 * generator.standard_normal((2, 120, 2)))
        return speedup(first, ms * other).verdict

    verdicts = [verdict(1.0) for _ in range(100)]
    slowed = [verdict(1.1) for _ in range(40)]
    assert not {"faster", "slower"} & set(verdicts) and verdicts.count("not distinguishable") >= 90
    assert slowed.count("slower") >= 38
    assert "faster" not in slowed


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (0.5, "slower"),
        (0.96, "slower"),
        (0.985, "slightly slower"),
        (1.0, "not distinguishable"),
        (1.02, "slightly faster"),
        (1.04, "faster"),
    ],
)
def test_no_verdict_stands_beside_an_interval_that_says_otherwise(ratio: float, verdict: str) -> None:
    first = np.full((50, 2), 2.0)
    assert speedup(first * ratio, first).verdict == verdict
    assert speedup(first * ratio, first, enough=False).verdict == "undecided"


def test_the_smallest_detectable_effect_by_simulation() -> None:
    """Noise of 10 % a sample, 120 blocks: a model that is faster by just the detectable ratio is found in about 80 of
    100 comparisons."""
    generator = np.random.default_rng(3)
    first, other = np.exp(0.1 * generator.standard_normal((2, 120, 2)))
    assert speedup(np.full((50, 2), 2.0), np.full((50, 2), 2.0)).detectable == pytest.approx(1 + MIN_EFFECT)
    told = float(np.median([_simulated(1.0, seed).detectable for seed in range(20)]))
    assert 1.04 < told < 1.12
    assert speedup(first, other).detectable > 1 + MIN_EFFECT
    found = [_simulated(told, seed).verdict for seed in range(100, 200)]
    assert 70 <= found.count("faster") <= 95
    assert "slower" not in found


def _simulated(ratio: float, seed: int) -> Speedup:
    first, other = np.exp(0.1 * np.random.default_rng(seed).standard_normal((2, 120, 2)))
    return speedup(ratio * first, other)


def test_samples_are_thinned_for_the_report() -> None:
    result, _ = run(noisy(0.1, 1), noisy(0.1, 2), precision=1e-9, time_limit_s=1000)
    assert result.protocol["blocks"] == 3000
    assert result.protocol["stopped"] == "most blocks taken"
    model = result.models[0]
    assert model.n == 6000
    assert len(model.samples_ms) == MAX_SAMPLES
    assert float(np.median(model.samples_ms)) == pytest.approx(model.p50_ms, rel=0.02)


def test_real_sessions(tmp_path: Path) -> None:
    sessions = [open_session(write_onnx(tmp_path / "net.onnx"), device="cpu", threads=1) for _ in range(2)]
    feeds = [random_feeds(session, 2) for session in sessions]
    result = compare(sessions, feeds, min_blocks=5, time_limit_s=1.0)
    assert 0 < result.models[0].best_ms <= result.models[0].p50_ms <= result.models[0].p95_ms
    assert result.models[0].repeats > 1  # microseconds: several launches a sample
    assert result.settings[0]["denormals"] == "flushed to zero"
    assert {"before", "after", "others_busy_pct", "stolen_pct"} <= set(result.conditions)
    assert result.models[0].images_per_s == pytest.approx(2000 / result.models[0].mean_ms)
    for session in sessions:
        session.close()
