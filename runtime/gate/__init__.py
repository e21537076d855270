"""The gates of a run: a figure against its limit, with a reason one can act on.

A gate is "pass", "fail" or "inconclusive"; a figure that was not measured is inconclusive, never passed. The verdict
is the worst of its gates: fail before inconclusive before pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from runtime.measure.latency import Speedup
    from runtime.measure.statistics import PairedAccuracy

Status = Literal["pass", "fail", "inconclusive"]
_WORST_FIRST: tuple[Status, ...] = ("fail", "inconclusive", "pass")


TARGET_TOLERANCE = 0.03
"""How far off a target a steered training may land, as a share of it."""


@dataclass(frozen=True)
class Gate:
    """`value` against `limit`, in the unit that `reason` names; both null where there is nothing to compare."""

    name: str
    status: Status
    value: float | None
    limit: float | None
    reason: str


@dataclass(frozen=True)
class Verdict:
    """`status` is the worst of the gates'."""

    status: Status
    gates: tuple[Gate, ...]


def verdict(gates: Iterable[Gate]) -> Verdict:
    """Overall: fail if one failed, else inconclusive if one is, else pass. No gate at all is inconclusive."""
    gates = tuple(gates)
    statuses = {gate.status for gate in gates} or {"inconclusive"}
    return Verdict(next(status for status in _WORST_FIRST if status in statuses), gates)


def within(low: float, high: float, limit: float) -> Status:
    """The rule of every measured figure of which less is better: fail if its whole 95 % interval is beyond the limit,
    pass if the whole interval is within, else inconclusive."""
    return "pass" if high <= limit else "fail" if low > limit else "inconclusive"


def accuracy_gate(
    difference: PairedAccuracy | None,
    limit_pp: float,
    missing: str = "",
    *,
    untrained: str = "",
    metric: str = "accuracy",
) -> Gate:
    """max_<metric>_drop: compact's loss against dense in percentage points, on the same images, by its interval. Too
    few images are inconclusive. `missing` says why there is no figure, `untrained` that the networks are at chance. A
    limit of 100 asks for nothing."""
    name = f"max_{metric}_drop"
    if difference is None:
        return Gate(name, "inconclusive", None, limit_pp, missing)
    drop = 0.0 - difference.difference_pp
    status, text = _judged(difference, limit_pp)
    text = f"compact loses {text}"
    if untrained and limit_pp < 100:
        return Gate(name, "inconclusive", drop, limit_pp, f"{text}; {untrained}")
    return Gate(name, status, drop, limit_pp, text)


def _judged(difference: PairedAccuracy, limit_pp: float) -> tuple[Status, str]:
    """By the interval of the points lost; says how many images would be enough where these are too few."""
    from runtime.measure.statistics import images_needed

    low, high = (0.0 - edge for edge in reversed(difference.ci95_pp))
    status = within(low, high, limit_pp)
    lost, interval = 0.0 - difference.difference_pp, f"95 % interval {low:.2f} to {high:.2f}"
    text = f"{lost:.2f} points on {difference.n} images ({interval}), at most {limit_pp:g} allowed"
    if status != "inconclusive":
        return status, text
    needed = images_needed(difference, limit_pp)
    hint = f"about {needed:,} images like these could" if needed else "more images would not show it"
    return status, f"{text}; {difference.n} images cannot show that: {hint}"


def target_gate(
    what: str,
    target: float,
    reached: float,
    unit: str = "",
    ci95: tuple[float, float] | None = None,
    note: str = "",
) -> Gate:
    """target: where a steered training is to land: at most TARGET_TOLERANCE over it; smaller passes. value and
    limit are shares of the dense network, or ms, judged by their interval `ci95` where they have one. `note` is said
    beside the figure."""
    off = reached / target - 1
    low, high = ci95 or (reached, reached)
    side = "over" if off > 0 else "under"
    text = f"{what} {reached:.3g}{unit}, target {target:.3g}{unit}: {100 * abs(off):.1f} % {side}"
    if ci95 is not None:
        text += f" (95 % interval {low:.3g} to {high:.3g}{unit})"
    status = within(low, high, target * (1 + TARGET_TOLERANCE))
    if status == "inconclusive":
        text += ": measure again on a quieter machine"
    return Gate("target", status, reached, target, f"{text}; {note}" if note else text)


