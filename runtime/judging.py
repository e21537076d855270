"""A run's report.json against an accepted baseline: what `demport gate` says of every figure.

Better is never a failure, worse only beyond what the rule of its kind allows. A figure of speed decides nothing where
the machine was disturbed while it was measured, in this run or for the baseline; only a limit of 0 or less, which asks
for nothing, passes all the same. Where nothing tells of a disturbance there are witnesses, and a loss is undecided
where one speaks for another cause: the fastest samples, which whatever else the machine did disturbed least; how long
the cores took to hand each other data (`runtime.handover`); and for a time launches that scattered
(`conditions.scatter`). A figure within its limit is undecided where the fastest samples got worse and launches
scattered, or the cores were slower for the baseline. Comparisons that the run's own gates do not look at are short;
what they leave undecided passes, unless the rules want it decided (`Rules.decided`), and so does a time that rose for
dense alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import exp, hypot, log
from typing import Any

from runtime.baseline import Baseline, Device, Rule, Rules, demand_same_name
from runtime.conditions import HANDOVER
from runtime.figures import (
    BEST,
    MORE_IS_BETTER,
    RATIOS,
    TIMES,
    Report,
    demand_report,
    doubts_of,
    figures_of,
    handover_of,
    is_gated,
    is_ratio,
    kind_of,
    measured_as,
    ratio_entry,
    scatter_of,
)
from runtime.gate import Gate, Status, Verdict, disturbance, verdict


def judge(report: Report, baseline: Baseline) -> Verdict:
    """The run's own gates, then `baseline.<figure>` for every figure of the baseline. Raises UserError as `updated`."""
    demand_report(report)
    demand_same_name(report, baseline)
    own = [Gate(**gate) for gate in report["verdict"]["gates"]]
    environment = report["environment"]
    known = baseline.devices.get(environment["fingerprint"])
    gates = own if known else [*own, _other_device(environment, baseline)]
    accepted = known or next(iter(baseline.devices.values()), None)
    if accepted is not None:
        now = figures_of(report)
        for name, before in sorted(accepted.figures.items()):
            kind = kind_of(name)
            rule = getattr(baseline.rules, kind, None)
            if not isinstance(rule, Rule) or not (known or _holds_anywhere(kind, baseline.rules)):
                continue
            if kind == "reference" and (report.get("reference") or {}).get("sha256") != accepted.reference_sha256:
                other = "another reference model than the baseline's was measured: write it anew with --update"
                gates.append(Gate(f"baseline.{name}", "inconclusive", now.get(name), None, other))
                continue
            gates.append(_Case(name, before, rule, accepted, now, report, baseline.rules).gate())
    return verdict([*gates, *_limits(baseline.rules, known, report)])


def _limits(rules: Rules, known: Device | None, report: Report) -> Iterator[Gate]:
    """`limit.<figure>` for every entry of the rules' limits."""
    now = figures_of(report)
    for figure, limit in sorted(rules.limits.items()):
        name, value = f"limit.{figure}", now.get(figure)
        if value is None:
            yield Gate(name, "inconclusive", None, limit, "not measured in this run, or no figure of that name")
            continue
        told = f"{value:g}, {_asked(figure, limit)}"
        if not known and not _holds_anywhere(kind_of(figure), rules):
            yield Gate(name, "inconclusive", value, limit, f"{told}; not comparable: the baseline lacks this device")
            continue
        holds = _holds(figure, value, limit)
        doubt = _disturbed(figure, limit, report) or ("" if holds else _holds_the_limit(figure, limit, report))
        status: Status = "inconclusive" if doubt else "pass" if holds else "fail"
        yield Gate(name, status, value, limit, told + (f"; {doubt}" if doubt else ""))


def _holds(figure: str, value: float, limit: float) -> bool:
    return value >= limit if kind_of(figure) in MORE_IS_BETTER else value <= limit


def _asked(figure: str, limit: float) -> str:
    return f"{'at least' if kind_of(figure) in MORE_IS_BETTER else 'at most'} {limit:g} allowed"


