"""Schedules, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from pipeline import config
from pipeline.training.optimizer.schedule import learning_rate, one_cycle


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.04),  # peak / 25
        (15, 0.52),  # half of the rise: (0.04 + 1) / 2
        (10, 0.04 + 0.96 * 0.25),  # a third: (1 - cos 60 degrees) / 2 = 1/4
        (30, 1.0),
        (65, (1.0 + 4e-6) / 2),  # half of the fall
        (100, 4e-6),  # peak / 250,000
        (101, 4e-6),
        (10_000, 4e-6),
    ],
)
def test_one_cycle_of_100_steps(step: int, expected: float) -> None:
    assert one_cycle(step, 100, 1.0) == pytest.approx(expected, rel=1e-12)
    assert one_cycle(step, 100, 0.03) == pytest.approx(0.03 * expected, rel=1e-12)


def test_one_cycle_rises_then_falls_without_a_jump() -> None:
    values = [one_cycle(step, 10, 1.0) for step in range(12)]
    assert values.index(max(values)) == 3
    assert values[:4] == sorted(values[:4])
    assert values[3:] == sorted(values[3:], reverse=True)
    assert one_cycle(9.999999, 10, 1.0) == pytest.approx(one_cycle(10, 10, 1.0), abs=1e-9)


def test_a_one_cycle_of_one_step_starts_and_ends() -> None:
    assert one_cycle(0, 1, 0.1) == pytest.approx(0.004)
    assert one_cycle(1, 1, 0.1) == pytest.approx(4e-7)


def test_learning_rate_of_the_one_cycle_spans_all_steps() -> None:
    section = config.Training(epochs=10, lr=0.5)
    assert learning_rate(section, 0, 10) == pytest.approx(0.02)
    assert learning_rate(section, 30, 10) == pytest.approx(0.5)
    assert learning_rate(section, 99, 10) == pytest.approx(one_cycle(99, 100, 0.5))


def test_learning_rate_of_the_step_schedule_drops_after_whole_epochs() -> None:
    section = config.Training(epochs=10, lr=0.1, schedule="step", step_epochs=2, step_factor=0.2)
    rates = [learning_rate(section, step, 3) for step in range(15)]
    assert rates == pytest.approx([0.1] * 6 + [0.02] * 6 + [0.004] * 3)
    assert math.isclose(learning_rate(section, 29, 3), 0.1 * 0.2**4)


def test_constant_learning_rate() -> None:
    section = config.Training(lr=0.3, schedule="constant")
    assert learning_rate(section, 0, 7) == 0.3
    assert learning_rate(section, 99, 7) == 0.3


def test_milestones_after_a_linear_warm_up() -> None:
    """Published for ResNet-50: 5 % linear warm-up, then times 0.1 after 30, 70 and 90 of 100 epochs."""
    section = config.Training(epochs=100, lr=0.1, schedule="milestones", step_factor=0.1, warmup=0.05)
    rates = [learning_rate(section, step, 10) for step in range(1000)]
    assert rates[:4] == pytest.approx([0.002, 0.004, 0.006, 0.008])
    assert rates[49:300] == pytest.approx([0.1] * 251)
    assert (rates[300], rates[699], rates[700], rates[900]) == pytest.approx((0.01, 0.01, 0.001, 0.0001))
