"""baselines.json: every network that was measured in turn, and the sentence that it comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from pipeline.check.reading import STRICT, read_object, typed
from runtime.files import write_json

FOLDER, NAME = "baselines", "baselines.json"
SLACK = 0.97
"""Share of compact's speed from which a network counts as as fast: as the check, which calls less than 3 % slight."""


@dataclass(frozen=True)
class Measured:
    """Times as fast as dense, all timed in turn, and the metric on the whole test split (0..1); `difference_pp` and its
    95 % interval against compact on the same images, None of compact itself."""

    p50_ms: float
    speedup: float
    speedup_ci95: tuple[float, float]
    accuracy: float
    difference_pp: float | None
    ci95_pp: tuple[float, float] | None


@dataclass(frozen=True)
class Baseline:
    """`epochs` it was trained for, 0 where it took the dense network; without `measured` the reason why not."""

    name: str
    what: str
    epochs: int
    measured: Measured | None
    reason: str | None


@dataclass(frozen=True)
class Baselines:
    """`check`: digest of the run's check beside which they stand; `budget`: epochs that compact's training took."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    check: str
    metric: str
    images: int
    batch: int
    threads: int
    budget: int
    environment: dict[str, Any]
    conditions: dict[str, Any]
    rows: tuple[Baseline, ...]
    schema: int = 1


def read(path: Path) -> Baselines:
    """UserError where it is damaged."""
    return typed(Baselines, read_object(path), path)


def write(path: Path, document: Baselines) -> None:
    write_json(path, asdict(document))


def sentence(document: Baselines) -> str:
    """What a reader should take from it."""
    by_name = {row.name: row for row in document.rows}
    compact = by_name["compact"].measured
    assert compact is not None
    tried = [row for row in document.rows if row.name not in ("dense", "compact", "compact, int8")]
    measured = [(row, row.measured) for row in tried if row.measured]
    as_fast = [(row, one) for row, one in measured if one.speedup >= SLACK * compact.speedup]
    as_good = [(row, one) for row, one in as_fast if one.ci95_pp is not None and one.ci95_pp[1] >= 0]
    basis = f"{document.images:,} test images, one seed"
    missing = [row.name for row in tried if row.measured is None]
    tail = f" Not measured: {', '.join(missing)}." if missing else ""
    short = sorted({row.epochs for row in tried if 0 < row.epochs < document.budget})
    if short:
        tail += f" They trained for {short[0]} epochs, compact for {document.budget}, which favours compact."
    if not as_good:
        names = ", ".join(row.name for row, _ in measured)
        return f"Of what is simpler ({names}), nothing is as fast as compact and as accurate ({basis}).{tail}"
    named = "; ".join(f"{row.name} ({_against(one)})" for row, one in as_good)
    return f"Something simpler is as fast as compact and not shown to be less accurate: {named}; {basis}.{tail}"


def _against(one: Measured) -> str:
    low, high = one.ci95_pp or (0.0, 0.0)
    return f"{one.speedup:.2f}x, {one.difference_pp:+.2f} points, {low:+.2f} to {high:+.2f}"
