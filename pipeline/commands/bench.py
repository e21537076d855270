"""`demport bench`: the latency of exported files against each other, in turn, on random inputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from runtime.backends import Array, Session, open_session
from runtime.backends.feeds import random_feeds
from runtime.backends.trial import Order, demand_runs
from runtime.device import environment
from runtime.errors import UserError
from runtime.measure.conditions import complaints
from runtime.measure.latency import Comparison, Opener, Running, in_turn
from runtime.measure.load import under_load


@dataclass(frozen=True)
class Conditions:
    """Images a launch (the first is what `models` tells of, all are swept), numbers of sessions at once, threads of
    ONNX Runtime (None: every core), and how long a comparison goes on."""

    batches: tuple[int, ...]
    streams: tuple[int, ...]
    threads: int | None
    device: Literal["auto", "cpu", "cuda"]
    min_blocks: int
    time_limit_s: float
    precision: float


def bench(paths: Sequence[Path], conditions: Conditions) -> dict[str, Any]:
    """The JSON document: `models[]` in the order of `paths`, each later one with its `speedup` against the first and,
    with the copies in and out, `end_to_end`; `sweep[]` the same for each batch, where there are several; and
    `concurrency[]`, throughput for each number of streams at the first batch.

    Raises UserError where a file does not load or does not take the batch.
    """
    for path in paths:
        demand_runs(Order(str(path), None, conditions.device, conditions.threads, conditions.batches[0]))
    openers = [partial(open_session, path, device=conditions.device, threads=conditions.threads) for path in paths]
    under_way = [_running(openers, batch, conditions) for batch in conditions.batches]
    results = in_turn([one for both in under_way for one in both])
    swept = [_swept(paths, *row) for row in zip(conditions.batches, results[::2], results[1::2], strict=True)]
    return {
        "status": "done",
        **swept[0],
        **({"sweep": swept} if len(swept) > 1 else {}),
        "concurrency": [_loaded(paths, openers, streams, conditions) for streams in conditions.streams],
        "environment": environment(),
    }


def _running(openers: Sequence[Opener], batch: int, conditions: Conditions) -> tuple[Running, Running]:
    """Without and with the copies."""
    feeds, limit_s = _feeds(openers, batch), conditions.time_limit_s
    precision = conditions.precision
    return (
        Running(openers, feeds, min_blocks=conditions.min_blocks, time_limit_s=limit_s, precision=precision),
        Running(openers, feeds, time_limit_s=limit_s / 4, precision=0.05, copies=True),
    )


def _swept(paths: Sequence[Path], batch: int, compute: Comparison, whole: Comparison) -> dict[str, Any]:
    models = []
    for number, path in enumerate(paths):
        settings = dict(compute.settings[number])
        figures = _figures(compute, number)
        models.append({"file": str(path), **figures, "settings": settings, "end_to_end": _figures(whole, number)})
    protocol, state = dict(compute.protocol), dict(compute.conditions)
    return {"batch": batch, "models": models, "protocol": protocol, "conditions": state}


def _feeds(openers: Sequence[Opener], batch: int) -> list[dict[str, Array]]:
    feeds = []
    for opener in openers:
        with closing(opener()) as session:
            feeds.append(_feed(session, batch))
    return feeds


def _feed(session: Session, batch: int) -> dict[str, Array]:
    """Random inputs of that batch. UserError where the file takes another one only: times of different batches do not
    compare."""
    if not session.inputs:
        raise UserError(f"{session.name} takes no inputs", "a network of images", "export it with an input")
    fixed = next((spec.shape[0] for spec in session.inputs if spec.shape), None)
    if fixed not in (None, batch):
        raise UserError(f"{session.name} takes a batch of {fixed} only", f"a batch of {batch}", f"add --batch {fixed}")
    return random_feeds(session, batch)


def _figures(comparison: Comparison, number: int) -> dict[str, Any]:
    latency = asdict(comparison.models[number])
    figures = {key: value for key, value in latency.items() if key not in ("name", "samples_ms")}
    return {**figures, "speedup": asdict(comparison.speedups[number - 1]) if number else None}


def _loaded(paths: Sequence[Path], openers: Sequence[Opener], streams: int, conditions: Conditions) -> dict[str, Any]:
    feeds = _feeds(openers, conditions.batches[0])
    loaded = under_load(openers, feeds, streams)
    models = [
        {"file": str(path), **asdict(load), "speedup": asdict(loaded.speedups[number - 1]) if number else None}
        for number, (path, load) in enumerate(zip(paths, loaded.loads, strict=True))
    ]
    return {"streams": streams, "batch": conditions.batches[0], "models": models}


def table(paths: Sequence[Path], document: dict[str, Any]) -> str:
    """The figures as lines for people."""
    width = max(len(str(path)) for path in paths)
    lines = []
    for swept in document.get("sweep", [document]):
        lines.append(
            f"batch {swept['batch']}".ljust(width)
            + "   p50 ms   p95 ms   p99 ms  images/s  against the first; end to end"
        )
        for model in swept["models"]:
            figures = "  ".join(f"{model[key]:7.3f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
            against = _against(model["speedup"])
            if model["end_to_end"]["speedup"]:
                against += f"; {model['end_to_end']['speedup']['ratio']:.2f}x"
            lines.append(f"{model['file']:{width}}  {figures}  {model['images_per_s']:8,.0f}  {against}")
        lines += [f"doubtful: {one}" for one in complaints(swept["conditions"])]
    for load in document["concurrency"]:
        lines.append(f"{load['streams']} at once, batch {load['batch']}".ljust(width) + "   images/s   p50 ms   p99 ms")
        for model in load["models"]:
            figures = f"{model['images_per_s']:9,.0f}  {model['p50_ms']:7.3f}  {model['p99_ms']:7.3f}"
            lines.append(f"{model['file']:{width}}  {figures}  {_against(model['speedup'])}")
    return "\n".join(lines)


def _against(speedup: dict[str, Any] | None) -> str:
    if speedup is None:
        return "-"
    low, high = speedup["ci95"]
    missed = f" (a difference below {speedup['detectable']:.2f}x would not have shown)"
    hint = missed if speedup["verdict"] == "not distinguishable" else ""
    return f"{speedup['ratio']:.2f}x [{low:.2f}, {high:.2f}], {speedup['verdict']}{hint}"
