"""`align: auto`: which multiple channels are kept to is chosen by timing, on the backend at hand.

Fewer channels are not always faster: kernels are written for multiples of some width. So every candidate is cut,
exported and timed in turn with the others and with the dense network, in many short rounds of sessions opened anew: two
sessions of one file differ by where their memory lies for as long as they live, and a machine stands for seconds in a
state that favours one network over another (runtime/openings.py).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from export.onnx_from_torch import onnx_from_torch
from pipeline import config
from pipeline.surgery.analysis import Analysis
from pipeline.surgery.certificate import channel_counts
from pipeline.surgery.cut import Cut
from pipeline.surgery.rebuild import rebuild
from pipeline.surgery.select import Choice, choose
from pipeline.surgery.shrink import cut_of
from pipeline.surgery.trace import Traced
from runtime.backend import DeviceName, Session, open_session
from runtime.latency import compare

CANDIDATES = (1, 4, 8, 16, 32)
DENSE = 1 << 30  # more than any layer has: everything stays
TIE = 0.01  # of two candidates within this share of each other the smaller is chosen
HOPELESS = 0.1  # a candidate whose fastest launch is so much slower than the best one's median is not timed again
OPSET = 18
FEWEST_ROUNDS = 3  # whatever they take
COMPARISONS = 3  # a choice takes as long as so many comparisons of the check


@dataclass(frozen=True)
class Timing:
    """How candidates are timed: `batch` images a launch, at most `rounds` times with new sessions, for about
    `time_limit_s` in all."""

    batch: int = 32
    threads: int = 2
    device: DeviceName = "auto"
    rounds: int = 15
    min_blocks: int = 5
    time_limit_s: float = 60.0


def timing_of(section: config.Check, device: DeviceName) -> Timing:
    """As the check stage measures its gated speedup: CUDA only where ONNX Runtime's build has it."""
    where: DeviceName = "cpu" if device == "cpu" else "auto"
    return Timing(section.gate_batch, section.threads, where, time_limit_s=COMPARISONS * float(section.time_limit_s))


@dataclass(frozen=True)
class Row:
    """One candidate: `align` lists the multiples that lead to it ("dense": nothing is cut), `channels` what is kept.

    p50 over all rounds, and the lowest and the highest of a round, in milliseconds a launch; None where there was
    nothing to choose from.
    """

    align: str
    channels: int
    p50_ms: float | None = None
    p50_ms_low: float | None = None
    p50_ms_high: float | None = None
    rounds: int = 0
    chosen: bool = False


@dataclass(frozen=True)
class Alignment:
    """The choice for a certificate: `document()` is what each candidate costs. `backend` is None where nothing was
    timed, for nothing could be cut."""

    size: int
    rows: tuple[Row, ...]
    backend: str | None
    device: str
    timing: Timing

    def document(self) -> dict[str, Any]:
        settings = {"backend": self.backend, "device": self.device, "threads": self.timing.threads}
        return {**settings, "batch": self.timing.batch, "candidates": [asdict(row) for row in self.rows]}


@dataclass
class Candidate:
    """`sizes` are the multiples that keep the same channels; `rounds` holds the p50 of each round and `best_ms` the
    fastest launch, both in ms."""

    sizes: list[int]
    channels: int
    choice: Choice
    cut: Cut
    path: Path = Path()
    rounds: list[float] = field(default_factory=list)
    best_ms: float = math.inf

    @property
    def label(self) -> str:
        return ", ".join("dense" if size == DENSE else str(size) for size in self.sizes)

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.rounds))


def cut_aligned(
    traced: Traced,
    dead: Mapping[str, Tensor] | None,
    align: int | Literal["auto"],
    residual: str,
    samples: Tensor,
    timing: Timing,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Analysis, Choice, Cut, dict[str, Any] | None]:
    """`cut_of` for a fixed alignment or for `auto`, whose measurements come last (None where nothing was timed)."""
    analysis, choice, cut = cut_of(traced, dead, align=1 if align == "auto" else align, residual=residual)
    if align != "auto":
        return analysis, choice, cut, None
    chosen, choice, cut = align_by_timing(analysis, samples, timing, tell=tell)
    return analysis, choice, cut, chosen.document()


