"""Latency of the networks that `benchmarks.methods` trained, each beside the dense one, after all trainings."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx

from benchmarks.results import Point
from runtime.backends import open_session
from runtime.measure.latency import Comparison, Running, in_turn

BACKENDS = {"onnxruntime": "", "openvino": "openvino_"}
"""What times, and what its figures begin with."""
PRECISION = 0.01
"""Half-width of an interval."""


def graph_name(point: Point) -> str:
    return f"{point['method']}-{point['amount']}-{point['seed']}.onnx".replace(" ", "-")


def timed(
    points: Sequence[Point], work: Path, shape: tuple[int, ...], backends: Iterable[str], timed_s: float
) -> list[Point]:
    """The points with their latency on a batch of `shape` beside that of their dense network, for `timed_s` each.

    Graphs of one form are timed once, on the first of them; a method that refused has none, and the MLPs have a dense
    network of their own. All comparisons of a backend go on in turn, opening by opening, so that each is spread over
    the time of all.
    """
    dense: dict[str, Path] = {}
    first: dict[tuple[str, str], Path] = {}
    keys: list[tuple[str, str] | None] = []
    for point in points:
        path, group = work / graph_name(point), "mlp" if point["method"].startswith("mlp ") else ""
        if point["method"].endswith("dense"):
            dense.setdefault(group, path)
        keys.append(None if "refused" in point else (group, form(path)))
        if keys[-1] is not None:
            first.setdefault(keys[-1], path)
    rows = [dict(point) for point in points]
    first = {key: path for key, path in first.items() if key[0] in dense}
    for backend in backends:
        running = [against(dense[group], path, shape, backend, timed_s) for (group, _), path in first.items()]
        figures = dict(zip(first, (figures_of(seen, backend) for seen in in_turn(running)), strict=True))
        rows = [row | (figures.get(key, {}) if key else {}) for row, key in zip(rows, keys, strict=True)]
    return rows


def form(path: Path) -> str:
    """Hash of a graph's operations and of its tensors' shapes, whatever they hold: what decides its latency."""
    graph, digest = onnx.load(path).graph, hashlib.sha256()
    for node in graph.node:
        digest.update(node.op_type.encode() + b"".join(a.SerializeToString() for a in node.attribute))
    for tensor in graph.initializer:
        digest.update(f"{list(tensor.dims)} {tensor.data_type};".encode())
    return digest.hexdigest()


def against(dense: Path, own: Path, shape: tuple[int, ...], backend: str, timed_s: float) -> Running:
    openers = [functools.partial(open_session, path, backend, device="cpu", threads=1) for path in (dense, own)]
    feed = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    names = [onnx.load(path, load_external_data=False).graph.input[0].name for path in (dense, own)]
    return Running(openers, [{name: feed} for name in names], time_limit_s=timed_s, precision=PRECISION)


def figures_of(seen: Comparison, backend: str) -> Point:
    (speedup,), own, start = seen.speedups, seen.models[1], BACKENDS[backend]
    return {
        f"{start}batch_32_p50_ms": own.p50_ms, f"{start}speedup": speedup.ratio, f"{start}speedup_low": speedup.ci95[0],
        f"{start}speedup_high": speedup.ci95[1], f"{start}others_busy_pct": seen.conditions["others_busy_pct"],
    }  # fmt: skip
