"""check.json's `latency` and `reference`: networks timed in turn, each comparison spread over the time of all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from export.files import sha256
from pipeline.exporting import ROLES, Role
from pipeline.measuring import Bench, Hop, Latencies, Pair, Results, may_not_run
from pipeline.progress import Progress
from runtime.backend import DeviceName, open_session
from runtime.errors import UserError
from runtime.latency import Comparison
from runtime.openings import Running, compare_openings

GATED_PRECISION, OTHER_PRECISION = 0.01, 0.05
"""Half-width of the speedup's interval at which a comparison ends; the gated one is measured more closely."""


class _Entry:
    """One entry of `latency` under way: the comparison, and the same with the copies; or why there is none."""

    def __init__(self, bench: Bench, pair: Pair, batch: int, reason: str | None) -> None:
        self._pair, self.reason = pair, reason
        self._gated = pair["dense"].name == "simplified" and batch == bench.gate_batch
        self._running: tuple[Running, ...] = ()
        if reason is None:
            try:
                self._running = _running(bench, pair, batch, gated=self._gated)
            except UserError as error:
                self._excuse(error)

    @property
    def done(self) -> bool:
        return self.reason is not None or all(one.stopped for one in self._running)

    def go_on(self) -> None:
        """An opening of each that is not over. UserError where one fails that has to run here."""
        try:
            for one in self._running:
                if not one.stopped:
                    one.go_on()
        except UserError as error:
            self._excuse(error)

    def _excuse(self, error: UserError) -> None:
        if not may_not_run(self._pair["dense"]):
            raise error
        self.reason = error.found

    def told(self) -> dict[str, Any]:
        if self.reason is not None:
            figures = ("dense", "compact", "speedup", "end_to_end", "settings", "protocol")
            return {**dict.fromkeys(figures), "reason": self.reason}
        told, whole = (one.told() for one in self._running)
        return {
            **_figures(told),
            "settings": dict(zip(ROLES, map(dict, told.settings), strict=True)),
            "protocol": _protocol(told, gated=self._gated),
            "reason": None,
            "end_to_end": _figures(whole),
        }


def _running(bench: Bench, pair: Pair, batch: int, *, gated: bool) -> tuple[Running, Running]:
    """Without and with the copies."""
    section = bench.section
    openers = [partial(bench.open, role, pair[role]) for role in ROLES]
    with closing(openers[0]()) as session:
        feeds = [{session.inputs[0].name: bench.images(batch)}] * len(ROLES)
    precision = GATED_PRECISION if gated else OTHER_PRECISION
    limit_s, blocks = section.time_limit_s, section.min_blocks
    enough_s = inf if gated else limit_s / 4
    return (
        Running(openers, feeds, min_blocks=blocks, time_limit_s=limit_s, precision=precision, enough_s=enough_s),
        Running(openers, feeds, time_limit_s=limit_s / 4, precision=OTHER_PRECISION, copies=True),
    )


def latencies(
    bench: Bench, pairs: Mapping[tuple[str, str], Pair], results: Mapping[Role, Results], progress: Progress
) -> Latencies:
    """Every pair at every batch size, on images of the test split, repeated where it has too few; null with the reason
    where one of the two gave no accuracy in `results`."""
    entries: dict[tuple[str, str, int], _Entry] = {}
    for (backend, precision), pair in pairs.items():
        told = (results[role].get(pair[role].name) for role in ROLES)
        reason = next((why for why in told if isinstance(why, str)), None)
        for batch in sorted(set(bench.section.batch_sizes)):
            entries[backend, precision, batch] = _Entry(bench, pair, batch, reason)
    progress.start("check: latency", len(entries))
    try:
        while under_way := {where: entry for where, entry in entries.items() if not entry.done}:
            for (backend, precision, batch), entry in under_way.items():
                done = sum(one.done for one in entries.values())
                progress.update(done, f"latency on {backend}, {precision}, batch {batch}")
                entry.go_on()
        progress.update(len(entries))
    finally:
        progress.stop()
    latency: Latencies = {}
    for (backend, precision, batch), entry in entries.items():
        latency.setdefault(backend, {}).setdefault(precision, {})[f"b{batch}"] = entry.told()
    return latency


def against_reference(bench: Bench, file: str) -> dict[str, Any]:
    """check.json's `reference`: compact against the file of check.reference, at the gated batch. UserError where it
    does not take the images."""
    section = bench.section
    path = Path(file).expanduser()
    device: DeviceName = "cpu" if bench.device == "cpu" else "auto"
    openers = (
        partial(open_session, path, "onnxruntime", device, bench.threads),
        partial(bench.open, "compact", Hop("simplified", None)),
    )
    feeds = []
    for opener in openers:
        with closing(opener()) as session:
            feeds.append({session.inputs[0].name: bench.images(section.gate_batch)})
    told = compare_openings(
        openers, feeds, min_blocks=section.min_blocks, time_limit_s=section.time_limit_s, precision=GATED_PRECISION
    )
    timings = (asdict(model) for model in told.models)
    return {
        "file": path.name,
        "sha256": sha256(path),
        "batch": section.gate_batch,
        **dict(zip(("reference", "compact"), timings, strict=True)),
        "speedup": asdict(told.speedups[0]),
        "protocol": _protocol(told, gated=True),
    }


def _figures(told: Comparison) -> dict[str, Any]:
    timings = [asdict(model) for model in told.models]
    return {"dense": timings[0], "compact": timings[1], "speedup": asdict(told.speedups[0])}


def _protocol(told: Comparison, *, gated: bool) -> dict[str, Any]:
    return {**told.protocol, "gated": gated, "conditions": dict(told.conditions)}
