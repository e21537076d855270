"""Speed: dense and compact timed in turn in every form, compact against a reference, and several sessions at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from torch import OutOfMemoryError

from pipeline.check.forms import Bench, Form, Pair, Results, gated_pair, may_not_run
from pipeline.check.results import Concurrency, EndToEnd, Latencies, LatencyEntry, Reference
from pipeline.progress import Progress
from pipeline.results import ROLES, EngineResult, Role
from runtime.backends import DeviceName, open_session
from runtime.errors import UserError
from runtime.files import sha256
from runtime.measure.latency import Comparison, Running, compare_openings
from runtime.measure.load import under_load

GATED_PRECISION, OTHER_PRECISION = 0.01, 0.05
"""Half-width of the speedup's interval at which a comparison ends; the gated one is measured more closely."""
GATED_ROUNDS, OTHER_ROUNDS = 8, 5
"""Of throughput under load."""


PLACES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
R = TypeVar("R")


@dataclass(frozen=True)
class Speed:
    """What was timed; `gated` is the entry of `latency` that the gate looks at, and `what` says which."""

    latency: Latencies
    gated: LatencyEntry
    what: str
    reference: Reference | None
    concurrency: tuple[Concurrency, ...]

    @property
    def ratio(self) -> float | None:
        """Of the gated comparison, dense over compact."""
        return None if self.gated.speedup is None else self.gated.speedup.ratio


def measured_speed(
    bench: Bench,
    pairs: Mapping[tuple[str, str], Pair],
    engines: Sequence[EngineResult],
    results: Mapping[Role, Results],
    progress: Progress,
) -> Speed:
    """Everything timed; what the user named is tried before the minutes of the rest. Raises UserError."""
    section = bench.section
    reference = step(progress, "against the reference model", lambda: against_reference(bench, section.reference))
    place, instead = gated_pair(pairs, engines, results)
    latency = latencies(bench, pairs, place, results, progress)
    what = f"{PLACES.get(place[0], place[0])}, {place[1]}, batch {section.gate_batch}{instead and f' ({instead})'}"
    concurrency = throughputs(bench, pairs, place, latency, progress)
    return Speed(latency, latency[place[0]][place[1]][f"b{section.gate_batch}"], what, reference, concurrency)


def step(progress: Progress, what: str, work: Callable[[], R]) -> R:
    """`work` as one step of the progress."""
    progress.start(f"check: {what}", 1)
    try:
        result = work()
        progress.update(1)
    finally:
        progress.stop()
    return result


class _Entry:
    """One entry of `latency` under way: the comparison, and the same with the copies; or why there is none."""

    def __init__(self, bench: Bench, pair: Pair, batch: int, gated: bool, reason: str | None) -> None:
        self._pair, self._gated, self.reason = pair, gated and batch == bench.gate_batch, reason
        self._running: tuple[Running, ...] = ()
        if reason is None:
            try:
                self._running = _running(bench, pair, batch, gated=self._gated)
            except UserError as error:
                self._excuse(error)

    @property
    def done(self) -> bool:
        return self.reason is not None or all(one.stopped for one in self._running)

    def advance(self) -> None:
        """An opening of each that is not over. UserError where one fails that has to run here."""
        try:
            for one in self._running:
                if not one.stopped:
                    one.advance()
        except UserError as error:
            self._excuse(error)

    def _excuse(self, error: UserError) -> None:
        if not may_not_run(self._pair["dense"]):
            raise error
        self.reason = error.found

    def result(self) -> LatencyEntry:
        if self.reason is not None:
            return LatencyEntry(None, None, None, None, None, None, self.reason)
        compared, whole = (one.comparison() for one in self._running)
        (dense, compact), (slow_dense, slow_compact) = compared.models, whole.models
        return LatencyEntry(
            dense,
            compact,
            compared.speedups[0],
            EndToEnd(slow_dense, slow_compact, whole.speedups[0]),
            dict(zip(ROLES, map(dict, compared.settings), strict=True)),
            _protocol(compared, gated=self._gated),
            None,
        )


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
    bench: Bench,
    pairs: Mapping[tuple[str, str], Pair],
    gated: tuple[str, str],
    results: Mapping[Role, Results],
    progress: Progress,
) -> Latencies:
    """Every pair at every batch size, on images of the test split, repeated where it has too few; null with the reason
    where one of the two gave no accuracy in `results`. The pair `gated` is measured more closely."""
    entries: dict[tuple[str, str, int], _Entry] = {}
    for (backend, precision), pair in pairs.items():
        measured = (results[role].get(pair[role].name) for role in ROLES)
        reason = next((one for one in measured if isinstance(one, str)), None)
        for batch in sorted(set(bench.section.batch_sizes)):
            closely = (backend, precision) == gated
            entries[backend, precision, batch] = _Entry(bench, pair, batch, closely, reason)
    progress.start("check: latency", len(entries))
    try:
        while under_way := {where: entry for where, entry in entries.items() if not entry.done}:
            for (backend, precision, batch), entry in under_way.items():
                done = sum(one.done for one in entries.values())
                progress.update(done, f"latency on {backend}, {precision}, batch {batch}")
                entry.advance()
        progress.update(len(entries))
    finally:
        progress.stop()
    latency: Latencies = {}
    for (backend, precision, batch), entry in entries.items():
        latency.setdefault(backend, {}).setdefault(precision, {})[f"b{batch}"] = entry.result()
    return latency


