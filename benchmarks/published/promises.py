"""What the papers say of each check, as sentences that points keep or break."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.results import Point

SLACK_PP = 0.3
"""Points of error, of shorter trainings and of seeds."""
COLLAPSED_PCT = 50.0
"""Error of a network that has lost what it needs: its width answers nothing."""
VARIATIONAL = [f"from {widths}, theta {theta}" for widths in ("300-100", "600-200") for theta in ("0.8", "0.5")]


def broken(points: Sequence[Point]) -> list[str]:
    """A line for each promise that the means over seeds break; of checks that are not there none."""
    return [text for text, holds in promises(points) if not holds]


def promises(points: Sequence[Point]) -> list[tuple[str, bool]]:
    """Sentence and whether it holds, in the order of the checks."""
    mean = Means(points)
    result: list[tuple[str, bool]] = []

    def at_most(check: str, run: str, limit: float, text: str) -> None:
        if (value := mean(check, run)) is not None:
            result.append((f"{check}, {run}: {text}, measured {value:.2f}", value <= limit))

    at_most("rigl", "rigl 99/89/0 %", 1.48 + SLACK_PP, "error 1.48 %")
    at_most("rigl", "rigl+ 96/86/0 %", 1.69 + SLACK_PP, "error 1.69 %")
    for check, run, error in (
        ("snip", "LeNet-300-100 snip 95 %", 1.6), ("snip", "LeNet-300-100 snip 98 %", 2.4),
        ("snip_lenet5", "LeNet-5 snip 98 %", 0.8), ("snip_lenet5", "LeNet-5 snip 99 %", 1.1),
        ("han", "LeNet-300-100", 1.59), ("han_lenet5", "LeNet-5", 0.77),
    ):  # fmt: skip
        at_most(check, run, error + SLACK_PP, f"error {error} %")
    for check, first, last in (("lottery_ticket", "ticket, round 0", "ticket, round 15"),
                               ("nnrelief", "round 0", "round 20")):  # fmt: skip
        if (dense := mean(check, first)) is not None:
            at_most(check, last, dense + SLACK_PP, f"the dense error {dense:.2f} %")
    for run in VARIATIONAL:
        at_most("variational", run, 1.6, "error 1.6 %")
    return result + orders(mean) + starts(mean)


def starts(mean: Means) -> list[tuple[str, bool]]:
    """Widths that variational gates end with are to be within 10 % of their mean, where the networks learned at all."""
    result: list[tuple[str, bool]] = []
    if any((mean("variational", run) or 0.0) > COLLAPSED_PCT for run in VARIATIONAL):
        return result
    for layer in ("first", "second"):
        widths = [width for run in VARIATIONAL if (width := mean("variational", run, layer)) is not None]
        if widths:
            middle = sum(widths) / len(widths)
            text = f"variational: {layer} widths within 10 %, {min(widths):.0f} to {max(widths):.0f}"
            result.append((text, max(abs(width - middle) for width in widths) <= 0.1 * middle))
    return result


ORDERS = (
    ("lottery_ticket", "ticket, round 7", "reinit, round 7"), ("set", "set", "static_erk"), ("set", "set", "dense"),
    ("ctre", "ctre", "set"), ("truly_sparse", "All-ReLU", "ReLU"), ("ispasp", "ispasp", "magnitude"),
    ("ispasp", "ispasp", "random"), ("imp", "allr", "slr"), ("imp", "llr", "slr"), ("imp", "clr", "slr"),
    ("imp", "slr", "lrw"), ("imp", "lrw", "ft"),
)  # fmt: skip
"""Check, and which run is to be no worse than which."""


def orders(mean: Means) -> list[tuple[str, bool]]:
    """Whether `ORDERS` hold."""
    result: list[tuple[str, bool]] = []
    for check, better, worse in ORDERS:
        first, second = mean(check, better), mean(check, worse)
        if first is not None and second is not None:
            result.append((f"{check}: {better} no worse than {worse}, {first:.2f} and {second:.2f} %", first <= second))
    return result


class Means:
    """Of a figure over the seeds, by check and run."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = points

    def __call__(self, check: str, run: str, key: str = "error_pct") -> float | None:
        values = [p[key] for p in self.points if p["check"] == check and p["run"] == run and p.get(key) is not None]
        return sum(values) / len(values) if values else None
