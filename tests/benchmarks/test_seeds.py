"""Means over seeds, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.seeds import mean_over_seeds


def run(method: str, amount: float, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    asked = f"lambda {amount:g}" if method.startswith("demp") else f"{100 * amount:g} % of the MACs"
    figures = {"accuracy_pct": accuracy, "macs_pct": 20.0 + seed, "params": 100 + seed, **more}
    return {"method": method, "amount": amount, "asked": asked, "seed": seed, **figures}


def test_each_method_and_amount_has_its_means() -> None:
    points = [
        run("narrow", 0.2, 0, 70.0, speedup=2.0, batch_32_p50_ms=1.0), run("narrow", 0.2, 1, 73.0, speedup=3.0),
        run("narrow", 0.35, 0, 75.0), run("demp plain", 0.01, 0, 60.0), run("steered macs", 0.2, 0, 74.0),
    ]  # fmt: skip
    means = mean_over_seeds(points)
    assert [(p["method"], p["amount"], p["seeds"]) for p in means] == [
        ("steered macs", 0.2, 1), ("narrow", 0.2, 2), ("narrow", 0.35, 1), ("demp plain", 0.01, 1),
    ]  # fmt: skip
    narrow = means[1]
    assert narrow["accuracy_pct"] == pytest.approx(71.5)
    assert (narrow["accuracy_low_pct"], narrow["accuracy_high_pct"]) == (70.0, 73.0)
    assert (narrow["macs_pct"], narrow["params"], narrow["speedup"]) == pytest.approx((20.5, 100.5, 2.5))
    assert narrow["batch_32_p50_ms"] == 1.0, "of the seed that has it"
    assert means[0]["speedup"] is None
