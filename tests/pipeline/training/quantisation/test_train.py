"""A training in int8 of a network that calibration alone breaks: what it wins back, and that it goes on when killed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.precision.int8 import Calibration, quantise, ranges_of
from export.precision.lower import CastGraph, Images, Lowering, Rules
from export.precision.pairs import Values
from pipeline import config
from pipeline.data import Dataset
from pipeline.data.arrays import dataset
from pipeline.data.raw import Raw
from pipeline.progress import Silent
from pipeline.training.loop import Loop
from pipeline.training.quantisation.train import HISTORY, demand_finite, train_int8
from pipeline.training.train import Setting
from runtime.errors import UserError
from runtime.measure.judged import Judge
from tests.export.graphs import Array, images, residual_net
from tests.export.lowered import right, run

QAT = config.Qat(epochs=3, batch_size=64, lr=0.01)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of eight channels is 300 times as loud as the others, which share its scale."""
    return residual_net(tmp_path_factory.mktemp("net") / "compact.onnx", loud=300.0)


@pytest.fixture(scope="module")
def data(source: Path) -> Dataset:
    """Noise, labelled as the fp32 graph does."""
    x = images(1280)
    y = run(source, x).argmax(1).astype(np.int64)
    raw = Raw("noise", x[:1024], y[:1024], x[1024:], y[1024:], tuple("abcde"))
    return dataset(raw, config.Data(mean=(0.0,) * 3, std=(1.0,) * 3, channels_first=True), "noise")


def setting(data: Dataset, out: Path, checkpoints: Path | None = None) -> Setting:
    return Setting(config.Model(), data, 0, 1, "cpu", out, Silent(), checkpoints)


def graphs(source: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    full = onnx.load(str(source))
    return full, quantise(
        full, ranges_of(source, [images(64)], Calibration("minmax")), (), source, Calibration("minmax")
    )


def lowered(source: Path, data: Dataset, path: Path, qat: config.Qat | None, keep: tuple[str, ...] | None) -> CastGraph:
    def evaluation() -> list[tuple[Array, Array]]:
        return [(x.numpy(), y.numpy()) for x, y in data.test.batches(256)]

    calibration = images(64)
    judged = Images(calibration[:4], lambda: [calibration], evaluation, Judge(right))

    def tune(full: onnx.ModelProto, low: onnx.ModelProto) -> Values:
        assert qat is not None
        return train_int8(qat, full, low, source, setting(data, path.parent))

    rules = Rules(100.0 if keep is None else 4.0, "auto" if keep is None else keep, Calibration("minmax"))
    return Lowering(source, judged).write(path, "int8", rules if qat is None else dataclasses.replace(rules, tune=tune))


def structure(path: Path) -> list[str]:
    model = onnx.load(str(path))
    nodes = [node.SerializeToString(deterministic=True).hex() for node in model.graph.node]
    return nodes + [f"{t.name} {t.data_type} {list(t.dims)}" for t in model.graph.initializer]


def test_it_wins_back_what_calibration_lost_in_the_same_graph(source: Path, data: Dataset, tmp_path: Path) -> None:
    plain = lowered(source, data, tmp_path / "plain.onnx", None, None)
    trained = lowered(source, data, tmp_path / "trained.onnx", QAT, None)
    assert structure(tmp_path / "trained.onnx") == structure(tmp_path / "plain.onnx")
    assert (trained.layers, trained.conversions, trained.kept) == (plain.layers, plain.conversions, ())
    assert plain.tuning is None and trained.tuning is not None
    assert trained.tuning.accuracy_before == plain.accuracy < 0.9 * plain.accuracy_fp32
    assert trained.accuracy > plain.accuracy + 0.05  # 13 of the 256 images
    assert trained.tuning.epochs == 3 and len((tmp_path / HISTORY).read_text().splitlines()) == 3


def test_layers_that_stay_in_fp32_have_no_pair_and_the_trained_weights(
    source: Path, data: Dataset, tmp_path: Path
) -> None:
    made = lowered(source, data, tmp_path / "low.onnx", QAT, ("layer3",))
    assert [(one.layer, one.reason) for one in made.kept] == [("conv3", "precision.keep_fp32")]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(tmp_path / "low.onnx")).graph.initializer}
    before = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(source)).graph.initializer}
    assert weights["layer3.weight"].dtype == np.float32 and "layer3.weight_quantized" not in weights
    assert 1e-4 < np.abs(weights["layer3.weight"] - before["layer3.weight"]).max() < 0.5


def test_a_killed_training_goes_on_and_ends_with_the_same_bits(
    source: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = QAT.model_copy(update={"checkpoint_s": 0.0, "epochs": 2})
    full, low = graphs(source)
    whole = train_int8(section, full, low, source, setting(data, tmp_path))
    step, steps = Loop._step, list[int]()

    def killed(self: Loop, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        steps.append(self.step)
        if len(steps) == 20:
            raise KeyboardInterrupt
        return step(self, x, y)

    monkeypatch.setattr(Loop, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_int8(section, full, low, source, setting(data, tmp_path, tmp_path / "checkpoints"))
    again = train_int8(section, full, low, source, setting(data, tmp_path, tmp_path / "checkpoints"))
    assert steps[19:21] == [19, 16]  # of the 32 steps; epochs of 16, each with a checkpoint at its end
    for one, other in ((whole.constants, again.constants), (whole.scales, again.scales)):
        assert one.keys() == other.keys() and len(one) > 4
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_targets_alone_where_two_answers_have_no_distance() -> None:
    taught = QAT.teaching(True)
    assert taught is not None and (taught.weight, taught.temperature) == (1.0, 4.0)
    assert QAT.teaching(False) is None and QAT.model_copy(update={"distill": None}).teaching(True) is None
    own = config.Distill(weight=0.25)
    assert QAT.model_copy(update={"distill": own}).teaching(False) is own


def test_a_training_that_diverges_is_one_line(source: Path, data: Dataset, tmp_path: Path) -> None:
    wild = config.Qat(epochs=1, batch_size=64, lr=1e6, optimizer="sgd", schedule="constant")
    with pytest.raises(UserError, match=r"the loss is nan in epoch 1, step \d+; a finite loss; lower lr"):
        train_int8(wild, *graphs(source), source, setting(data, tmp_path))
    with pytest.raises(UserError, match=r"ended with s not finite; finite weights; lower precision\.qat\.lr"):
        demand_finite(Values({"w": np.zeros(2)}, {"s": np.array(np.inf)}))  # after the last step
