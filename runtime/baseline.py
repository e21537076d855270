"""`demport gate`: a run's report.json against figures that people accepted before, kept in a file per project.

The file holds, for each device fingerprint, the compact network's figures, and the rules that say how much worse is a
regression. A figure may get worse by `relative` times the baseline or by `absolute`, whichever is more; improving is
never a failure. Accuracy, size, parameters and MACs do not depend on the device and are judged everywhere. Latency
and the speedup count only on a device with the same fingerprint; elsewhere they are not comparable, which is
inconclusive, unless the rules say that ratios hold on any device (`ratios_on`): then the speedup and the ratio to a
reference model, both measured in one job, are judged everywhere. A figure of speed is inconclusive, whether it would
pass or fail, where the machine was disturbed while it was measured, in this run or for the baseline; only a limit of 0
or less, which asks for nothing, passes all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import exp, hypot, log
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import UserError
from runtime.figures import (
    BEST,
    MORE_IS_BETTER,
    RATIOS,
    TIMES,
    Report,
    demand_report,
    doubts_by_measurement,
    doubts_of,
    figures_of,
    intervals_of,
    is_ratio,
    kind_of,
    measured_as,
    ratio_entry,
    scatter_of,
)
from runtime.files import read_bounded
from runtime.gate import Gate, Status, Verdict, disturbance, verdict

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Figure = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_MAX_BYTES = 4 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Rule(_Part):
    """What a figure may lose against the baseline: the larger of `relative` x baseline and `absolute` (in its unit)."""

    relative: Amount = 0.0
    absolute: Amount = 0.0


class Rules(_Part):
    """One rule for each kind of figure; null leaves that kind out."""

    accuracy: Rule | None = Rule(absolute=0.005)
    params: Rule | None = Rule(relative=0.01)
    macs: Rule | None = Rule(relative=0.01)
    bytes: Rule | None = Rule(relative=0.02, absolute=4096)
    speedup: Rule | None = Rule(relative=0.05, absolute=0.05)
    reference: Rule | None = Rule(relative=0.05, absolute=0.05)
    p50_ms: Rule | None = Rule(relative=0.10, absolute=0.05)
    ratios_on: Literal["same device", "any device"] = "same device"
    least_ms: Amount = 0.02
    """A ratio is worse only where compact lost at least this much a launch: the ratio of two networks that take some
    hundredths of a millisecond differs by a fifth from one process to the next."""
    limits: dict[str, Figure] = {}
    """Figure by name -> the worst it may ever be, whatever the baseline: so that many small losses do not add up."""


class Device(_Part):
    """Figures of the compact network, by name (`figures_of`), measured on one kind of machine."""

    environment: dict[str, Any]
    figures: dict[str, Figure]
    intervals: dict[str, Annotated[list[Positive], Field(min_length=2, max_length=2)]] = {}
    """95 %, of the ratios of speed; one that is not here is taken to be exact."""
    reference_sha256: str | None = None
    """Of the model that `reference` is the ratio to."""
    doubts: dict[str, list[str]] = {}
    """By measurement (`measured_as`), what disturbed the machine meanwhile."""


class Baseline(_Part):
    """The file. `name` is the run's; a baseline of another run is refused."""

    kind: Literal["demport baseline"] = "demport baseline"
    schema_: Literal[1] = Field(1, alias="schema")
    name: str
    rules: Rules = Rules()
    devices: dict[str, Device]

    def text(self) -> str:
        """The file's content: sorted, indented, so that a change reads well in a review."""
        document = self.model_dump(mode="json", by_alias=True)
        return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_baseline(path: Path) -> Baseline:
    """UserError for a file that is missing, too large, no JSON, or no baseline of ours."""
    expected, remedy = "a baseline that `demport gate --update` wrote", "check the path, or write it with --update"
    try:
        document = json.loads(read_bounded(path, _MAX_BYTES).decode(), parse_constant=_refuse)
        return Baseline.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}", expected, remedy) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: {reason}", expected, remedy) from error


def updated(report: Report, baseline: Baseline | None) -> Baseline:
    """The baseline with the report's figures for its device; rules and other devices stay. UserError after a failed
    run."""
    demand_report(report)
    if report["verdict"]["status"] == "fail":
        names = ", ".join(gate["name"] for gate in report["verdict"]["gates"] if gate["status"] == "fail")
        raise UserError(f"the run failed {names}", "a run that does not fail", "mend it before it becomes the baseline")
    if baseline is not None:
        _demand_same_name(report, baseline)
    kept = {} if baseline is None else dict(baseline.devices)
    environment = dict(report["environment"])
    sha256 = (report.get("reference") or {}).get("sha256")
    figures = figures_of(report)
    kept[environment["fingerprint"]] = Device(
        environment=environment,
        figures=figures,
        intervals=intervals_of(report),
        reference_sha256=sha256,
        doubts=doubts_by_measurement(report),
    )
    rules = Rules() if baseline is None else baseline.rules
    return Baseline(schema=1, name=report["name"], rules=rules, devices=kept)


