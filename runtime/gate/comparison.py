"""A run against the accepted release: every figure by one rule, on what was measured of both in one job.

Speed and accuracy have 95 % intervals: a gate fails where the whole interval is beyond what the rules allow, passes
where the whole interval is within, and is inconclusive else. Parameters, MACs and bytes are exact. What disturbed the
machine is said beside a figure and decides nothing: both networks had their share of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import UserError
from runtime.gate import Gate, Status, Verdict, accuracy_gate, disturbance, verdict, within
from runtime.gate.baseline import Baseline, Release
from runtime.measure.conditions import complaints
from runtime.measure.latency import Comparison
from runtime.measure.statistics import PairedAccuracy


@dataclass(frozen=True)
class Measured:
    """Of both compact networks in one job, the accepted one first: `latency` by "<backend>.<precision>.b<batch>";
    `accuracy` on the same images, and the share of them (`agreement`) that both give the same class. `reasons` says
    why one is missing, by the same names."""

    latency: Mapping[str, Comparison] = field(default_factory=dict)
    accuracy: PairedAccuracy | None = None
    agreement: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


def judge(release: Release, own: Mapping[str, Any], baseline: Baseline, measured: Measured) -> Verdict:
    """The run's own gates (`own`: its check's verdict), then those against the baseline."""
    gates = [Gate(**gate) for gate in own["gates"]]
    if own["status"] == "fail" and not any(gate.status == "fail" for gate in gates):
        gates.append(Gate("verdict", "fail", None, None, "the run's own verdict is fail"))
    return verdict([
        *gates,
        *_origin(release, baseline.release),
        *_engines(release, baseline.release),
        *_exact(release, baseline),
        *_accuracy(release, baseline, measured),
        *_latency(baseline, measured),
        *_limits(release, baseline, measured),
    ])  # fmt: skip


def _origin(new: Release, accepted: Release) -> Iterator[Gate]:
    """Other data and another model do not compare; any other section may differ."""
    for name, before, now in (("data", accepted.data, new.data), ("model", accepted.model, new.model)):
        same = before["fingerprint"] == now["fingerprint"] if name == "data" else before == now
        reason = (
            f"the {name} of the baseline" if same else f"other {name} than the baseline's: {_difference(before, now)}"
        )
        yield Gate(f"baseline.{name}", "pass" if same else "inconclusive", None, None, reason)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return ", ".join(f"{key} {now.get(key)} instead of {before.get(key)}" for key in keys)


def _engines(new: Release, accepted: Release) -> Iterator[Gate]:
    """Engines and measured forms that the accepted release has and the run does not."""
    gone = [name for name in accepted.engines if name not in new.engines]
    if accepted.engines:
        reason = f"gone: {', '.join(gone)}" if gone else f"all {len(accepted.engines)} engines are there"
        there = len(accepted.engines) - len(gone)
        yield Gate("baseline.engines", "fail" if gone else "pass", there, len(accepted.engines), reason)


def _exact(new: Release, baseline: Baseline) -> Iterator[Gate]:
    for name in ("params", "macs", "bytes"):
        rule = getattr(baseline.rules, name)
        if rule is None:
            continue
        before, now = baseline.release.figures[name], new.figures[name]
        limit = before + rule.allowed(before)
        reason = f"{now:,.0f}, was {before:,.0f}, at most {limit:,.0f} allowed"
        yield Gate(f"baseline.{name}", "pass" if now <= limit else "fail", now, limit, reason)


def _accuracy(new: Release, baseline: Baseline, measured: Measured) -> Iterator[Gate]:
    """The ONNX files on the same images; of the other forms, that they were measured again."""
    rule = baseline.rules.accuracy
    if rule is None:
        return
    before = baseline.release.figures
    limit_pp = 100 * rule.allowed(before.get("accuracy.simplified", 0.0))
    gate = accuracy_gate(measured.accuracy, limit_pp, measured.reasons.get("accuracy", "not measured"))
    reason = gate.reason.replace("compact loses", "against the accepted network the new one loses")
    if measured.agreement is not None:
        reason += f"; both give {100 * measured.agreement:.1f} % of them the same class"
    yield Gate("baseline.accuracy", gate.status, gate.value, limit_pp, reason)
    for name in sorted(before):
        if name.startswith("accuracy.") and name not in new.figures:
            reason = f"was {before[name]:g} in the baseline, and was not measured in this run"
            yield Gate(f"baseline.{name}", "inconclusive", None, None, reason)


def _latency(baseline: Baseline, measured: Measured) -> Iterator[Gate]:
    allowance = baseline.rules.latency
    if allowance is None:
        return
    for where, comparison in measured.latency.items():
        yield latency_gate(where, comparison, allowance)
    for name, reason in sorted(measured.reasons.items()):
        if name != "accuracy":
            yield Gate(f"baseline.latency.{name}", "inconclusive", None, 1 + allowance, reason)


def latency_gate(where: str, comparison: Comparison, allowance: float) -> Gate:
    """p50 of the new network over that of the accepted one, by its interval; `allowance` is a share of its time."""
    speedup, limit = comparison.speedups[0], 1 + allowance
    low, high = 1 / speedup.ci95[1], 1 / speedup.ci95[0]
    short = speedup.verdict == "undecided"
    status: Status = "inconclusive" if short else within(low, high, limit)
    remedy = "too few blocks: raise check.time_limit_s"
    if not short and status == "inconclusive":
        remedy = "the interval holds the limit: measure longer or on a quieter machine"
    parts = [
        f"the new network takes {1 / speedup.ratio:.3f} times as long as the accepted one "
        f"(95 % interval {low:.3f} to {high:.3f}), at most {limit:g} allowed",
        remedy if status == "inconclusive" else "",
        disturbance(complaints(comparison.conditions, settings=False)),
    ]
    return Gate(f"baseline.latency.{where}", status, 1 / speedup.ratio, limit, "; ".join(filter(None, parts)))


def _limits(new: Release, baseline: Baseline, measured: Measured) -> Iterator[Gate]:
    """`limit.<figure>` for every entry of the rules' limits."""
    figures = new.figures | ({} if measured.agreement is None else {"agreement": measured.agreement})
    for figure, limit in sorted(baseline.rules.limits.items()):
        value, more = figures.get(figure), figure.partition(".")[0] in ("accuracy", "agreement")
        if value is None:
            reason = "not measured in this run, or no figure of that name"
            yield Gate(f"limit.{figure}", "inconclusive", None, limit, reason)
            continue
        holds = value >= limit if more else value <= limit
        reason = f"{value:g}, at {'least' if more else 'most'} {limit:g} allowed"
        yield Gate(f"limit.{figure}", "pass" if holds else "fail", value, limit, reason)


def changes(before: Release | None, after: Release) -> list[str]:
    """`macs: 3.9e+06 -> 3.8e+06` for every figure that an update changes."""
    old, new = {} if before is None else before.figures, after.figures
    return [
        f"{name}: {f'{old[name]:g}' if name in old else 'new'} -> {f'{new[name]:g}' if name in new else 'gone'}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def demand_same_name(name: str, baseline: Baseline) -> None:
    """UserError where the baseline is of another run."""
    if name != baseline.name:
        raise UserError(
            f"the baseline is of {baseline.name!r}, the run of {name!r}",
            "a baseline of the same run",
            "give its own baseline folder, or write one with --update",
        )
