"""Nested phases as one fraction that never falls, and how it is reported."""

from __future__ import annotations

from multiprocessing import Pipe

from hypothesis import given
from hypothesis import strategies as st

from export.engines.tensorrt.progress import Phases, monitor
from tests.export import standins


def test_a_phase_is_one_step_of_its_parent() -> None:
    phases = Phases()
    phases.start("build", None, 4)
    phases.step("build", 0)
    assert phases.fraction == 0.25
    phases.start("optimise", "build", 2)
    phases.start("time", "optimise", 5)
    phases.step("time", 0)  # 1/4 + 1/4 * (0 + 1/2 * 1/5)
    assert phases.fraction == 0.275
    phases.step("optimise", 0)
    assert phases.fraction == 0.25 + 0.25 * (0.5 + 0.5 * 0.2)
    phases.finish("time")
    phases.finish("optimise")
    phases.step("build", 3)
    phases.finish("build")
    assert (phases.fraction, phases.text) == (1.0, "time")


@given(st.lists(st.tuples(st.sampled_from(["start", "step", "finish"]), st.integers(0, 4), st.integers(-1, 9))))
def test_any_order_of_calls_stays_between_0_and_1_and_never_falls(calls: list[tuple[str, int, int]]) -> None:
    phases, before = Phases(), 0.0
    for what, number, size in calls:
        name = f"phase{number}"
        if what == "start":
            phases.start(name, f"phase{number - 1}" if number else None, size)
        elif what == "step":
            phases.step(name, size)
        else:
            phases.finish(name)
        assert before <= phases.fraction <= 1.0
        before = phases.fraction


def test_each_visible_move_is_reported() -> None:
    reports: list[tuple[float, str]] = []
    watcher = monitor(standins.module("11.4.0.106"), lambda fraction, phase: reports.append((fraction, phase)))
    watcher.phase_start("Building", None, 2)
    assert watcher.step_complete("Building", 0) is True
    watcher.phase_finish("Building")
    assert reports == [(0.0, "Building"), (0.5, "Building"), (1.0, "Building")]


def test_a_reader_that_went_away_does_not_stop_the_builder() -> None:
    ours, theirs = Pipe()
    watcher = monitor(standins.module("10.9.0.34"), lambda fraction, phase: theirs.send((fraction, phase)))
    ours.close()
    watcher.phase_start("Building", None, 1)
    assert watcher.step_complete("Building", 0) is True
    watcher.phase_finish("Building")
    theirs.close()
    assert ours.closed and theirs.closed
