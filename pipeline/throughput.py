"""Throughput of several sessions at once, in every form that is timed: what a server does with each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import OutOfMemoryError

from pipeline.exporting import ROLES
from pipeline.measuring import Bench, Latencies, Pair
from pipeline.progress import Progress
from runtime.concurrency import under_load
from runtime.errors import UserError

GATED_ROUNDS, OTHER_ROUNDS = 8, 5


def throughputs(
    bench: Bench, pairs: Mapping[tuple[str, str], Pair], latency: Latencies, progress: Progress
) -> list[dict[str, Any]]:
    """check.json's `concurrency`: every pair at the gated batch with each number of streams, in that order.

    A pair that has no figures in `latency` there has none here, with the same reason. The pair that is gated takes
    GATED_ROUNDS, others OTHER_ROUNDS; others that would take longer than check.time_limit_s after a warm-up are null
    with that reason.
    """
    entries: list[dict[str, Any]] = []
    every = [(pair, streams) for pair in pairs for streams in bench.section.streams]
    if not every:
        return entries
    progress.start("check: several sessions at once", len(every))
    try:
        for step, ((backend, precision), streams) in enumerate(every):
            progress.update(step, f"{streams} at once on {backend}, {precision}")
            reason = latency[backend][precision][f"b{bench.gate_batch}"]["reason"]
            load = _load(bench, pairs[backend, precision], streams) if reason is None else _not_loaded(reason)
            where = {"backend": backend, "precision": precision, "streams": streams, "batch": bench.gate_batch}
            entries.append({**where, **load})
        progress.update(len(every))
    finally:
        progress.stop()
    return entries


def _load(bench: Bench, pair: Pair, streams: int) -> dict[str, Any]:
    """An entry without where it ran. Every stream has a session of its own, opened as for a latency; as the pair was
    timed alone before, what fails here is the load's, and the reason of an entry without figures."""
    gated = pair["dense"].name == "simplified"
    limits = {"rounds": GATED_ROUNDS} if gated else {"rounds": OTHER_ROUNDS, "limit_s": bench.section.time_limit_s}
    try:
        with bench.session("dense", pair["dense"]) as session:
            threads, feed = session.settings["threads"], {session.inputs[0].name: bench.images(bench.gate_batch)}
        openers = [partial(bench.open, role, pair[role]) for role in ROLES]
        told = under_load(openers, [feed] * len(ROLES), streams, **limits)
    except UserError as error:
        return _not_loaded(error.found)
    except OutOfMemoryError:
        return _not_loaded(f"{len(ROLES) * streams} sessions do not fit into the GPU's memory")
    dense, compact = (asdict(load) for load in told.loads)
    return {
        "threads": threads, "dense": dense, "compact": compact, "speedup": asdict(told.speedups[0]), "reason": None
    }  # fmt: skip


def _not_loaded(reason: str) -> dict[str, Any]:
    return {**dict.fromkeys(("threads", "dense", "compact", "speedup")), "reason": reason}
