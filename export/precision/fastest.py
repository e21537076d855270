"""Which precision is fastest on this machine among those that keep the accuracy, timed on one backend."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from export.onnx import graph
from runtime.backends import DeviceName, Session, open_session
from runtime.backends.openvino import OpenVinoSession
from runtime.errors import UserError
from runtime.measure.latency import compare


@dataclass(frozen=True)
class Candidate:
    """`p50_ms` for the batch; `speedup`: fp32's p50 over it, with its 95 % interval. None where `reason` says why."""

    precision: str
    p50_ms: float | None
    speedup: float | None
    ci95: tuple[float, float] | None
    reason: str | None


@dataclass(frozen=True)
class Best:
    """`precision` is fp32 unless another one is faster with its whole interval."""

    precision: str
    batch: int
    backend: str
    device: str
    threads: int
    candidates: tuple[Candidate, ...]


def fastest(
    files: Mapping[str, Path],
    refused: Mapping[str, str],
    images: graph.Array,
    *,
    device: DeviceName,
    threads: int,
    backend: str = "onnxruntime",
    time_limit_s: float = 20.0,
) -> Best:
    """Times the graphs `files` (by precision, fp32 among them) in turn on `images` (B, ...).

    `refused`: precisions that lose too much, with what they lose; they are not timed, nor is what the backend
    (onnxruntime or openvino) cannot run here. `UserError`: it cannot run the fp32 graph.
    """
    reasons = dict(refused)
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for precision, path in files.items():
            if precision in reasons:
                continue
            try:
                session = _session(path, precision, backend, device, threads)
                sessions[precision] = stack.enter_context(closing(session))
            except UserError as error:
                if precision == "fp32":
                    raise
                reasons[precision] = error.found.replace(str(path), path.name)
        ordered = ["fp32", *(name for name in sessions if name != "fp32")]
        running = [sessions[name] for name in ordered]
        feeds = [{session.inputs[0].name: images} for session in running]
        comparison = compare(running, feeds, time_limit_s=time_limit_s, precision=0.02)
        where = running[0].device
    timed = {"fp32": Candidate("fp32", comparison.models[0].p50_ms, 1.0, None, None)}
    for name, model, speedup in zip(ordered[1:], comparison.models[1:], comparison.speedups, strict=True):
        timed[name] = Candidate(name, model.p50_ms, speedup.ratio, speedup.ci95, None)
    winners = [item for item in timed.values() if item.ci95 is None or item.ci95[0] > 1.0]
    chosen = max(winners, key=lambda item: item.speedup or 0.0)
    others = (Candidate(name, None, None, None, reason) for name, reason in reasons.items())
    return Best(chosen.precision, len(images), backend, where, threads, (*timed.values(), *others))


def _session(path: Path, precision: str, backend: str, device: DeviceName, threads: int) -> Session:
    """OpenVINO computes a graph in what it is told, not in the types of the file."""
    if backend == "openvino":
        return OpenVinoSession(path, device=device, threads=threads, precision=precision)
    return open_session(path, backend, device, threads)
