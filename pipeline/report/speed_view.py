"""What the pages show of speed: rows of formatted figures out of a Report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.why import WORTHWHILE
from runtime.conditions import complaints

from . import numbers
from .schema import Report
from .speed_schema import Concurrency, Why
from .view import LatencyRow, Source, headline_latency, latency_rows

QUANTILES = {"fastest": 0.0, "5 %": 5, "25 %": 25, "50 %": 50, "75 %": 75, "95 %": 95, "99 %": 99, "slowest": 100.0}


@dataclass(frozen=True)
class Explanation:
    """Why one backend is not as fast as compact is small: sentences, and the figures under them."""

    title: str
    sentence: str
    why: Why
    parts: list[tuple[str, str, str]]
    """(part of a run, dense, compact)."""


def explanations(source: Source) -> list[Explanation]:
    """Of every backend whose speedup is under 70 % of the MACs ratio."""
    return [_explanation(why) for why in source.report.why if why.share < WORTHWHILE]


def _explanation(why: Why) -> Explanation:
    threads = f", {why.threads} threads" if why.threads and why.threads > 1 else ", 1 thread" if why.threads else ""
    sentence = (
        f"MACs fell {numbers.ratio(why.macs_ratio)}, the time {numbers.ratio(why.speedup)} on {why.where}, batch "
        f"{why.batch}{threads}: {100 * why.share:.0f} % of that ratio. Most of compact's run is bound by "
        f"{BOUNDS[why.verdict]} ({why.bound_pct[why.verdict]:.0f} %)."
    )
    return Explanation(f"{why.where}, batch {why.batch}", sentence, why, parts(why))


BOUNDS = {
    "compute": "arithmetic",
    "memory": "memory",
    "launch": "the cost of starting operations",
    "reformat": "changes of layout or type",
    "between": "what happens between operations",
}


def parts(why: Why) -> list[tuple[str, str, str]]:
    names = {
        "run_us": "A run",
        "layers_us": "in layers with weights",
        "other_us": "in other operators",
        "reformat_us": "changing layouts and types",
        "between_us": "between operators",
    }
    figures = [
        (label, *(f"{numbers.significant(why.time[role][key])}{numbers.GAP}us" for role in ("dense", "compact")))
        for key, label in names.items()
    ]
    counts = (str(sum(why.time[role]["kernels"].values())) for role in ("dense", "compact"))
    return [*figures, ("operators", *counts)]  # type: ignore[list-item]


def roofline(why: Why) -> str:
    """The device's limits in a sentence."""
    line = why.roofline
    rates = ", ".join(f"{speed:.0f}{numbers.GAP}GB/s at {numbers.binary(size)}" for size, speed in line["bandwidth"])
    return (
        f"This device at best, measured with {line['backend']}: {line['peak_gflops']:.0f}{numbers.GAP}GFLOP/s; memory "
        f"{rates}; {line['op_us']:.2f}{numbers.GAP}us an operator, {line['run_us']:.1f}{numbers.GAP}us a run."
    )


def headline_samples(source: Source) -> dict[str, list[float]] | None:
    """Launch times of dense and compact in the comparison that stands for the run; None where there are none."""
    row = headline_latency(source)
    if row is None:
        return None
    key = f"{row.backend}.{row.precision}.b{row.batch}"
    found = {role: list(source.samples.get(f"{role}.{key}", ())) for role in ("dense", "compact")}
    return found if all(found.values()) else None


def quantiles(source: Source) -> list[tuple[str, str, str]]:
    """The distribution as a table: (quantile, dense, compact)."""
    samples = headline_samples(source)
    if samples is None:
        return []
    values = {role: np.percentile(times, list(QUANTILES.values())) for role, times in samples.items()}
    return [
        (name, numbers.milliseconds(float(values["dense"][i])), numbers.milliseconds(float(values["compact"][i])))
        for i, name in enumerate(QUANTILES)
    ]


