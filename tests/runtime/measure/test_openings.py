"""Comparisons of sessions that are opened anew, on a clock of their own: nothing depends on this machine's speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import Array, open_session
from runtime.backends.feeds import random_feeds
from runtime.errors import UserError
from runtime.measure.latency import Comparison, Opener, Running, compare, compare_openings, in_turn
from tests.runtime.measure.test_latency import Clock, Timed
from tests.runtime.nets import write_onnx

MS = 1e6


class Opened(Timed):
    """A session of the `number`-th opening of its network; opening takes `opening_ms`."""

    def close(self) -> None:
        self.clock.log.append("-" + self.name)


class Network:
    """Opens sessions that take `ms(opening)` a launch."""

    def __init__(self, name: str, clock: Clock, ms: Callable[[int], float], opening_ms: float = 0.0) -> None:
        self.name, self.clock, self.ms, self.opening_ms, self.opened = name, clock, ms, opening_ms, 0

    def __call__(self) -> Opened:
        self.clock.log.append("+" + self.name)
        self.clock.now += self.opening_ms * MS
        took = self.ms(self.opened) * MS
        self.opened += 1
        session = Opened(self.name, self.clock, lambda launch: took)
        session.bind = lambda feeds: None  # type: ignore[method-assign]
        return session


def run(*speeds: Callable[[int], float], opening_ms: float = 0.0, **options: Any) -> tuple[Comparison, Clock]:
    clock = Clock()
    networks = [Network("ABC"[i], clock, ms, opening_ms) for i, ms in enumerate(speeds)]
    return compare_openings(networks, [{}] * len(networks), clock=clock, **options), clock


def spread(ms: float, share: float, seed: int) -> Callable[[int], float]:
    """Log-normal from opening to opening, and the same within one."""
    generator = np.random.default_rng(seed)
    drawn = ms * np.exp(share * generator.standard_normal(10_000))
    return lambda opening: float(drawn[opening])


def test_figures_of_constant_times() -> None:
    """Six openings of five blocks would do; it goes on for 20 s all the same, to be spread over them."""
    result, clock = run(lambda _: 2.0, lambda _: 1.0, opening_ms=50)
    assert [(one.p50_ms, one.best_ms, one.p99_ms) for one in result.models] == [(2.0,) * 3, (1.0,) * 3]
    assert (result.speedups[0].ratio, result.speedups[0].ci95, result.speedups[0].verdict) == (
        2.0,
        (2.0, 2.0),
        "faster",
    )
    protocol = result.protocol
    assert protocol["stopped"] == "interval narrow enough" and protocol["openings"] >= 6
    assert 20e9 <= clock.now < 25e9
    assert result.models[0].n == 2 * protocol["blocks"] and protocol["blocks"] % protocol["openings"] == 0


def test_every_opening_is_closed_before_the_next_and_the_first_one_takes_turns() -> None:
    _, clock = run(lambda _: 20.0, lambda _: 10.0, time_limit_s=5)
    doors = "".join(one for one in clock.log if len(one) == 2)
    assert doors.startswith("+A+B-B-A+B+A-A-B+A+B-B-A")


def test_what_differs_from_opening_to_opening_widens_the_interval() -> None:
    """Within an opening nothing varies; between openings the ratio does by 7 %: from ten of them the mean is known to
    2 %, a 95 % interval is wider than 3 % to each side, and one sitting would have called it exact."""
    ratios, covered = [], 0
    for seed in range(60):
        told, _ = run(spread(2.0, 0.05, seed), spread(2.0, 0.05, 1000 + seed), precision=0.04, time_limit_s=60)
        low, high = told.speedups[0].ci95
        covered += low <= 1.0 <= high
        ratios.append(told.speedups[0].ratio)
    assert covered >= 54  # of 60: the lower 1 % point of 95 % is 52
    assert 0.005 < np.std(ratios) < 0.03
    clock = Clock()
    first, other = (Network(name, clock, spread(2.0, 0.05, seed))() for name, seed in (("A", 1), ("B", 2)))
    sitting = compare([first, other], [{}, {}], clock=clock)
    assert sitting.speedups[0].ci95[0] == sitting.speedups[0].ci95[1] != 1.0


def test_openings_that_take_long_hold_more_blocks() -> None:
    quick, _ = run(lambda _: 1.0, lambda _: 1.0, opening_ms=1)
    slow, _ = run(lambda _: 1.0, lambda _: 1.0, opening_ms=100)
    assert quick.protocol["blocks"] == 5 * quick.protocol["openings"]
    assert slow.protocol["blocks"] == 25 * slow.protocol["openings"]  # 200 ms, a block of 8 launches of 1 ms


def test_the_time_limit_ends_it_and_withholds_the_verdict() -> None:
    """A block takes 2.4 s, of which a sixth of 24 s holds one."""
    result, clock = run(lambda _: 400.0, lambda _: 200.0, time_limit_s=24)
    assert result.protocol["stopped"].startswith("time limit after ")
    assert result.protocol["openings"] == result.protocol["blocks"] >= 5
    assert (result.speedups[0].ratio, result.speedups[0].verdict) == (2.0, "undecided")
    assert clock.now < 2 * 24e9
    noisy, _ = run(spread(10.0, 0.2, 1), spread(10.0, 0.2, 2), time_limit_s=10, precision=1e-6)
    assert noisy.protocol["stopped"] == "time limit" and noisy.protocol["openings"] >= 6


def test_a_figure_that_is_not_gated_ends_with_a_wide_interval() -> None:
    """After 3 of 60 s of its own, and not before it has six openings and is spread over 20 s."""
    speeds = spread(10.0, 0.2, 1), spread(10.0, 0.2, 2)
    told, clock = run(*speeds, time_limit_s=60, precision=1e-6, enough_s=3)
    assert told.protocol["stopped"] == "time limit of figures that are not gated" and 20e9 <= clock.now < 22e9
    slow, _ = run(lambda _: 400.0, lambda _: 200.0, time_limit_s=120, enough_s=3, min_blocks=20)
    assert slow.protocol["openings"] >= 6 and slow.protocol["blocks"] >= 20


def test_several_go_on_in_turn_and_use_their_own_time_alone() -> None:
    clock = Clock()
    networks = [Network(name, clock, spread(10.0, 0.3, seed)) for seed, name in enumerate("ABC")]
    comparisons = [
        Running(networks[:2], [{}] * 2, clock=clock, time_limit_s=4, precision=1e-6),
        Running(networks[1:], [{}] * 2, clock=clock, time_limit_s=4, precision=1e-6),
    ]
    first, second = in_turn(comparisons)
    assert abs(first.protocol["openings"] - second.protocol["openings"]) <= 3
    doors = "".join(one for one in clock.log if one[0] == "+")
    assert doors.startswith("+A+B+B+C+B+A+C+B")
    assert 8e9 < clock.now < 10e9  # 4 s each
    assert [one.name for one in second.models] == ["B", "C"]


def test_a_network_that_is_given_up_on_is_opened_no_more() -> None:
    clock = Clock()
    networks = [Network(name, clock, spread(ms, 0.0, 0)) for name, ms in (("A", 2.0), ("B", 9.0), ("C", 1.0))]
    running = Running(networks, [{}] * 3, clock=clock, most=3, precision=1e-9)
    running.advance()
    assert [row.tolist() for row in running.last_ms()] == [[2.0] * 10, [9.0] * 10, [1.0] * 10]
    running.keep_only([0, 2])
    while not running.stopped:
        running.advance()
    assert (networks[0].opened, networks[1].opened, running.stopped) == (3, 1, "most openings made")
    result = running.comparison()
    assert [one.name for one in result.models] == ["A", "C"] and result.speedups[0].ratio == 2.0


def test_what_an_opener_raises_arrives_and_what_was_open_is_closed() -> None:
    clock = Clock()

    def refuse() -> Opened:
        raise UserError("no memory left", "room", "free some")

    with pytest.raises(UserError, match="no memory left"):
        compare_openings([Network("A", clock, lambda _: 1.0), refuse], [{}] * 2, clock=clock)
    assert clock.log == ["+A", "-A"]


class Copying(Opened):
    """Copies take 3 ms in and 1 ms out."""

    def bind(self, feeds: Mapping[str, Array]) -> None:
        self.clock.now += 3 * MS

    def fetch(self) -> dict[str, Array]:
        self.clock.now += 1 * MS
        return {}


def test_end_to_end_holds_the_copies() -> None:
    clock = Clock()

    def opener(name: str, ms: float) -> Opener:
        return lambda: Copying(name, clock, lambda launch: ms * MS)

    openers, feeds = [opener("A", 4.0), opener("B", 2.0)], [{"input": np.zeros((8, 1), np.float32)}] * 2
    result = compare_openings(openers, feeds, clock=clock, copies=True)
    assert [m.p50_ms for m in result.models] == [8.0, 6.0]
    assert [m.images_per_s for m in result.models] == pytest.approx([1000.0, 8000 / 6])
    assert result.speedups[0].ratio == pytest.approx(8 / 6)
    assert compare_openings(openers, feeds, clock=clock).speedups[0].ratio == 2.0


def test_real_sessions(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx")

    def opener() -> Any:
        return open_session(path, device="cpu", threads=1)

    feed = random_feeds(opener(), 2)
    result = compare_openings([opener, opener], [feed, feed], min_blocks=5, time_limit_s=1.0, precision=0.2)
    assert 0 < result.models[0].best_ms <= result.models[0].p50_ms <= result.models[0].p95_ms
    assert result.models[0].repeats > 1 and result.protocol["openings"] >= 5
    assert result.settings[0]["denormals"] == "flushed to zero" and "name" not in result.settings[0]
    assert {"before", "after", "others_busy_pct", "stolen_pct"} <= set(result.conditions)
