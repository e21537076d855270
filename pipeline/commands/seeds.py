"""`demport run --seeds`: the line once for each seed, and what they come to together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import line
from pipeline.config import Config
from pipeline.progress import Progress
from pipeline.workspace.folder import is_run
from runtime.errors import UserError


def numbers_of(text: str) -> tuple[int, ...]:
    """`0 1 2` or `0,1,2` -> (0, 1, 2). Raises UserError."""
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isascii() and part.isdigit() and int(part) < 2**31 for part in parts):
        raise UserError(f"--seeds {text}", "whole numbers from 0 to 2147483647", "write e.g. --seeds 0 1 2")
    seeds = tuple(map(int, parts))
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}", "each seed once", "leave the second out")
    return seeds


def run_seeds(config: Config, order: line.Order, seeds: Sequence[int], progress: Progress) -> dict[str, Any] | None:
    """Bring `order.out`/seed-N up to date for each; the JSON document that ends the command. None in a process that
    only trains beside the one that writes. Raises UserError."""
    if config.given is not None:
        raise UserError("--seeds with `given`", "a config that trains", "leave --seeds out: nothing here is random")
    if order.out.is_dir() and is_run(order.out):
        raise UserError(f"--seeds into {order.out}, a run folder", "a folder for several runs", "choose another --out")
    outcomes: dict[int, line.Outcome] = {}
    for number, seed in enumerate(seeds, 1):
        progress.note(f"seed {seed}, {number} of {len(seeds)}")
        own = dataclasses.replace(order, out=order.out / f"seed-{seed}")
        outcome = line.run(config.model_copy(update={"seed": seed}), own, progress)
        if outcome is not None:
            outcomes[seed] = outcome
    if not outcomes:
        return None
    runs = {seed: outcome.run for seed, outcome in outcomes.items()}
    if order.until != line.LAST:
        return {"status": "done", "runs": [str(run) for run in runs.values()]}
    return _summarised(config, order.out, runs)


def _summarised(config: Config, out: Path, runs: dict[int, Path]) -> dict[str, Any]:
    from pipeline.report.several import seeds as report

    summary = report.summary_of(runs, config.check.gate_batch)
    page = report.write(summary, out, config.name)
    return {**dataclasses.asdict(summary), "report": str(page)}