def swept(source: Source) -> list[LatencyRow]:
    """The batch sweep of the backend that stands for the run; [] where it has fewer than two sizes."""
    headline = headline_latency(source)
    rows = [
        row
        for row in latency_rows(source.report)
        if headline
        and (row.backend, row.precision) == (headline.backend, headline.precision)
        and row.figures.dense
        and row.figures.compact
    ]
    return rows if len(rows) > 1 else []


@dataclass(frozen=True)
class Loaded:
    """A form of the networks with several sessions at once: an entry for each number of them, None where it has no
    figures."""

    name: str
    entries: list[Concurrency | None]


def streams(report: Report) -> list[int]:
    """The numbers of sessions that were measured at once."""
    return sorted({entry.streams for entry in report.concurrency})


def loaded(report: Report) -> list[Loaded]:
    """A row for each form that was measured with one number of sessions at least."""
    found: dict[str, dict[int, Concurrency]] = {}
    for entry in report.concurrency:
        if entry.speedup is not None:
            found.setdefault(f"{entry.backend} {entry.precision}", {})[entry.streams] = entry
    return [Loaded(name, [entries.get(count) for count in streams(report)]) for name, entries in found.items()]


def unmeasured_loads(report: Report) -> list[str]:
    """`tensorrt_rtx fp32, fp16; 1, 2 at once: no GPU`, a line per backend and reason."""
    found: dict[tuple[str, str], list[Concurrency]] = {}
    for entry in report.concurrency:
        if entry.speedup is None:
            found.setdefault((entry.backend, entry.reason or ""), []).append(entry)
    return [
        f"{backend} {', '.join(dict.fromkeys(entry.precision for entry in entries))}; "
        f"{', '.join(dict.fromkeys(str(entry.streams) for entry in entries))} at once: {reason}"
        for (backend, reason), entries in found.items()
    ]


def method(source: Source) -> list[tuple[str, str]]:
    """How the comparison that stands for the run was measured, as rows."""
    row = headline_latency(source)
    if row is None or row.figures.protocol is None or row.figures.speedup is None:
        return []
    protocol: Mapping[str, Any] = row.figures.protocol
    names = {"order": "Order", "openings": "Openings", "blocks": "Blocks", "warmup_rounds": "Warm-up rounds",
             "stopped": "Ended by", "interval": "Interval", "min_effect": "Differences left out up to"}  # fmt: skip
    rows = [(label, str(protocol[key])) for key, label in names.items() if key in protocol]
    rows.append(("Smallest speedup it would have found", numbers.ratio(row.figures.speedup.detectable)))
    state = protocol.get("conditions")
    return rows + (conditions(state) if state else [])


def conditions(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How busy the machine was."""
    after = state["after"]
    rows = [
        ("Load, 1 minute", f"{state['before']['load_1m']} before, {after['load_1m']} after"),
        ("Cores taken by others", f"{state.get('others_busy_pct')}{numbers.GAP}%"),
        ("Cores taken by the hypervisor", f"{state.get('stolen_pct')}{numbers.GAP}%"),
        *_handover(state.get("handover_us")),
        ("CPU governor", after["governor"] or "not told by this system"),
    ]
    for gpu in state.get("gpus", ()):
        ranges = {name: gpu[name] for name in ("sm_mhz", "temperature_c", "power_w") if gpu.get(name)}
        told = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in ranges.items())
        rows.append((str(gpu["name"]), f"{told}; throttled by: {', '.join(gpu['slowed_by']) or 'nothing'}"))
    return rows


def _handover(told_us: float | None) -> list[tuple[str, str]]:
    return [("Handing 256 KiB from core to core", f"{told_us:g}{numbers.GAP}us")] if told_us else []


def doubts(source: Source) -> list[str]:
    """What made the comparison that stands for the run doubtful; [] where nothing did."""
    row = headline_latency(source)
    state = row.figures.protocol.get("conditions") if row and row.figures.protocol else None
    return complaints(state) if state and "before" in state else []
