"""The roofline by hand, and measured once on this machine."""

from __future__ import annotations

import pytest

from runtime.profile.roofline import Roofline, bound, cpu_roofline

DEVICE = Roofline("onnxruntime", "cpu", 1, 100.0, ((1000, 50.0), (10_000, 10.0)), 2.0, 4.0)


@pytest.mark.parametrize(
    ("macs", "moved", "floors", "name"),
    [
        (500_000, 1000, {"compute": 10.0, "memory": 0.02, "launch": 2.0}, "compute"),
        (50, 60_000, {"compute": 0.001, "memory": 6.0, "launch": 2.0}, "memory"),
        (50, 5000, {"compute": 0.001, "memory": 0.5, "launch": 2.0}, "launch"),
    ],
)
def test_floors_by_hand(macs: int, moved: int, floors: dict[str, float], name: str) -> None:
    """100 GFLOP/s are 50,000 multiply-accumulates a microsecond; 10 GB/s are 10,000 bytes a microsecond."""
    told = DEVICE.floor_us(macs, moved)
    assert told == pytest.approx(floors)
    assert bound(told) == name


def test_a_layer_that_was_faster_raises_the_peak() -> None:
    assert DEVICE.at_least([(1_000_000, 10.0), (5, 0.0)]).peak_gflops == pytest.approx(200.0)
    assert DEVICE.at_least([(1000, 10.0)]).peak_gflops == 100.0
    assert DEVICE.at_least([]) == DEVICE


def test_of_this_machine() -> None:
    """A core multiplies at more than 1 GFLOP/s and moves more than 0.2 GB/s; an operation costs less than 50 us."""
    told = cpu_roofline(1)
    assert 1 < told.peak_gflops < 5000
    assert all(0.2 < speed < 2000 for _, speed in told.bandwidth)
    assert 0 <= told.op_us < 50
    assert cpu_roofline(1) is told