def judge(report: Report, baseline: Baseline) -> Verdict:
    """The run's own gates, then `baseline.<figure>` for every figure of the baseline. Raises UserError as `updated`."""
    demand_report(report)
    _demand_same_name(report, baseline)
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
            gates.append(_against(name, before, rule, accepted, now, report, baseline.rules))
    return verdict([*gates, *_limits(baseline.rules, known, report)])


def _limits(rules: Rules, known: Device | None, report: Report) -> Iterator[Gate]:
    """`limit.<figure>` for every entry of the rules' limits."""
    now = figures_of(report)
    for figure, limit in sorted(rules.limits.items()):
        name, value, more_is_better = f"limit.{figure}", now.get(figure), kind_of(figure) in MORE_IS_BETTER
        if value is None:
            yield Gate(name, "inconclusive", None, limit, "not measured in this run, or no figure of that name")
            continue
        told = f"{value:g}, {'at least' if more_is_better else 'at most'} {limit:g} allowed"
        if not known and not _holds_anywhere(kind_of(figure), rules):
            yield Gate(name, "inconclusive", value, limit, f"{told}; not comparable: the baseline lacks this device")
            continue
        holds = value >= limit if more_is_better else value <= limit
        doubt = _disturbed(figure, limit, report) or ("" if holds else _holds_the_limit(figure, limit, report))
        status: Status = "inconclusive" if doubt else "pass" if holds else "fail"
        yield Gate(name, status, value, limit, told + (f"; {doubt}" if doubt else ""))


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


def _against(
    name: str, before: float, rule: Rule, accepted: Device, now: Mapping[str, float], report: Report, rules: Rules
) -> Gate:
    """One figure against the baseline. For accuracy and ratios of speed more is better, for all else less."""
    kind = kind_of(name)
    allowed = max(rule.relative * abs(before), rule.absolute)
    more_is_better = kind in MORE_IS_BETTER
    limit = before - allowed if more_is_better else before + allowed
    value = now.get(name)
    if value is None:
        return Gate(f"baseline.{name}", "inconclusive", None, limit, "in the baseline, but not measured in this run")
    status: Status = "pass"
    told = f"{value:g}, was {before:g}, {'at least' if more_is_better else 'at most'} {limit:g} allowed"
    if disturbed := _disturbed(name, limit, report, accepted):
        return Gate(f"baseline.{name}", "inconclusive", value, limit, f"{told}; {disturbed}")
    if value < limit if more_is_better else value > limit:
        small = _too_small(name, value / before, report, rules) if is_ratio(name) else ""
        then = accepted.intervals.get(name, [before, before])
        doubt = "" if small else _holds_the_limit(name, limit, report, then[0] / before)
        doubt = doubt or ("" if small else _as_fast_at_best(name, accepted, now, rule))
        doubt = doubt or ("" if small else disturbance(scatter_of(name, report)))
        status = "pass" if small else "inconclusive" if doubt else "fail"
        told += f"; {small or doubt}" if small or doubt else ""
    return Gate(f"baseline.{name}", status, value, limit, told)


def _too_small(name: str, share: float, report: Report, rules: Rules) -> str:
    """Why a ratio beyond its limit does not matter: compact lost too few milliseconds; "" where it does.

    share: the ratio over the baseline's.
    """
    p50_ms = float(ratio_entry(name, report)["compact"]["p50_ms"])
    lost_ms = p50_ms * (1 - share)
    return f"compact lost {lost_ms:.3g} ms, less than least_ms" if lost_ms < rules.least_ms else ""


def _as_fast_at_best(name: str, accepted: Device, now: Mapping[str, float], rule: Rule) -> str:
    """Why a worse median may be noise of a machine that nothing else tells is busy: the fastest samples are as good as
    before, by the same rule; "" where they are not."""
    kind, _, where = name.partition(".")
    best = f"{BEST}.{name}" if is_ratio(name) else f"best_ms.{where}" if kind == "p50_ms" else ""
    if best not in accepted.figures or best not in now:
        return ""
    before, value = accepted.figures[best], now[best]
    allowed = max(rule.relative * before, rule.absolute)
    if value < before - allowed if is_ratio(name) else value > before + allowed:
        return ""
    told = f"{value:.3g} times" if is_ratio(name) else f"{value:g} ms"
    return f"the fastest samples are as fast as before ({told}): the machine may be busy"


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


def _demand_same_name(report: Report, baseline: Baseline) -> None:
    if report["name"] != baseline.name:
        raise UserError(
            f"the baseline is of {baseline.name!r}, the run of {report['name']!r}",
            "a baseline of the same run",
            "give its own baseline file, or write one with --update",
        )


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no figure")