def _holds_the_limit(figure: str, limit: float, report: Report, other: float = 1.0) -> str:
    """That the interval of a ratio reaches the limit which the ratio misses; "" where it does not.

    `other`: how far the figure that the limit was made from may have been too high itself, as the lower end of its
    interval over it. Two independent errors add up as their squares do, of ratios by their logarithms.
    """
    if not is_ratio(figure):
        return ""
    told = ratio_entry(figure, report)["speedup"]
    ratio, (low, high) = told["ratio"], told["ci95"]
    reach = ratio * exp(hypot(log(high / ratio), log(other)))
    if reach < limit:
        return ""
    both = f" and the baseline's reach {reach:.2f}, which" if other < 1 else ""
    return f"its interval {low:.2f} to {high:.2f}{both} still holds the limit"


def _disturbed(figure: str, limit: float, report: Report, accepted: Device | None = None) -> str:
    """Why a figure of speed decides nothing, whatever it is: a machine that was disturbed, now or when the baseline was
    taken; "" where neither is known, or the limit asks for nothing."""
    if kind_of(figure) in MORE_IS_BETTER and limit <= 0:
        return ""
    if found := doubts_of(figure, report):
        return disturbance(found)
    where = measured_as(figure)
    then = accepted.doubts.get(where) if accepted and where else None
    return (
        f"the baseline is doubtful ({', '.join(then)}): write it anew with --update on a quiet machine" if then else ""
    )


def _holds_anywhere(kind: str, rules: Rules) -> bool:
    if kind in RATIOS:
        return rules.ratios_on == "any device"
    return kind not in TIMES


