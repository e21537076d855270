"""`demport bench`: the latency of exported files against each other, in turn, on random inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.backend import open_session
from runtime.device import environment
from runtime.feeds import random_feeds
from runtime.latency import compare


@dataclass(frozen=True)
class Conditions:
    """Images a launch, threads of ONNX Runtime (None: every core), and how long a comparison goes on."""

    batch: int
    threads: int | None
    device: Literal["auto", "cpu", "cuda"]
    min_blocks: int
    time_limit_s: float


def bench(paths: Sequence[Path], conditions: Conditions) -> dict[str, Any]:
    """The JSON document: `models[]` in the order of `paths`, each later one with its `speedup` against the first.

    Raises UserError where a file does not load or does not take the batch.
    """
    with contextlib.ExitStack() as stack:
        sessions = []
        for path in paths:
            session = open_session(path, device=conditions.device, threads=conditions.threads)
            stack.callback(session.close)
            sessions.append(session)
        feeds = [random_feeds(session, conditions.batch) for session in sessions]
        told = compare(sessions, feeds, min_blocks=conditions.min_blocks, time_limit_s=conditions.time_limit_s)
    models = []
    for number, (path, latency) in enumerate(zip(paths, told.models, strict=True)):
        speedup = asdict(told.speedups[number - 1]) if number else None
        figures = {key: value for key, value in asdict(latency).items() if key not in ("name", "samples_ms")}
        models.append({"file": str(path), **figures, "settings": dict(told.settings[number]), "speedup": speedup})
    protocol, state = dict(told.protocol), dict(told.conditions)
    more = {"protocol": protocol, "conditions": state, "environment": environment()}
    return {"status": "done", "batch": conditions.batch, "models": models, **more}


def table(paths: Sequence[Path], document: dict[str, Any]) -> str:
    """The figures as lines for people."""
    width = max(len(str(path)) for path in paths)
    lines = [f"{'':{width}}  p50 ms   p95 ms   best ms  against the first"]
    for model in document["models"]:
        told = model["speedup"]
        against = (
            f"{told['ratio']:.2f}x [{told['ci95'][0]:.2f}, {told['ci95'][1]:.2f}], {told['verdict']}" if told else "-"
        )
        figures = "  ".join(f"{model[key]:7.3f}" for key in ("p50_ms", "p95_ms", "best_ms"))
        lines.append(f"{model['file']:{width}}  {figures}  {against}")
    return "\n".join(lines)
