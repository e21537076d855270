"""`align: auto`: which multiple channels are kept to is chosen by timing, on the backend at hand.

Fewer channels are not always faster: kernels are written for multiples of some width. So every candidate is cut,
exported and timed in turn with the others and with the dense network, in many rounds of sessions opened anew
(runtime/measure/latency.py).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from export.onnx.from_torch import onnx_from_torch
from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.cut.carry import Cut
from pipeline.surgery.cut.choose import Choice, choose
from pipeline.surgery.cut.kernels import onnxruntime_multiples
from pipeline.surgery.cut.rebuild import rebuild
from pipeline.surgery.proof.certificate import channel_counts
from pipeline.surgery.shrink import cut_of
from pipeline.surgery.trace import Traced
from runtime.backends import DeviceName, Session, open_session
from runtime.measure.latency import Running

CANDIDATES = (1, 4, 8, 16, 32)
DENSE = 1 << 30  # more than any layer has: everything stays
PER_LAYER = 0  # each group the multiple that its readers' kernels ask for
NAMES = {DENSE: "dense", PER_LAYER: "per layer"}
TIE = 0.01  # of two candidates within this share of each other the smaller is chosen
HOPELESS = 0.1  # a candidate whose fastest launch is so much slower than the best one's median is not timed again
OPSET = 18
FEWEST_ROUNDS = 6  # whatever they take
COMPARISONS = 3  # a choice takes as long as so many comparisons of the check


@dataclass(frozen=True)
class Timing:
    """How candidates are timed: `batch` images a launch, at most `rounds` times with new sessions, for about
    `time_limit_s` in all, on a backend that opens .onnx files."""

    batch: int = 32
    threads: int = 2
    device: DeviceName = "auto"
    backend: str = "onnxruntime"
    rounds: int = 15
    min_blocks: int = 60
    time_limit_s: float = 60.0


class Measuring(Protocol):
    """How the check stage measures: images a launch, threads, and seconds for one comparison."""

    @property
    def gate_batch(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def time_limit_s(self) -> float: ...


def timing_of(section: Measuring, device: DeviceName, flavour: str = "auto") -> Timing:
    """As the check stage measures its gated speedup: CUDA only where ONNX Runtime's build has it. For engines of the
    flavour openvino on OpenVINO, whose kernels ask for no multiples."""
    where: DeviceName = "cpu" if device == "cpu" else "auto"
    backend = "openvino" if flavour == "openvino" else "onnxruntime"
    limit_s = COMPARISONS * float(section.time_limit_s)
    return Timing(section.gate_batch, section.threads, where, backend, time_limit_s=limit_s)


@dataclass(frozen=True)
class Row:
    """One candidate: `align` lists the multiples that lead to it ("dense": nothing is cut; "per layer": what kernels
    ask for), `channels` what is kept.

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
        return ", ".join(NAMES.get(size, str(size)) for size in self.sizes)

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
    own = onnxruntime_multiples(analysis) if timing.backend == "onnxruntime" else None
    different = distinct(analysis, candidates, own)
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


def distinct(
    analysis: Analysis, candidates: Iterable[int], per_layer: Mapping[str, int] | None = None
) -> list[Candidate]:
    """Candidates that keep different channels, the dense network last; `per_layer`: a multiple for each group, by name,
    which is one more, the first, where no number keeps the same."""
    different: list[Candidate] = []
    multiples: dict[int, int | Mapping[str, int]] = {size: size for size in (*sorted(candidates), DENSE)}
    if per_layer is not None:
        multiples[PER_LAYER] = per_layer
    for size, multiple in multiples.items():
        choice, cut = choose(analysis, multiple)
        keep = choice.keep_ids()
        same = next((c for c in different if np.array_equal(c.choice.keep_ids(), keep)), None)
        candidate = Candidate([size], channel_counts(analysis, choice)["after"], choice, cut)
        if same is None:
            different.insert(0 if size == PER_LAYER else len(different), candidate)
        elif size != PER_LAYER:
            same.sizes.append(size)
    return different


def time_in_turn(
    candidates: Sequence[Candidate], feed: Any, timing: Timing, tell: Callable[[str], None]
) -> tuple[str, str]:
    """Fill in the rounds; (backend, device) of the sessions."""
    openers = [partial(_session, candidate.path, timing) for candidate in candidates]
    with closing(openers[0]()) as session:
        backend, device, name = session.backend, session.device, session.inputs[0].name
    running = Running(
        openers, [{name: feed}] * len(openers), openings=min(FEWEST_ROUNDS, timing.rounds), most=timing.rounds,
        min_blocks=timing.min_blocks, time_limit_s=timing.time_limit_s, precision=TIE,
    )  # fmt: skip
    timed = list(candidates)
    while not running.stopped and len(timed) > 1:
        tell(f"align: timing {len(timed)} candidates, round {len(timed[0].rounds) + 1} of at most {timing.rounds}")
        running.advance()
        for candidate, ms in zip(timed, running.last_ms(), strict=True):
            candidate.rounds.append(float(np.median(ms)))
            candidate.best_ms = min(candidate.best_ms, float(ms.min()))
        remaining = hopeful(timed)
        running.keep_only([i for i, candidate in enumerate(timed) if candidate in remaining])
        timed = [candidate for candidate in timed if candidate in remaining]
    return backend, device


def _session(path: Path, timing: Timing) -> Session:
    return open_session(path, timing.backend, timing.device, timing.threads)


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