@dataclass(frozen=True)
class _Case:
    """One figure of `report`, whose figures are `now`, against what was accepted. For accuracy and ratios of speed more
    is better, for all else less."""

    name: str
    before: float
    rule: Rule
    accepted: Device
    now: Mapping[str, float]
    report: Report
    rules: Rules

    def gate(self) -> Gate:
        name, before, value = f"baseline.{self.name}", self.before, self.now.get(self.name)
        limit = before + self.allowed(before) * (-1 if kind_of(self.name) in MORE_IS_BETTER else 1)
        if value is None:
            return Gate(name, "inconclusive", None, limit, "in the baseline, but not measured in this run")
        told = f"{value:g}, was {before:g}, {_asked(self.name, limit)}"
        status, why = self.ruling(value, limit, holds=_holds(self.name, value, limit))
        return Gate(name, status, value, limit, f"{told}; {why}" if why else told)

    def ruling(self, value: float, limit: float, *, holds: bool) -> tuple[Status, str]:
        """The status, and why where it is not plain from value and limit."""
        if disturbed := _disturbed(self.name, limit, self.report, self.accepted):
            return "inconclusive", disturbed
        if not holds and (small := self.too_small(value)):
            return "pass", small
        doubt = self.hidden_loss() if holds else self.excuse(limit)
        if self.rules.decided == "gated" and not is_gated(self.name, self.report):
            doubt = doubt or ("" if holds else self.dense_too())
            return ("pass", f"not shown to be worse: {doubt}") if doubt else ("pass" if holds else "fail", "")
        return "inconclusive" if doubt else "pass" if holds else "fail", doubt

    def allowed(self, before: float) -> float:
        """How much worse than `before` a figure of this kind may be."""
        return max(self.rule.relative * abs(before), self.rule.absolute)

    def too_small(self, value: float) -> str:
        """Why a ratio beyond its limit does not matter: compact lost too few milliseconds; "" where it does."""
        if not is_ratio(self.name):
            return ""
        p50_ms = float(ratio_entry(self.name, self.report)["compact"]["p50_ms"])
        lost_ms = p50_ms * (1 - value / self.before)
        return f"compact lost {lost_ms:.3g} ms, less than least_ms" if lost_ms < self.rules.least_ms else ""

    def excuse(self, limit: float) -> str:
        """Why a figure beyond its limit may be as good as before; "" where nothing says so.

        A ratio that fell by median, by interval and by its fastest samples fell, however launches scattered: its
        networks took turns and had their share alike. A time has no such witness.
        """
        low = self.accepted.intervals.get(self.name, [self.before])[0]
        if held := _holds_the_limit(self.name, limit, self.report, low / self.before):
            return held
        if self.best_fell() is False:
            return "the fastest samples are as fast as before: the machine may be busy"
        now_us, before_us = self.handovers_us()
        if now_us >= HANDOVER * before_us:
            return _other_state(f"{now_us:.3g} us, {before_us:.3g} us for the baseline: repeat it")
        return "" if is_ratio(self.name) and self.best_fell() else self.scattered()

    def dense_too(self) -> str:
        """That a time rose for dense alike, so that the machine is slower or what both run on; "" where it did not, of
        what is no time, and where the ratio of the two is not known."""
        kind, _, where = self.name.partition(".")
        ratio = f"speedup.{where}"
        if kind not in TIMES or ratio not in self.now or ratio not in self.accepted.figures:
            return ""
        now, before = self.now[ratio], self.accepted.figures[ratio]
        told = f"dense took longer too ({now:.3g} times compact's, {before:.3g} for the baseline)"
        return f"{told}: the machine is slower, or what both run on" if now >= before * (1 - self.rule.relative) else ""

    def hidden_loss(self) -> str:
        """Why a figure within its limit may be worse than before; "" where nothing says so."""
        if not self.best_fell():
            return ""
        now_us, before_us = self.handovers_us()
        slower = f"{before_us:.3g} us for the baseline, {now_us:.3g} us now: write it anew with --update"
        why = self.scattered() or (_other_state(slower) if before_us >= HANDOVER * now_us else "")
        return f"the fastest samples tell of a loss, and {why}" if why else ""

    def handovers_us(self) -> tuple[float, float]:
        """Of this run and of the baseline; equal where one of them is not known, or is another device's."""
        now, before = handover_of(self.name, self.report), self.accepted.handover_us.get(measured_as(self.name))
        same = self.accepted.environment.get("fingerprint") == self.report["environment"]["fingerprint"]
        return (now, before) if same and now and before else (1.0, 1.0)

    def scattered(self) -> str:
        """That launches scattered, in this run or for the baseline, so that half of them tell little; "" where all were
        steady."""
        if found := scatter_of(self.name, self.report):
            return disturbance(found)
        then = self.accepted.scattered.get(measured_as(self.name))
        return f"the baseline's launches scattered ({', '.join(then)}): write it anew with --update" if then else ""

    def best_fell(self) -> bool | None:
        """Whether the fastest samples got worse by more than is allowed; None where either side lacks them."""
        kind, _, where = self.name.partition(".")
        best = f"{BEST}.{self.name}" if is_ratio(self.name) else f"best_ms.{where}" if kind == "p50_ms" else ""
        if best not in self.accepted.figures or best not in self.now:
            return None
        before, value = self.accepted.figures[best], self.now[best]
        lost = before - value if is_ratio(self.name) else value - before
        return lost > self.allowed(before)


def _other_state(told: str) -> str:
    return f"the cores were slower to hand each other data ({told})"


def _other_device(environment: Mapping[str, Any], baseline: Baseline) -> Gate:
    here = f"{environment['fingerprint']} ({environment.get('cpu')}, {environment.get('cores')} cores)"
    there = ", ".join(f"{key} ({device.environment.get('cpu')})" for key, device in baseline.devices.items()) or "none"
    if baseline.rules.ratios_on == "any device" and baseline.rules.p50_ms is None:
        text = f"this device is {here}, the baseline holds {there}; its rules compare ratios on any device"
        return Gate("baseline.device", "pass", None, None, text)
    text = f"latency and speedup are not comparable: this device is {here}, the baseline holds {there}"
    if baseline.rules.ratios_on == "any device":
        text = f"absolute latency is not comparable: this device is {here}, the baseline holds {there}"
    return Gate("baseline.device", "inconclusive", None, None, f"{text}; add this one with --update")
