"""A run's figures by name, as `demport gate` compares them, read out of its report.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from runtime.conditions import complaints, scatter
from runtime.errors import UserError
from runtime.gate import Gate

Report = Mapping[str, Any]
T = TypeVar("T")
RATIOS, TIMES = ("speedup", "reference"), ("p50_ms", "best_ms")
MORE_IS_BETTER, BEST = ("accuracy", *RATIOS), "best_ratio"
"""Kinds of figures; of all others less is better."""


def kind_of(name: str) -> str:
    """`p50_ms.onnxruntime.fp32.b1` -> `p50_ms`."""
    return name.partition(".")[0]


def figures_of(report: Report) -> dict[str, float]:
    """The compact network's figures by name: params, macs, bytes, accuracy.<hop>, speedup.<where>, p50_ms.<where> and
    best_ms.<where>, where <where> is `<backend>.<precision>.b<batch>`; and reference.b<batch>, the p50 of the reference
    model over compact's. best_ratio.<name> of a ratio is that of the fastest samples. What was not measured is left
    out."""
    compact = report["models"]["compact"]
    figures = {name: compact[name] for name in ("params", "macs", "bytes")}
    figures |= {f"accuracy.{hop}": value for hop, value in compact["accuracy"].items()}
    for where, measured in latencies(report):
        if measured["compact"] is not None:
            figures |= {f"{name}.{where}": measured["compact"][name] for name in ("p50_ms", "best_ms")}
        if measured["speedup"] is not None:
            figures[f"speedup.{where}"] = measured["speedup"]["ratio"]
    if reference := report.get("reference"):
        figures[f"reference.b{reference['batch']}"] = reference["speedup"]["ratio"]
    found = {name: float(value) for name, value in figures.items() if value is not None}
    return found | {f"{BEST}.{name}": ratio for name in found if (ratio := _best_ratio(name, report)) is not None}


def _best_ratio(name: str, report: Report) -> float | None:
    """The fastest sample of the other network over compact's; None of figures that are no ratios, and where the report
    does not tell."""
    entry = ratio_entry(name, report) if is_ratio(name) else {}
    first, compact = entry.get("reference") or entry.get("dense") or {}, entry.get("compact") or {}
    other_ms, compact_ms = first.get("best_ms"), compact.get("best_ms")
    return float(other_ms) / float(compact_ms) if other_ms and compact_ms else None


def latencies(report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(`<backend>.<precision>.b<batch>`, entry)."""
    for backend, precisions in report["latency"].items():
        for precision, batches in precisions.items():
            for batch, measured in batches.items():
                yield f"{backend}.{precision}.{batch}", measured


def ratio_entry(name: str, report: Report) -> Mapping[str, Any]:
    """The entry that a speedup or a ratio to the reference comes from."""
    kind, _, where = name.partition(".")
    return report["reference"] if kind == "reference" else dict(latencies(report))[where]


def intervals_of(report: Report) -> dict[str, list[float]]:
    """The 95 % interval of every ratio of `figures_of`."""
    found = ((name, ratio_entry(name, report)["speedup"]["ci95"]) for name in figures_of(report) if is_ratio(name))
    return {name: [float(low), float(high)] for name, (low, high) in found}


def is_ratio(name: str) -> bool:
    return kind_of(name) in RATIOS


def measured_as(name: str) -> str:
    """The measurement that a figure of speed comes from: `<where>`, which its speedup and its times share, or
    `reference.b<batch>`; "" of figures that are none of speed."""
    kind, _, where = name.partition(".")
    return name if kind == "reference" else where if kind in (*RATIOS, *TIMES) else ""


def doubts_of(name: str, report: Report) -> list[str]:
    """What disturbed the machine while the figure was measured; [] of figures that are none of speed, or not there."""
    state = (_measurement_of(name, report).get("protocol") or {}).get("conditions")
    return complaints(state, settings=False) if state else []


def scatter_of(name: str, report: Report) -> list[str]:
    """Which networks' launches scattered while the figure was measured (`conditions.scatter`); [] of figures that are
    none of speed, or not there."""
    found = _measurement_of(name, report)
    return scatter(*(found[role] for role in ("reference", "dense", "compact") if found.get(role)))


def handover_of(name: str, report: Report) -> float | None:
    """Microseconds in which the cores handed each other data while the figure was measured (`runtime.handover`)."""
    state = (_measurement_of(name, report).get("protocol") or {}).get("conditions") or {}
    told = state.get("handover_us")
    return None if told is None else float(told)


def is_gated(name: str, report: Report) -> bool:
    """Whether a figure of speed is from a comparison that the run's own gates look at, which is given the time that it
    takes; True of all others, and where the report does not tell."""
    return bool((_measurement_of(name, report).get("protocol") or {}).get("gated", True))


def _measurement_of(name: str, report: Report) -> Mapping[str, Any]:
    """The entry of the report that the figure is from; {} of figures that are none of speed, or not there."""
    if not (where := measured_as(name)):
        return {}
    found = report.get("reference") if kind_of(name) == "reference" else dict(latencies(report)).get(where)
    return found or {}


def by_measurement(tell: Callable[[str, Report], T | None], report: Report) -> dict[str, T]:
    """What `doubts_of`, `scatter_of` or `handover_of` tells of each measurement of speed (`measured_as`); without those
    of which it tells nothing."""
    found = {measured_as(name): tell(name, report) for name in figures_of(report)}
    return {where: told for where, told in found.items() if told}


def demand_report(report: Report) -> None:
    """UserError where the report lacks, or holds as another type, what the rules look at."""
    try:
        found = (report["name"], report["environment"]["fingerprint"], report["verdict"]["status"], figures_of(report))
        assert all(isinstance(text, str) for text in found[:3])
        assert all(Gate(**gate).status in ("pass", "fail", "inconclusive") for gate in report["verdict"]["gates"])
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError) as error:
        raise UserError(
            f"the report is not whole ({type(error).__name__}: {error})",
            "the report.json of a checked run",
            "run `demport check` on it",
        ) from error
