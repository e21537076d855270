"""Figures as people read them; every function takes None for "not measured"."""

from __future__ import annotations

from runtime.measure.latency import Speedup

NOT_MEASURED = "not measured"
GAP = "\N{NO-BREAK SPACE}"  # between a number and its unit


def percent(fraction: float | None, digits: int = 2) -> str:
    """0.9924 -> `99.24 %`."""
    return NOT_MEASURED if fraction is None else f"{100 * fraction:.{digits}f}{GAP}%"


def points(fraction: float | None, digits: int = 2) -> str:
    """A signed difference of two fractions in percentage points: -0.0025 -> `-0.25 pp`."""
    return NOT_MEASURED if fraction is None else f"{100 * fraction:+.{digits}f}{GAP}pp"


def count(value: float | None) -> str:
    """1234567 -> `1,234,567`."""
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """Three significant digits with a unit prefix: 1234567 -> `1.23 M`, 950 -> `950`."""
    if value is None:
        return NOT_MEASURED
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{significant(value / size)}{GAP}{prefix}"
    return significant(value)


def binary(size: float | None) -> str:
    """Bytes in powers of 1024: 1234567 -> `1.18 MiB`."""
    if size is None:
        return NOT_MEASURED
    for unit, prefix in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{significant(size / unit)}{GAP}{prefix}"
    return f"{size:.0f}{GAP}B"


def milliseconds(value: float | None) -> str:
    """1.8312 -> `1.83 ms`."""
    return NOT_MEASURED if value is None else f"{significant(value)}{GAP}ms"


def ratio(value: float | None) -> str:
    """2.004 -> `2.00x`."""
    return NOT_MEASURED if value is None else f"{value:.2f}x"


def seconds(value: float | None) -> str:
    """75.2 -> `1 min 15 s`, 7.513 -> `7.5 s`."""
    if value is None:
        return NOT_MEASURED
    if value < 59.95:
        return f"{value:.1f}{GAP}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{GAP}h {minutes}{GAP}min" if hours else f"{minutes}{GAP}min {rest}{GAP}s"


def between(low: float, high: float, digits: int = 2) -> str:
    """An interval: `(1.95 to 2.01)`."""
    return f"({low:.{digits}f}{GAP}to{GAP}{high:.{digits}f})"


def small(value: float | None) -> str:
    """A difference: 0 -> `0`, 0.0000012 -> `1.2e-06`."""
    if value is None:
        return NOT_MEASURED
    return "0" if value == 0 else f"{value:.2g}"


def plain(value: float | None) -> str:
    """A gate's value or limit, whose unit its name tells: up to four significant digits."""
    return NOT_MEASURED if value is None else f"{value:.4g}"


def significant(value: float) -> str:
    """Three significant digits without an exponent: 12.345 -> `12.3`, 1.8312 -> `1.83`, 256.0 -> `256`."""
    magnitude = abs(value)
    digits = 0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2 if magnitude >= 0.9995 else 3
    return f"{value:,.{digits}f}"


def wording(speedup: Speedup) -> str:
    """What a ratio and its interval say. An interval that excludes 1 is a difference, also where it is smaller than
    the measurement's least effect, which another day may undo."""
    low, high = speedup.ci95
    if speedup.verdict == "undecided":
        return "not measured long enough"
    if speedup.verdict != "not distinguishable":
        return speedup.verdict
    return "slightly faster" if low > 1 else "slightly slower" if high < 1 else "no difference found"


def with_interval(speedup: Speedup | None) -> str:
    """`1.98x (1.95 to 2.01)`."""
    return "" if speedup is None else f"{ratio(speedup.ratio)} {between(*speedup.ci95)}"


def capital(metric: str) -> str:
    """A metric's name at the beginning of a sentence: Accuracy, mIoU."""
    return metric.capitalize() if metric.islower() else metric