def hops_gate(losses: Sequence[tuple[str, PairedAccuracy]], limit_pp: float, metric: str = "accuracy") -> Gate:
    """<metric>_at_hops: no form of compact loses more than the limit against dense through torch, each by its interval.

    losses: (name of the hop, dense against that form), in the order of the line; the first one that does not pass is
    named.
    """
    name = f"{metric}_at_hops"
    if not losses:
        return Gate(name, "inconclusive", None, limit_pp, "no form of compact was measured")
    worst = max(0.0 - difference.difference_pp for _, difference in losses)
    for status in ("fail", "inconclusive"):
        for hop, difference in losses:
            judged, text = _judged(difference, limit_pp)
            if judged == status:
                which = "is the first hop beyond the limit" if status == "fail" else "is undecided"
                return Gate(name, judged, worst, limit_pp, f"{hop} {which}: it loses {text}")
    text = f"of {len(losses)} forms of compact none loses more than {worst:.2f} points, at most {limit_pp:g} allowed"
    return Gate(name, "pass", worst, limit_pp, text)


def speedup_gate(speedup: Speedup | None, limit: float, what: str, missing: str = "", note: str = "") -> Gate:
    """min_speedup: dense p50 over compact p50, by its interval: fail where it lies below the limit, pass where it
    reaches the limit and lies above 1 (or above the limit, where that is less), else inconclusive, as is a comparison
    that was too short for a verdict. A limit of 0 asks for nothing. `what` names what was timed; `note` says what
    disturbed the machine, beside the figure.
    """
    name = "min_speedup"
    if speedup is None:
        return Gate(name, "inconclusive", None, limit, missing)
    low, high = speedup.ci95
    interval = f"95 % interval {low:.2f} to {high:.2f}"
    text = f"{what}: {speedup.ratio:.2f} times as fast ({interval}), at least {limit:g} required"
    text = f"{text}; {note}" if note else text
    if limit == 0:
        return Gate(name, "pass", speedup.ratio, limit, text)
    if speedup.verdict == "undecided":
        return Gate(name, "inconclusive", speedup.ratio, limit, f"{text}; too few blocks: raise check.time_limit_s")
    if high < limit:
        return Gate(name, "fail", speedup.ratio, limit, text)
    if speedup.ratio >= limit and low > min(1.0, limit):
        return Gate(name, "pass", speedup.ratio, limit, text)
    reason = "the interval reaches down to 1" if speedup.ratio >= limit else "the interval still holds the limit"
    return Gate(name, "inconclusive", speedup.ratio, limit, f"{text}; {reason}: measure longer or on a quieter machine")


def disturbance(complaints: Sequence[str]) -> str:
    """What disturbed the machine meanwhile (`runtime.measure.conditions`), for a gate's reason; "" without."""
    return f"the machine was disturbed ({', '.join(complaints)})" if complaints else ""


def metric_gate(name: str, dense: float | None, compact: float | None, limit: float, missing: str = "") -> Gate:
    """max_metric_drop: how much less compact reaches in the user's own metric, in its unit; more is better."""
    if dense is None or compact is None:
        return Gate("max_metric_drop", "inconclusive", None, limit, missing)
    drop = dense - compact
    text = f"{name}: {compact:g} against {dense:g} dense, at most {limit:g} less allowed"
    return Gate("max_metric_drop", "pass" if drop <= limit else "fail", drop, limit, text)


def difference_gate(value: float | None, limit: float, missing: str = "") -> Gate:
    """max_abs_diff: largest difference of compact's fp32 logits from those of dense with the removed channels held."""
    name = "max_abs_diff"
    if value is None:
        return Gate(name, "inconclusive", None, limit, missing)
    text = f"the cut changes a logit by at most {value:.2e}, {limit:g} allowed"
    return Gate(name, "pass" if value <= limit else "fail", value, limit, text)


def engines_gate(built: int, missing: Sequence[str]) -> Gate:
    """engines: as many as were requested. `missing` holds the reason of each that could not be built here."""
    requested = built + len(missing)
    if missing:
        reasons = "; ".join(dict.fromkeys(missing))
        return Gate("engines", "inconclusive", built, requested, f"{built} of {requested} engines built: {reasons}")
    text = f"all {requested} engines built" if requested else "no engine requested"
    return Gate("engines", "pass", built, requested, text)