def align_by_timing(
    analysis: Analysis,
    samples: Tensor,
    timing: Timing,
    *,
    candidates: Sequence[int] = CANDIDATES,
    folder: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Alignment, Choice, Cut]:
    """The fastest of the candidates and of the dense network, and its cut.

    `samples` (N, C, H, W) float32, N >= 1, are repeated to the batch; ONNX files are written to a temporary folder in
    `folder`. Raises UserError where the network cannot be exported or run.
    """
    different = distinct(analysis, candidates)
    if len(different) == 1:
        only = different[0]
        row = Row(only.label, only.channels, chosen=True)
        return Alignment(only.sizes[0], (row,), None, timing.device, timing), only.choice, only.cut
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for i, candidate in enumerate(different):
            tell(f"align: exporting {candidate.label}")
            candidate.path = Path(temporary) / f"{i}.onnx"
            model = rebuild(analysis, candidate.cut).eval()
            onnx_from_torch(model, samples[:8], candidate.path, opset=OPSET, max_abs_diff=math.inf, metadata={})
        feed = samples[torch.arange(timing.batch) % len(samples)].cpu().numpy()
        backend, device = time_in_turn(different, feed, timing, tell)
    best = winner(different)
    rows = tuple(
        Row(c.label, c.channels, c.p50_ms, min(c.rounds), max(c.rounds), len(c.rounds), c is best) for c in different
    )
    return Alignment(best.sizes[0], rows, backend, device, timing), best.choice, best.cut


def distinct(analysis: Analysis, candidates: Iterable[int]) -> list[Candidate]:
    """Candidates that keep different channels, the dense network last."""
    found: list[Candidate] = []
    for size in (*sorted(candidates), DENSE):
        choice, cut = choose(analysis, size)
        keep = choice.keep_ids()
        same = next((c for c in found if np.array_equal(c.choice.keep_ids(), keep)), None)
        if same is not None:
            same.sizes.append(size)
        else:
            found.append(Candidate([size], channel_counts(analysis, choice)["after"], choice, cut))
    return found


def time_in_turn(
    candidates: Sequence[Candidate], feed: Any, timing: Timing, tell: Callable[[str], None]
) -> tuple[str, str]:
    """Fill in the rounds; (backend, device) of the sessions."""
    backend = device = ""
    start, limit_s = time.monotonic(), timing.time_limit_s / timing.rounds
    for done in range(timing.rounds):
        left = hopeful(candidates) if done else list(candidates)
        if len(left) == 1 or (done >= FEWEST_ROUNDS and time.monotonic() - start > timing.time_limit_s):
            break
        tell(f"align: timing {len(left)} candidates, round {done + 1} of {timing.rounds}")
        turned = left[done % len(left) :] + left[: done % len(left)]
        with ExitStack() as stack:
            sessions = [stack.enter_context(closing(_session(c.path, timing))) for c in turned]
            feeds = [{session.inputs[0].name: feed} for session in sessions]
            seen = compare(sessions, feeds, min_blocks=timing.min_blocks, time_limit_s=limit_s, seed=done)
            backend, device = sessions[0].backend, sessions[0].device
        for candidate, latency in zip(turned, seen.models, strict=True):
            candidate.rounds.append(latency.p50_ms)
            candidate.best_ms = min(candidate.best_ms, latency.best_ms)
    return backend, device


def _session(path: Path, timing: Timing) -> Session:
    return open_session(path, device=timing.device, threads=timing.threads)


def hopeful(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those in the last round that may still be the fastest."""
    last = in_all_rounds(candidates)
    limit = (1 + HOPELESS) * min(c.p50_ms for c in last)
    return [c for c in last if c.best_ms <= limit]


def in_all_rounds(candidates: Sequence[Candidate]) -> list[Candidate]:
    most = max(len(c.rounds) for c in candidates)
    return [c for c in candidates if len(c.rounds) == most]


def winner(candidates: Sequence[Candidate]) -> Candidate:
    """Of those within TIE of the fastest, the one with the fewest channels.

    Compared within each round, for the machine may be faster in one than in another.
    """
    last = in_all_rounds(candidates)
    rounds = np.array([c.rounds for c in last])
    relative = np.median(rounds / np.exp(np.log(rounds).mean(0)), axis=1)
    tied = [c for c, value in zip(last, relative, strict=True) if value <= (1 + TIE) * relative.min()]
    return min(tied, key=lambda c: c.channels)
