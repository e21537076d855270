"""The gates of a run: a figure against its limit, with a reason one can act on.

A gate is "pass", "fail" or "inconclusive"; a figure that was not measured is inconclusive, never passed. The verdict
is the worst of its gates: fail before inconclusive before pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from runtime.latency import Speedup
    from runtime.paired import PairedAccuracy

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
    found = {gate.status for gate in gates} or {"inconclusive"}
    return Verdict(next(status for status in _WORST_FIRST if status in found), gates)


def accuracy_gate(difference: PairedAccuracy | None, limit_pp: float, missing: str = "") -> Gate:
    """max_accuracy_drop: compact's loss against dense in percentage points, on the same images.

    The point estimate decides, as it does for whoever reads two accuracies; the interval is told with it, so that a
    small test split shows. `missing` says why there is no figure.
    """
    name = "max_accuracy_drop"
    if difference is None:
        return Gate(name, "inconclusive", None, limit_pp, missing)
    drop = 0.0 - difference.difference_pp
    low, high = (0.0 - edge for edge in reversed(difference.ci95_pp))
    text = (
        f"compact loses {drop:.2f} points on {difference.n} images (95 % interval {low:.2f} to {high:.2f}), "
        f"at most {limit_pp:g} allowed"
    )
    return Gate(name, "pass" if drop <= limit_pp else "fail", drop, limit_pp, text)


def non_inferiority_gate(difference: PairedAccuracy | None, margin_pp: float, missing: str = "") -> Gate:
    """non_inferiority_margin: the whole interval of compact's accuracy less dense's lies above -margin.

    Stricter than max_accuracy_drop: a small test split is inconclusive here.
    """
    name = "non_inferiority_margin"
    if difference is None:
        return Gate(name, "inconclusive", None, margin_pp, missing)
    low, high = (0.0 - edge for edge in reversed(difference.ci95_pp))
    told = f"compact loses at most {high:.2f} points (95 % interval {low:.2f} to {high:.2f}), margin {margin_pp:g}"
    status: Status = "pass" if high <= margin_pp else "fail" if low > margin_pp else "inconclusive"
    hint = f"; {difference.n} images cannot tell: give more, or a wider margin" if status == "inconclusive" else ""
    return Gate(name, status, high, margin_pp, told + hint)


def target_gate(
    what: str,
    asked: float,
    reached: float,
    unit: str = "",
    ci95: tuple[float, float] | None = None,
    doubt: str = "",
) -> Gate:
    """target: where a steered training was told to land; within TARGET_TOLERANCE of it. value and limit are shares of
    the dense network, or ms. A figure off the mark whose interval `ci95` still holds it is inconclusive, and so is any
    with a `doubt`, which says why it cannot be relied on."""
    off = reached / asked - 1
    side = "over" if off > 0 else "under"
    told = f"{what} {reached:.3g}{unit}, asked for {asked:.3g}{unit}: {100 * abs(off):.1f} % {side}"
    if doubt:
        return Gate("target", "inconclusive", reached, asked, f"{told}; {doubt}")
    if abs(off) <= TARGET_TOLERANCE:
        return Gate("target", "pass", reached, asked, told)
    if ci95 is None:
        return Gate("target", "fail", reached, asked, told)
    low, high = ci95
    told += f" (95 % interval {low:.3g} to {high:.3g}{unit})"
    if low <= asked * (1 + TARGET_TOLERANCE) and high >= asked * (1 - TARGET_TOLERANCE):
        return Gate("target", "inconclusive", reached, asked, f"{told}: measure again on a quieter machine")
    return Gate("target", "fail", reached, asked, told)


def hops_gate(drops: Sequence[tuple[str, float]], limit_pp: float) -> Gate:
    """accuracy_at_hops: no form of compact loses more than the limit against dense through torch.

    drops: (what the hop is called, points lost), in the order of the line; the first one beyond the limit is named.
    """
    name = "accuracy_at_hops"
    if not drops:
        return Gate(name, "inconclusive", None, limit_pp, "no form of compact was measured")
    worst = max(drop for _, drop in drops)
    broken = next(((hop, drop) for hop, drop in drops if drop > limit_pp), None)
    if broken:
        told = (
            f"{broken[0]} is the first hop beyond the limit: {broken[1]:.2f} points lost, at most {limit_pp:g} allowed"
        )
        return Gate(name, "fail", worst, limit_pp, told)
    text = f"of {len(drops)} forms of compact none loses more than {worst:.2f} points, at most {limit_pp:g} allowed"
    return Gate(name, "pass", worst, limit_pp, text)


def speedup_gate(speedup: Speedup | None, limit: float, what: str, missing: str = "", doubt: str = "") -> Gate:
    """min_speedup: dense p50 over compact p50.

    fail: the whole interval lies below the limit. pass: the point ratio reaches the limit and the whole interval lies
    above 1 (or above the limit, where that is less). inconclusive: anything else, as another measurement could turn it,
    and any figure in `doubt`, which says why it counts for nothing: too few blocks, or a machine that was disturbed
    while they were taken (`disturbance`). Then it neither passes nor fails, however far from the limit: what another
    process did to each of the two networks is not known. A limit of 0 asks for nothing and passes all the same. `what`
    names what was timed.
    """
    name = "min_speedup"
    if speedup is None:
        return Gate(name, "inconclusive", None, limit, missing)
    low, high = speedup.ci95
    told = (
        f"{what}: {speedup.ratio:.2f} times as fast (95 % interval {low:.2f} to {high:.2f}), at least {limit:g} asked"
    )
    if limit == 0:
        return Gate(name, "pass", speedup.ratio, limit, told)
    if doubt:
        return Gate(name, "inconclusive", speedup.ratio, limit, f"{told}; {doubt}")
    if high < limit:
        return Gate(name, "fail", speedup.ratio, limit, told)
    if speedup.ratio >= limit and low > min(1.0, limit):
        return Gate(name, "pass", speedup.ratio, limit, told)
    why = "the interval reaches down to 1" if speedup.ratio >= limit else "the interval still holds the limit"
    return Gate(name, "inconclusive", speedup.ratio, limit, f"{told}; {why}: measure longer or on a quieter machine")


def disturbance(complaints: Sequence[str]) -> str:
    """Why figures of speed count for nothing, and the remedy, for a gate's reason; "" without `complaints`, which say
    what disturbed the machine meanwhile (`runtime.conditions`)."""
    told = ", ".join(complaints)
    return f"the machine was disturbed ({told}): measure again on a quiet one" if told else ""


def metric_gate(name: str, dense: float | None, compact: float | None, limit: float, missing: str = "") -> Gate:
    """max_metric_drop: how much less compact reaches in the user's own metric, in its unit; more is better."""
    if dense is None or compact is None:
        return Gate("max_metric_drop", "inconclusive", None, limit, missing)
    drop = dense - compact
    told = f"{name}: {compact:g} against {dense:g} dense, at most {limit:g} less allowed"
    return Gate("max_metric_drop", "pass" if drop <= limit else "fail", drop, limit, told)


def difference_gate(value: float | None, limit: float, missing: str = "") -> Gate:
    """max_abs_diff: largest difference of compact's fp32 logits from those of dense with the removed channels held."""
    name = "max_abs_diff"
    if value is None:
        return Gate(name, "inconclusive", None, limit, missing)
    text = f"the cut changes a logit by at most {value:.2e}, {limit:g} allowed"
    return Gate(name, "pass" if value <= limit else "fail", value, limit, text)


def engines_gate(built: int, missing: Sequence[str]) -> Gate:
    """engines: as many as were asked for. `missing` holds the reason of each that could not be built here."""
    asked = built + len(missing)
    if missing:
        reasons = "; ".join(dict.fromkeys(missing))
        return Gate("engines", "inconclusive", built, asked, f"{built} of {asked} engines built: {reasons}")
    text = f"all {asked} engines built" if asked else "no engine asked for"
    return Gate("engines", "pass", built, asked, text)
