"""The check on two small networks whose figures are known, and with engines that are missing or do not run here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.engines import Engine
from pipeline import config
from pipeline.check import forms as measuring
from pipeline.check.accuracy import Images
from pipeline.check.document import NO_IMAGES, check
from pipeline.check.reading import typed
from pipeline.check.results import EngineFile, Hop, LatencyEntry, Why, read
from pipeline.config.task import task_of
from pipeline.progress import Silent
from pipeline.results import Checked, EngineResult
from runtime.errors import UserError
from runtime.measure.accuracy import Accuracy
from tests.runtime import nets
from tests.runtime.nets import SHAPE, WEIGHT, Net, expected, write_onnx

N = 50


class Wrong(Net):
    """The same function with class 0 and 1 exchanged on every image whose first pixel is above 0."""

    def forward(self, batch: Tensor) -> Tensor:
        logits = super().forward(batch)
        bad = batch[:, 0, 0, 0] > 0
        return torch.where(bad[:, None], logits.flip(1), logits)


@dataclass
class Split:
    """50 images; the label is the network's own answer but for the first five."""

    name: str = "test"

    def __post_init__(self) -> None:
        self.images = nets.images(N)
        self.labels = torch.from_numpy(expected(self.images).argmax(axis=1))
        self.labels[:5] = (self.labels[:5] + 1) % 4

    def __len__(self) -> int:
        return N

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        augment: str = "none",
        first: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert seed is None
        for start in range(0, N, batch_size):
            yield torch.from_numpy(self.images[start : start + batch_size]), self.labels[start : start + batch_size]

    def to(self, device: torch.device) -> Split:
        return self


SECTION = config.Check(
    batch_sizes=(1, 4),
    gate_batch=4,
    threads=1,
    min_blocks=5,
    time_limit_s=1,
    streams=(),
    gates=config.Gates(max_accuracy_drop=10.0, min_speedup=0.5, max_abs_diff=1e-5),
)


def engine(folder: Path, role: str) -> EngineResult:
    path = folder / f"{role}.fp16.SM86.engine"
    path.write_bytes(b"plan")
    built = Engine(
        path, path, path, "tensorrt_rtx", "1.0", "fp16", "SM86", "0" * 64, 4, 0.1, {}, {}, ()
    )  # fmt: skip
    return EngineResult(role, "fp16", "SM86", built, None)  # type: ignore[arg-type]


