"""Stage 55 on two small networks: which graphs are written, on which images, and which one is named best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from export.precision.lower import CastGraph, Lowering
from export.precision.pairs import Values
from pipeline import config
from pipeline.check.forms import Bench, Form
from pipeline.config.task import task_of
from pipeline.data import Dataset
from pipeline.data.arrays import dataset
from pipeline.data.raw import Raw
from pipeline.progress import Silent
from pipeline.results import CastGraphs, Role, SimplifiedGraphs
from pipeline.stages.onnx import export_graphs, samples_of, simplify_graphs
from pipeline.stages.precision import images_of, lower_graphs, serve_graphs
from pipeline.tasks import Task
from runtime.backends import openvino
from runtime.errors import UserError

SCORE = task_of().judge()


def images(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """8x8 pictures of one bright row: the class is its index."""
    drawn = np.random.default_rng(seed)
    labels = np.sort(drawn.integers(0, 4, count))
    pixels = drawn.integers(0, 60, (count, 8, 8)).astype(np.uint8)
    pixels[np.arange(count), labels] += 150
    return pixels, labels


@pytest.fixture(scope="module")
def data() -> Dataset:
    (x, y), (u, v) = images(300, 0), images(120, 1)
    raw = Raw("test", x, y, u, v, ("0", "1", "2", "3"))
    return dataset(raw, None, "mark")


def network(width: int, data: Dataset) -> nn.Module:
    """Trained in a few full-batch steps: over 95 % of the test split."""
    torch.manual_seed(width)
    layers = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 4))
    optimizer = torch.optim.Adam(layers.parameters(), lr=0.02)
    ((x, y),) = data.train.batches(len(data.train))
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(layers(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return layers.eval()


@pytest.fixture(scope="module")
def graphs(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> SimplifiedGraphs:
    exported, simplified = tmp_path_factory.mktemp("40-onnx"), tmp_path_factory.mktemp("50-simplify")
    samples = samples_of(data.test)
    pair = export_graphs(config.Onnx(), network(8, data), network(4, data), samples, {}, "0" * 64, exported)
    return simplify_graphs(config.Simplify(), pair, samples, simplified)


def lowered(given: SimplifiedGraphs, data: Dataset, out: Path, **section: object) -> CastGraphs:
    return lower_graphs(config.PrecisionSection.model_validate(section), given, data, "cpu", out, Silent(), SCORE)


def test_none_asked_for_writes_nothing(graphs: SimplifiedGraphs, data: Dataset, tmp_path: Path) -> None:
    none = lowered(graphs, data, tmp_path, graphs=())
    assert none == CastGraphs({}, {}, None)
    assert not list(tmp_path.iterdir())


def test_each_precision_of_each_network(graphs: SimplifiedGraphs, data: Dataset, tmp_path: Path) -> None:
    made = lowered(graphs, data, tmp_path, graphs=("int8", "bf16"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compact.bf16.onnx", "compact.int8.onnx", "dense.bf16.onnx", "dense.int8.onnx"
    ]  # fmt: skip
    assert made.best is None
    for graph in (*made.dense.values(), *made.compact.values()):
        assert graph.images == len(data.test) == 120
        assert graph.accuracy_fp32 > 0.9 and graph.holds and graph.drop_pp <= 1.0
        assert (graph.layers, graph.kept) == (2, ())
    assert made.dense["int8"].bytes > made.compact["int8"].bytes


def test_compact_alone_is_trained_in_int8(graphs: SimplifiedGraphs, data: Dataset, tmp_path: Path) -> None:
    given: list[str] = []

    def tune(full: onnx.ModelProto, low: onnx.ModelProto) -> Values:
        given.append(next(p.value for p in full.metadata_props if p.key == "demport.role"))
        weights = {t.name: 0 * onnx.numpy_helper.to_array(t) for t in full.graph.initializer if "weight" in t.name}
        return Values(weights, {}, epochs=3, seconds=2.0)

    section = config.PrecisionSection(graphs=("int8", "fp16"), qat=config.Qat(epochs=3))
    made = lower_graphs(section, graphs, data, "cpu", tmp_path, Silent(), SCORE, tune=tune)
    tuning = made.compact["int8"].tuning
    assert given == ["compact"] and tuning is not None and (tuning.epochs, tuning.seconds) == (3, 2.0)
    assert tuning.accuracy_before > 0.9 and made.compact["int8"].accuracy < 0.5  # the weights are all zero
    assert not made.compact["int8"].holds
    assert [graph.tuning for graph in (made.dense["int8"], made.dense["fp16"], made.compact["fp16"])] == [None] * 3


def test_best_names_one_of_those_that_hold(graphs: SimplifiedGraphs, data: Dataset, tmp_path: Path) -> None:
    made = lowered(graphs, data, tmp_path, graphs=("best",), best_batch=4, best_threads=1)
    assert made.best is not None
    assert set(made.compact) == {"fp16", "bf16", "int8"}
    told = {item.precision: item for item in made.best.candidates}
    assert set(told) == {"fp32", "fp16", "bf16", "int8"}
    assert "Conv" in str(told["bf16"].reason) and told["bf16"].p50_ms is None
    assert (made.best.batch, made.best.threads, made.best.device) == (4, 1, "cpu")
    chosen = told[made.best.precision]
    assert chosen.p50_ms is not None and (chosen.ci95 is None or chosen.ci95[0] > 1)


def test_best_for_openvino_times_what_this_cpu_computes_in(
    graphs: SimplifiedGraphs, data: Dataset, tmp_path: Path
) -> None:
    """ONNX Runtime has no bf16 convolution; OpenVINO has one where the CPU has, and no fp16 where it has not."""
    pytest.importorskip("openvino")
    section = config.PrecisionSection(graphs=("fp16", "bf16", "best"), best_batch=4, best_threads=1)
    best = lower_graphs(section, graphs, data, "cpu", tmp_path, Silent(), SCORE, "openvino").best
    assert best is not None and (best.backend, best.device) == ("openvino", "cpu")
    timed = {item.precision for item in best.candidates if item.p50_ms is not None}
    assert timed == {"fp32", "fp16", "bf16"} & set(openvino.precisions())
    assert all("this CPU computes in" in str(item.reason) for item in best.candidates if item.p50_ms is None)


def test_calibration_takes_training_images_and_judgement_test_images(data: Dataset) -> None:
    section = config.PrecisionSection.model_validate({"calibration": {"images": 70}, "evaluation_images": 50})
    given = images_of(section, data, SCORE)
    calibration = np.concatenate(list(given.calibration()))
    ((train, _),), ((test, labels),) = data.train.batches(300), data.test.batches(120)
    assert (
        calibration.shape == (70, 1, 8, 8) and np.isin(calibration.sum((1, 2, 3)), train.numpy().sum((1, 2, 3))).all()
    )
    x, y = (np.concatenate(part) for part in zip(*given.evaluation(), strict=True))
    assert x.shape == (50, 1, 8, 8) and len(set(y.tolist())) == 4  # the split is sorted by class
    rows = [int(np.flatnonzero((test.numpy() == row).all((1, 2, 3)))[0]) for row in x]
    assert len(set(rows)) == 50
    np.testing.assert_array_equal(labels.numpy()[rows], y)
    again = np.concatenate([images for images, _ in given.evaluation()])
    np.testing.assert_array_equal(again, x)


def test_a_split_smaller_than_asked_for_is_taken_whole(data: Dataset) -> None:
    given = images_of(config.PrecisionSection(), data, SCORE)
    assert sum(map(len, given.calibration())) == 256
    assert sum(len(x) for x, _ in given.evaluation()) == 120


def test_a_graph_that_does_not_hold_is_said_and_is_never_best(
    graphs: SimplifiedGraphs, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda self, text: notes.append(text))
    write = Lowering.write

    def worse(self: Lowering, path: Path, precision: str, rules: object) -> CastGraph:
        made = write(self, path, precision, rules)  # type: ignore[arg-type]
        return CastGraph(**{**vars(made), "drop_pp": 7.5, "holds": False})

    monkeypatch.setattr(Lowering, "write", worse)
    made = lowered(graphs, data, tmp_path, graphs=("int8", "best"), best_batch=2)
    assert notes[:2] == [f"{role}.int8: loses 7.50 points, 1 allowed" for role in ("dense", "compact")]
    assert made.best is not None and made.best.precision == "fp32"
    told = {item.precision: item.reason for item in made.best.candidates}
    assert told == {"fp32": None, "int8": "loses 7.50 points, 1 allowed"}


def test_each_graph_once_more_for_pixels(graphs: SimplifiedGraphs, data: Dataset, tmp_path: Path) -> None:
    lower = lowered(graphs, data, tmp_path, graphs=("bf16",))
    assert serve_graphs(config.Serving(), graphs, lower, data, tmp_path) is lower
    section = config.Serving(enabled=True, height=16, width=12, output="top_k", k=2)
    made = serve_graphs(section, graphs, lower, data, tmp_path)
    assert sorted(made.served) == ["compact.bf16", "compact.fp32", "dense.bf16", "dense.fp32"]
    session = onnxruntime.InferenceSession(str(tmp_path / "compact.fp32.pixels.onnx"))
    pixels, labels = images(40, 7)
    large = pixels.repeat(2, axis=1)[:, :, :, None].repeat(2, axis=2)[:, :, 2:14]
    scores, classes = session.run(["scores", "classes"], {"images": np.ascontiguousarray(large)})
    assert scores.shape == classes.shape == (40, 2) and classes.dtype == np.int64
    assert np.mean(classes[:, 0] == labels) > 0.8


def test_keep_fp32_is_auto_or_a_list() -> None:
    def section(value: object) -> config.PrecisionSection:
        return config.PrecisionSection.model_validate({"keep_fp32": value})

    assert (section("auto").fp32_layers, section(("conv1",)).fp32_layers, section(()).fp32_layers) == (
        "auto",
        ("conv1",),
        (),
    )
    with pytest.raises(ValidationError, match=r"keep_fp32 is some; expected auto or a list of layers; write \[some\]"):
        section("some")
    with pytest.raises(ValidationError, match="keep_fp32 names layers, and no lower precision is written"):
        config.PrecisionSection.model_validate({"graphs": (), "keep_fp32": ("conv1",)})


def test_the_check_says_why_bf16_does_not_run(graphs: SimplifiedGraphs, data: Dataset, tmp_path: Path) -> None:
    """ONNX Runtime has no such convolution on the CPU; any other graph that does not load is an error."""
    made = lowered(graphs, data, tmp_path, graphs=("bf16",))
    files: dict[str, dict[Role, Path]] = {
        name: {"dense": made.dense["bf16"].path, "compact": made.compact["bf16"].path} for name in ("bf16", "fp16")
    }
    bench = Bench(config.Check(batch_sizes=(1,), gate_batch=1), {}, files, data.test, "cpu", task_of())
    told = bench.accuracy("compact", Form("bf16", "simplified"))
    assert isinstance(told, str) and "Conv(22)" in told
    with pytest.raises(UserError, match="Conv"):
        bench.accuracy("compact", Form("fp16", "simplified"))


def test_int8_in_the_form_for_onnx_runtime(graphs: SimplifiedGraphs, data: Dataset, tmp_path: Path) -> None:
    both = {
        name: lowered(graphs, data, tmp_path / name, graphs=("int8",), int8_for=name)
        for name in ("tensorrt", "onnxruntime")
    }
    kinds = {}
    for name, made in both.items():
        model = onnx.load(str(made.compact["int8"].path))
        kinds[name] = {t.data_type for t in model.graph.initializer if t.name.endswith("_zero_point")}
        assert made.compact["int8"].holds
        assert made.compact["int8"].measured_by.endswith("own form") == (name == "onnxruntime")
    int8, uint8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8
    assert int8 in kinds["tensorrt"] and uint8 not in kinds["tensorrt"]
    assert uint8 in kinds["onnxruntime"]


def test_no_engine_comes_from_the_form_for_onnx_runtime() -> None:
    asked = {"precision": {"graphs": ("int8",), "int8_for": "onnxruntime"}}
    with pytest.raises(ValidationError, match=r"int8 graphs are for onnxruntime, and engine\.precisions asks"):
        config.Config.model_validate({**asked, "engine": {"precisions": ("fp32", "int8")}})
    assert config.Config.model_validate({**asked, "engine": {"precisions": ("fp32",)}}).precision.written == ("int8",)
    assert config.Config.model_validate({**asked, "engine": {"flavour": "none", "precisions": ("int8",)}})


def test_answers_are_distilled_where_the_task_says_how_far_two_are_apart() -> None:
    tree = {"precision": {"graphs": ("fp16", "int8"), "qat": {"distill": {"weight": 0.5}}}}
    own = f"{__name__}:no_distance"
    with pytest.raises(ValidationError, match=r"`?answers are distilled, and not of the task .*leave it out, or null"):
        config.config_of("demp", own).model_validate({**tree, "task": {"name": own}})
    qat = config.Config.model_validate(tree).precision.qat
    assert qat is not None and isinstance(qat.distill, config.Distill) and qat.distill.temperature == 4.0


def no_distance(options: object) -> Task:
    return Task("value", lambda outputs, targets: outputs.sum(), lambda outputs, targets: outputs[:, 0])