def against_reference(bench: Bench, file: str | None) -> Reference | None:
    """Compact against the file of check.reference, at the gated batch; None without one. UserError where it does not
    take the images."""
    if file is None:
        return None
    section = bench.section
    path = Path(file).expanduser()
    device: DeviceName = "cpu" if bench.device == "cpu" else "auto"
    openers = (
        partial(open_session, path, "onnxruntime", device, bench.threads),
        partial(bench.open, "compact", Form("simplified", None)),
    )
    feeds = []
    for opener in openers:
        with closing(opener()) as session:
            feeds.append({session.inputs[0].name: bench.images(section.gate_batch)})
    compared = compare_openings(
        openers, feeds, min_blocks=section.min_blocks, time_limit_s=section.time_limit_s, precision=GATED_PRECISION
    )
    reference, compact = compared.models
    return Reference(
        path.name,
        sha256(path),
        section.gate_batch,
        reference,
        compact,
        compared.speedups[0],
        _protocol(compared, gated=True),
    )


def _protocol(compared: Comparison, *, gated: bool) -> dict[str, object]:
    return {**compared.protocol, "gated": gated, "conditions": dict(compared.conditions)}


def throughputs(
    bench: Bench,
    pairs: Mapping[tuple[str, str], Pair],
    gated: tuple[str, str],
    latency: Latencies,
    progress: Progress,
) -> tuple[Concurrency, ...]:
    """Every pair at the gated batch with each number of streams, in that order.

    A pair that has no figures in `latency` there has none here, with the same reason. The pair that is gated takes
    GATED_ROUNDS, others OTHER_ROUNDS; others that would take longer than check.time_limit_s after a warm-up are null
    with that reason.
    """
    entries: list[Concurrency] = []
    every = [(pair, streams) for pair in pairs for streams in bench.section.streams]
    if not every:
        return ()
    progress.start("check: several sessions at once", len(every))
    try:
        for step, ((backend, precision), streams) in enumerate(every):
            progress.update(step, f"{streams} at once on {backend}, {precision}")
            reason = latency[backend][precision][f"b{bench.gate_batch}"].reason
            figures: tuple[Any, ...] = (None,) * 4 + (reason,)
            if reason is None:
                closely = (backend, precision) == gated
                figures = _load(bench, pairs[backend, precision], streams, gated=closely)
            entries.append(Concurrency(backend, precision, streams, bench.gate_batch, *figures))
        progress.update(len(every))
    finally:
        progress.stop()
    return tuple(entries)


def _load(bench: Bench, pair: Pair, streams: int, *, gated: bool) -> tuple[Any, ...]:
    """Threads, both loads, their ratio, and the reason where there are none. Every stream has a session of its own,
    opened as for a latency; as the pair was timed alone before, what fails here is the load's."""
    limits = {"rounds": GATED_ROUNDS} if gated else {"rounds": OTHER_ROUNDS, "limit_s": bench.section.time_limit_s}
    try:
        with bench.session("dense", pair["dense"]) as session:
            threads, feed = session.settings["threads"], {session.inputs[0].name: bench.images(bench.gate_batch)}
        openers = [partial(bench.open, role, pair[role]) for role in ROLES]
        measured = under_load(openers, [feed] * len(ROLES), streams, **limits)
    except UserError as error:
        return None, None, None, None, error.found
    except OutOfMemoryError:
        return None, None, None, None, f"{len(ROLES) * streams} sessions do not fit into the GPU's memory"
    return threads, *measured.loads, measured.speedups[0], None