def run(
    tmp_path: Path,
    *,
    compact: nn.Module | None = None,
    masked: nn.Module | None = None,
    images: Images = NO_IMAGES,
    engines: Any = (),
    **changes: Any,
) -> tuple[Checked, Any]:
    section = SECTION.model_copy(update=changes)
    graphs = {}
    for name in ("onnx", "simplified", "fp16"):
        (tmp_path / name).mkdir(exist_ok=True)
        graphs[name] = {role: write_onnx(tmp_path / name / f"{role}.onnx") for role in ("dense", "compact")}
    result = check(
        section,
        dense=Net(),
        compact=compact or Net(),
        graphs=graphs,  # type: ignore[arg-type]
        engines=engines,
        test=Split(),
        max_abs_diff=1e-7,
        device="cpu",
        out=tmp_path,
        progress=Silent(),
        task=task_of(),
        masked=masked,
        images=images,
    )
    return result, json.loads((tmp_path / "check.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checked, Any]:
    folder = tmp_path_factory.mktemp("check")
    missing = EngineResult("compact", "fp16", "SM89", None, "tensorrt_rtx is not installed")
    return run(folder, engines=(engine(folder, "dense"), engine(folder, "compact"), missing))


def test_accuracy_at_hops(whole: tuple[Checked, Any]) -> None:
    result, document = whole
    accuracy = document["models"]["dense"]["accuracy"]
    assert {accuracy[hop] for hop in ("torch", "onnx", "simplified", "fp16")} == {0.9}
    assert (result.accuracy_dense, result.accuracy_compact) == (0.9, 0.9)
    assert document["accuracy_difference"]["n"] == N
    assert document["accuracy_difference"]["difference_pp"] == 0
    assert read(result.path).accuracy_difference.n == N


def test_sizes_by_hand(whole: tuple[Checked, Any]) -> None:
    _, document = whole
    model = document["models"]["compact"]
    assert model["params"] == WEIGHT.size == 72
    assert model["macs"] == 72
    assert model["bytes"] == model["files"]["simplified"] > 72 * 4
    assert model["files"]["tensorrt_rtx.fp16.SM86"] == 4


def test_hops_follow_the_line(whole: tuple[Checked, Any]) -> None:
    _, document = whole
    hops = [typed(Hop, hop, Path("check.json")) for hop in document["hops"] if hop["model"] == "dense"]
    assert [(hop.source, hop.target) for hop in hops] == [
        ("torch", "onnx"), ("onnx", "simplified"), ("simplified", "fp16"), ("fp16", "tensorrt_rtx.fp16.SM86"),
    ]  # fmt: skip
    assert hops[0].max_abs is not None
    assert hops[0].max_abs < 1e-5
    assert hops[1].max_abs == 0.0
    assert (hops[0].top1_agreement, hops[0].accuracy_delta, hops[0].reason) == (1.0, 0.0, None)
    assert hops[3].max_abs is None
    assert hops[3].reason


def test_engines_that_do_not_run_here_are_null_with_the_reason(whole: tuple[Checked, Any]) -> None:
    _, document = whole
    files = [typed(EngineFile, entry, Path("check.json")) for entry in document["engines"]]
    assert [(file.model, file.measured_on) for file in files] == [("dense", None), ("compact", None), ("compact", None)]
    assert files[2].reason == "tensorrt_rtx is not installed"
    assert files[2].path is None
    assert files[0].path == "/".join(Path(files[0].path or "").parts[-2:])
    model = document["models"]["compact"]
    assert model["accuracy"]["tensorrt_rtx.fp16.SM86"] is None
    assert any(
        word in model["reasons"]["tensorrt_rtx.fp16.SM86"] for word in ("pycuda", "GPU", "installed", "accepted")
    )
    assert model["reasons"]["engine.fp16.SM89"] == "tensorrt_rtx is not installed"


def test_latency_of_every_precision_and_batch(whole: tuple[Checked, Any]) -> None:
    _, document = whole
    latency = document["latency"]
    assert {(backend, precision) for backend in latency for precision in latency[backend]} == {
        ("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("torch", "fp32"), ("tensorrt_rtx", "fp16"),
    }  # fmt: skip
    for batch, entry in latency["tensorrt_rtx"]["fp16"].items():
        assert batch in ("b1", "b4") and typed(LatencyEntry, entry, Path("check.json")).speedup is None
        assert entry["reason"] == document["models"]["dense"]["reasons"]["tensorrt_rtx.fp16.SM86"]
    gated = set()
    for backend in ("onnxruntime", "torch"):
        for precision, batches in latency[backend].items():
            assert set(batches) == {"b1", "b4"}
            for batch, entry in batches.items():
                gated |= {(backend, precision, batch)} if entry["protocol"]["gated"] else set()
                samples = [entry[role]["samples_ms"] for role in ("dense", "compact")]
                assert all(0 < len(taken) <= 2000 for taken in samples)
                told = typed(LatencyEntry, entry, Path("check.json"))
                assert told.dense is not None
                assert told.dense.best_ms <= told.dense.p50_ms
                assert entry["settings"]["dense"]["threads"] == 1
                assert entry["protocol"]["conditions"]["before"]
    assert gated == {("onnxruntime", "fp32", "b4")}


def test_end_to_end_takes_longer_and_layers_are_told(whole: tuple[Checked, Any]) -> None:
    _, document = whole
    entry = typed(LatencyEntry, document["latency"]["onnxruntime"]["fp32"]["b4"], Path("check.json"))
    assert entry.end_to_end and entry.dense
    assert entry.end_to_end.dense.best_ms > entry.dense.best_ms
    (why,) = [typed(Why, one, Path("check.json")) for one in document["why"]]
    assert why.macs_ratio == 1.0 and why.share == pytest.approx(why.speedup)
    assert sum(why.bound_pct.values()) > 50 and why.findings
    assert document["reference"] is None


def test_gates_and_verdict(whole: tuple[Checked, Any]) -> None:
    result, _ = whole
    verdict = read(result.path).verdict
    gates = {gate.name: gate for gate in verdict.gates}
    assert list(gates) == ["max_accuracy_drop", "accuracy_at_hops", "min_speedup", "max_abs_diff", "engines"]
    assert (gates["engines"].status, gates["engines"].value, gates["engines"].limit) == ("inconclusive", 2, 3)
    assert gates["max_accuracy_drop"].status == gates["max_abs_diff"].status == "pass"
    assert verdict.status == result.status == "inconclusive"
    assert result.path.name == "check.json"


def test_a_compact_network_that_is_worse_fails(tmp_path: Path) -> None:
    bad = int((Split().images[5:, 0, 0, 0] > 0).sum())
    assert bad >= 15
    result, document = run(tmp_path, compact=Wrong(), batch_sizes=(4,))
    gate = document["verdict"]["gates"][0]
    assert gate["status"] == "fail"
    assert gate["value"] == pytest.approx(100 * (0.9 - result.accuracy_compact))
    assert gate["value"] >= 20.0
    assert document["verdict"]["status"] == "fail"
    assert document["accuracy_difference"]["only_first"] >= document["accuracy_difference"]["only_second"] + 1


def test_a_graph_that_does_not_load_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_nothing(path: Path, *arguments: Any) -> Any:
        raise UserError(f"ONNX Runtime cannot load {path}", "a valid .onnx file", "export the network again")

    monkeypatch.setattr(measuring, "open_session", open_nothing)
    bench = measuring.Bench(SECTION, {}, {"onnx": {"dense": tmp_path}}, Split(), "cpu", task_of())
    for call in (lambda: run(tmp_path), lambda: bench.accuracy("dense", measuring.Form("onnx", "torch"))):
        with pytest.raises(UserError, match="cannot load"):
            call()
    assert not (tmp_path / "check.json").exists()


def test_engines_that_ran_here_are_those_that_are_timed(tmp_path: Path) -> None:
    """Of two targets the second ran; without results the first stands for both."""
    first = engine(tmp_path, "dense"), engine(tmp_path, "compact")
    second = replace(first[0], target="SM89"), replace(first[1], target="SM89")
    ran = Accuracy(1.0, 1, np.ones(1, bool), np.ones((1, 2)), np.zeros(1, np.int64))
    results: dict[Any, Any] = {
        role: {"tensorrt_rtx.fp16.SM86": "another GPU", "tensorrt_rtx.fp16.SM89": ran} for role in ("dense", "compact")
    }
    key = ("tensorrt_rtx", "fp16")
    pair = measuring.pairs_of({}, (*first, *second), results)[key]
    assert {role: hop.name for role, hop in pair.items()} == dict.fromkeys(results, "tensorrt_rtx.fp16.SM89")
    assert pair["compact"].engine is second[1] and pair["dense"].engine is second[0]
    nothing: dict[Any, Any] = {role: {} for role in results}
    assert measuring.pairs_of({}, (*first, *second), nothing)[key]["dense"].engine is first[0]
    assert key not in measuring.pairs_of({}, (first[0], second[1]), nothing)


def test_images_are_repeated_for_a_batch_larger_than_the_split(tmp_path: Path) -> None:
    _, document = run(tmp_path, gate_batch=2 * N, batch_sizes=(2 * N,))
    assert set(document["latency"]["onnxruntime"]["fp32"]) == {f"b{2 * N}"}
    assert np.isfinite(document["latency"]["onnxruntime"]["fp32"][f"b{2 * N}"]["dense"]["p50_ms"])


def test_shapes_come_from_the_split() -> None:
    bench = measuring.Bench(SECTION, {"dense": Net(), "compact": Net()}, {}, Split(), "cpu", task_of())
    assert bench.input_shape == SHAPE
    assert bench.gpu is None
