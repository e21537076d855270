"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.report.page import numbers

FORMS = [
    (numbers.percent, 0.99244, "99.24 %"),
    (numbers.points, -0.0025, "-0.25 pp"),
    (numbers.points, 0.0, "+0.00 pp"),
    (numbers.count, 1234567, "1,234,567"),
    (numbers.short, 1234567, "1.23 M"),
    (numbers.short, 999_700, "1.00 M"),
    (numbers.short, 999_400, "999 k"),
    (numbers.short, 950, "950"),
    (numbers.binary, 1234567, "1.18 MiB"),
    (numbers.binary, 1023, "1023 B"),
    (numbers.milliseconds, 1.8312, "1.83 ms"),
    (numbers.milliseconds, 0.15999, "0.160 ms"),
    (numbers.milliseconds, 1234.5, "1,234 ms"),
    (numbers.ratio, 2.004, "2.00x"),
    (numbers.seconds, 7.513, "7.5 s"),
    (numbers.seconds, 59.97, "1 min 0 s"),
    (numbers.seconds, 75.2, "1 min 15 s"),
    (numbers.seconds, 7325, "2 h 2 min"),
    (numbers.small, 0, "0"),
    (numbers.small, 0.0000012, "1.2e-06"),
    (numbers.plain, 0.50378, "0.5038"),
]


@pytest.mark.parametrize(("form", "value", "text"), FORMS)
def test_figures(form: Callable[[float | None], str], value: float, text: str) -> None:
    assert form(value).replace(numbers.GAP, " ") == text
    assert form(None) == "not measured"


def test_an_interval_does_not_break_over_lines() -> None:
    text = numbers.between(1.948, 2.013)
    assert text.replace(numbers.GAP, " ") == "(1.95 to 2.01)"
    assert " " not in text
