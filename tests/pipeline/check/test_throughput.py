"""Several sessions at once in every form that is timed: each has an entry, with figures or with the reason."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import OutOfMemoryError

from pipeline.check import speed
from pipeline.check.forms import ONNX_RUNTIME, Bench, Form
from pipeline.check.reading import typed
from pipeline.check.results import Concurrency, LatencyEntry
from pipeline.check.speed import throughputs
from pipeline.config.task import task_of
from pipeline.progress import Silent
from runtime.backends import Session
from runtime.errors import UserError
from runtime.measure.load import under_load
from tests.pipeline.check.test_measured_engines import result
from tests.pipeline.stages.test_check import SECTION, Split, engine, run
from tests.runtime import standins
from tests.runtime.nets import Net, write_onnx

ORT, TORCH = ("onnxruntime", "fp32"), ("torch", "fp32")
RAN = {"b4": LatencyEntry(None, None, None, None, None, None, None)}
LATENCY: Any = {"onnxruntime": {"fp32": RAN}, "torch": {"fp32": RAN}, "tensorrt": {"fp16": RAN}}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every `under_load`, which takes windows of 5 ms, and has time on a busy machine too."""
    found: list[dict[str, Any]] = []

    def short(*arguments: Any, **options: Any) -> Any:
        found.append(options)
        return under_load(*arguments, **{**options, "window_s": 0.005, "limit_s": 60})

    monkeypatch.setattr(speed, "under_load", short)
    return found


def bench_of(tmp_path: Path, **changes: Any) -> tuple[Bench, dict[tuple[str, str], Any]]:
    """Dense and compact as ONNX files and in torch, and those two pairs."""
    graphs: Any = {"simplified": {role: write_onnx(tmp_path / f"{role}.onnx") for role in ("dense", "compact")}}
    networks = {"dense": Net(), "compact": Net()}
    bench = Bench(
        SECTION.model_copy(update={"streams": (1, 2), **changes}), networks, graphs, Split(), "cpu", task_of()
    )
    pairs = {ORT: {role: Form("simplified", None) for role in networks}}
    return bench, pairs | {TORCH: {role: Form("torch", None) for role in networks}}


def test_every_form_that_was_timed_has_an_entry(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    """Engines that do not run here are null with the reason that their latency has."""
    engines = engine(tmp_path, "dense"), engine(tmp_path, "compact")
    _, document = run(tmp_path, engines=engines, batch_sizes=(4,), streams=(1, 2))
    loads = [typed(Concurrency, load, tmp_path) for load in document["concurrency"]]
    where = [(load.backend, load.precision, load.streams, load.batch) for load in loads]
    forms = [(backend, precision) for backend, timed in document["latency"].items() for precision in timed]
    assert sorted(where) == sorted((*form, streams, 4) for form in forms for streams in (1, 2))
    assert {*forms} == {ORT, ("onnxruntime", "fp16"), TORCH, ("tensorrt_rtx", "fp16")}
    for load in loads:
        if load.backend == "tensorrt_rtx":
            assert not any((load.dense, load.compact, load.speedup, load.threads))
            assert load.reason and load.reason == document["latency"]["tensorrt_rtx"]["fp16"]["b4"]["reason"]
        else:
            assert load.threads == 1 and load.reason is None and load.speedup
            assert load.dense and load.compact and min(load.dense.images_per_s, load.compact.images_per_s) > 0
    assert len(calls) == 6


def test_the_pair_that_is_gated_is_measured_longest(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    bench, pairs = bench_of(tmp_path, streams=(2,))
    entries = throughputs(bench, pairs, ONNX_RUNTIME, LATENCY, Silent())
    assert calls == [{"rounds": 8}, {"rounds": 5, "limit_s": 1}]
    assert [(entry.backend, entry.streams, entry.reason) for entry in entries] == [
        ("onnxruntime", 2, None), ("torch", 2, None)
    ]  # fmt: skip
    assert throughputs(bench_of(tmp_path, streams=())[0], pairs, ONNX_RUNTIME, LATENCY, Silent()) == ()


def test_what_was_not_timed_alone_is_not_tried(tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    bench, pairs = bench_of(tmp_path)
    latency = {"torch": {"fp32": {"b4": LatencyEntry(None, None, None, None, None, None, "no GPU")}}}
    entries = throughputs(bench, {TORCH: pairs[TORCH]}, ONNX_RUNTIME, latency, Silent())
    assert [(entry.streams, entry.speedup, entry.reason) for entry in entries] == [
        (1, None, "no GPU"), (2, None, "no GPU")
    ]  # fmt: skip
    assert calls == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("got no execution context", "memory", "free some"), "got no execution context"),
        (OutOfMemoryError("CUDA out of memory."), "4 sessions do not fit into the GPU's memory"),
    ],
)
def test_what_the_load_breaks_is_null_with_the_reason(
    error: Exception, reason: str, tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, pairs = bench_of(tmp_path, streams=(2,))
    opened: list[Session] = []

    def open_three(role: Any, hop: Form) -> Session:
        if len(opened) == 3:
            raise error
        opened.append(Bench.open(bench, role, hop))
        return opened[-1]

    monkeypatch.setattr(bench, "open", open_three)
    (entry,) = throughputs(bench, {TORCH: pairs[TORCH]}, ONNX_RUNTIME, LATENCY, Silent())
    assert entry.reason == reason
    assert entry.speedup is None and entry.dense is None
    with pytest.raises(UserError, match="is closed"):
        opened[-1].launch()


def test_a_form_that_would_take_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "under_load", partial(under_load, window_s=0.3))
    bench, pairs = bench_of(tmp_path, streams=(1,))
    (entry,) = throughputs(bench, {TORCH: pairs[TORCH]}, ONNX_RUNTIME, LATENCY, Silent())
    assert re.fullmatch(r"5 rounds of 1 at once would take \d+ s, at most 1 s are allowed", entry.reason or "")
    assert entry.compact is None


def test_engines_that_run_here_are_measured_too(
    tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    standins.stand_in(monkeypatch)
    bench, _ = bench_of(tmp_path, streams=(1,))
    made = {role: result(tmp_path, f"{role}.fp16.SM86.engine") for role in ("dense", "compact")}
    for one in made.values():
        assert one.engine is not None
        one.engine.path.write_bytes(b"plan")
    opened: list[tuple[str, str]] = []

    def open_one(role: Any, hop: Form) -> Session:
        session = Bench.open(bench, role, hop)
        opened.append((role, session.name))
        return session

    monkeypatch.setattr(bench, "open", open_one)
    pairs: Any = {("tensorrt", "fp16"): {role: Form("tensorrt.fp16.SM86", None, one) for role, one in made.items()}}
    (entry,) = throughputs(bench, pairs, ONNX_RUNTIME, LATENCY, Silent())
    assert (entry.backend, entry.precision, entry.threads, entry.reason) == ("tensorrt", "fp16", None, None)
    assert entry.dense and entry.dense.n >= 10 and bench.gpu
    assert {*opened} == {(role, f"{role}.fp16.SM86.engine") for role in made}
    standins.all_given_back()
