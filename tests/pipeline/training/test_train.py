"""The two training stages on the digits, with the network's real anatomy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import config
from pipeline.data import Dataset, load
from pipeline.data.arrays import ArraySplit
from pipeline.models import build
from pipeline.models.weights import load_weights
from pipeline.progress import Silent
from pipeline.results import Trained
from pipeline.training.census import load_census
from pipeline.training.loop import Loop, metric_of, told_of
from pipeline.training.train import Setting, train_dense, train_sparse, trained_network
from runtime.errors import UserError

MODEL = config.Model(args={"width": 4})
SMALL = {"epochs": 3, "batch_size": 200}
FIGURES = {"epoch", "loss", "accuracy", "lr", "seconds", "images_per_s", "macs", "params", "removals"}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(config.Data())


def task(out: Path, digits: Dataset, seed: int = 1, model: config.Model = MODEL, kept: Path | None = None) -> Setting:
    return Setting(model, digits, seed, 1, "cpu", out, Silent(), kept)


def demp(out: Path, digits: Dataset, seed: int = 1, **changes: object) -> Trained:
    section = config.sparse_of(**SMALL | changes)
    out.mkdir(exist_ok=True)
    return train_sparse(section, task(out, digits, seed))


def dense(out: Path, digits: Dataset, seed: int = 1, **changes: object) -> Trained:
    section = config.Training.model_validate(SMALL | changes)
    out.mkdir(exist_ok=True)
    return train_dense(section, task(out, digits, seed))


def rows(trained: Trained) -> Iterator[dict[str, object]]:
    for line in trained.history.read_text().splitlines():
        yield json.loads(line)


def test_dense_leaves_weights_and_history_that_agree(tmp_path: Path, digits: Dataset) -> None:
    trained = dense(tmp_path, digits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl", "weights.safetensors"]
    history = list(rows(trained))
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(row.keys() == FIGURES for row in history)
    assert history[-1]["accuracy"] == trained.accuracy
    model = build(MODEL, num_classes=10, input_shape=(1, 8, 8))
    load_weights(model, trained.weights)
    assert metric_of(model, digits.test) == trained.accuracy
    assert (trained.epochs, trained.census, trained.channels) == (3, None, 3 * 4 + 3 * 8 + 3 * 16)
    assert 0 < trained.seconds < 600


def test_demp_leaves_a_census_that_agrees_with_its_history(tmp_path: Path, digits: Dataset) -> None:
    trained = demp(tmp_path, digits, epochs=6, lambda_peak=0.6)
    assert trained.census is not None
    dead = load_census(trained.census)
    last = list(rows(trained))[-1]
    tables = {"dead_by_layer", "removed_by_layer", "channels_by_layer"}
    assert last.keys() == FIGURES | tables | {"lambda", "sigma", "dead", "channels", "silent"}
    widths = dict.fromkeys(("conv1", "layer1.0.conv1", "layer1.0.conv2"), 4)
    widths |= dict.fromkeys(("layer2.0.conv1", "layer2.0.conv2", "layer2.0.skip.0"), 8)
    widths |= dict.fromkeys(("layer3.0.conv1", "layer3.0.conv2", "layer3.0.skip.0"), 16)
    channels, by_layer = last["channels_by_layer"], last["dead_by_layer"]
    assert isinstance(channels, dict) and isinstance(by_layer, dict)
    assert channels.items() <= widths.items() and sum(channels.values()) == trained.channels
    assert channels.keys() == by_layer.keys() and sum(by_layer.values()) == trained.dead
    inner = {f"layer{k}.0.conv1": f"layer{k}_0_relu1" for k in (1, 2, 3)}  # read by nothing but their own ReLU
    network = trained_network(MODEL, digits, trained)
    for layer, output in inner.items():
        gone = widths[layer] - network.get_submodule(layer).get_parameter("weight").shape[0]
        assert by_layer[layer] == gone + int(dead[output].sum()), layer
    assert (last["dead"], last["channels"]) == (trained.dead, trained.channels)
    assert dead.keys() == {"relu", *(f"layer{k}_0_relu{j}" for k in (1, 2, 3) for j in (1, 2))}
    assert trained.dead > 0, "this penalty kills some channels of so small a network"


def test_both_start_from_the_same_weights_and_another_seed_from_others(tmp_path: Path, digits: Dataset) -> None:
    """With lr 0 and next to no noise nothing moves but batch statistics."""
    one = dense(tmp_path / "a", digits, lr=0.0, epochs=1)
    two = demp(tmp_path / "b", digits, lr=0.0, epochs=1, sigma_peak=0.0)
    other = dense(tmp_path / "c", digits, lr=0.0, epochs=1, seed=2)
    assert one.weights.read_bytes() == two.weights.read_bytes()
    assert one.weights.read_bytes() != other.weights.read_bytes()


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path, digits: Dataset) -> None:
    torch.manual_seed(99)
    here = demp(tmp_path / "here", digits, augment="shift", lambda_peak=0.3)
    (tmp_path / "there").mkdir()
    code = f"""
from pathlib import Path
import torch
from safetensors.torch import load_file
from pipeline import config
from pipeline.data import load
from pipeline.progress import Silent
from pipeline.training.train import Setting, train_sparse
torch.manual_seed(7); torch.rand(5)
section = config.sparse_of(**{SMALL | {"augment": "shift", "lambda_peak": 0.3}!r})
out = Path({str(tmp_path / "there")!r})
train_sparse(section, Setting(config.Model(args={{"width": 4}}), load(config.Data()), 1, 1, "cpu", out, Silent()))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    for name in ("weights.safetensors", "census.safetensors"):
        one, two = ((tmp_path / part / name).read_bytes() for part in ("here", "there"))
        assert hashlib.sha256(one).hexdigest() == hashlib.sha256(two).hexdigest()
    assert here.dead == list(rows(here))[-1]["dead"]


def users_network(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, layers: str) -> config.Model:
    text = f"from torch import nn\n\ndef build(num_classes):\n    return nn.Sequential({layers})\n"
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    return config.Model(name=f"{name}:build")


def test_dropout_draws_from_the_seed(tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = "nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, num_classes)"
    model = users_network(tmp_path, monkeypatch, "demport_test_dropout", layers)

    def run(name: str, seed: int) -> bytes:
        (tmp_path / name).mkdir()
        section = config.Training(epochs=2)
        return train_dense(section, task(tmp_path / name, digits, seed, model)).weights.read_bytes()

    first = run("a", 1)
    torch.rand(3)
    assert run("b", 1) == first
    assert run("c", 2) != first


def test_training_stops_the_progress_also_after_an_error(tmp_path: Path, digits: Dataset) -> None:
    class Watching(Silent):
        calls: tuple[str, ...] = ()

        def start(self, stage: str, total: float) -> None:
            self.calls += (f"start {stage} {total}",)

        def stop(self) -> None:
            self.calls += ("stop",)

    progress = Watching()
    section = config.Training(epochs=2, batch_size=200, lr=3e38, schedule="constant")
    with pytest.raises(UserError, match="the loss is"):
        train_dense(section, dataclasses.replace(task(tmp_path, digits), progress=progress))
    assert progress.calls == ("start dense 14", "stop")
    assert not (tmp_path / "weights.safetensors").exists()


def test_running_out_of_memory_says_what_to_lower(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    for kind, name in ((Loop, "run"), (ArraySplit, "to")):  # and before the first step, where the images go there whole
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, full)
            with pytest.raises(UserError, match="ran out of memory while training") as caught:
                demp(tmp_path, digits)
        assert caught.value.remedy == "lower sparse.batch_size"
        assert "\n" not in str(caught.value)


def test_demp_needs_batch_norm(tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = "nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes)"
    model = users_network(tmp_path, monkeypatch, "demport_test_plain", layers)
    with pytest.raises(UserError, match="no batch norm"):
        train_sparse(config.sparse_of(epochs=1), task(tmp_path, digits, model=model))
    section = config.Training(epochs=1, batch_size=200)
    trained = train_dense(section, task(tmp_path, digits, model=model))
    assert trained.channels == 4


def test_demp_needs_activations_it_can_watch(tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = "nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, num_classes)"
    linear = users_network(tmp_path, monkeypatch, "demport_test_linear", layers)
    (tmp_path / "demport_test_branch.py").write_text(
        "from torch import nn\n"
        "class Branch(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x if x.sum() > 0 else -x)\n"
        f"def build(num_classes):\n    return Branch({layers})\n"
    )
    branch = config.Model(name="demport_test_branch:build")
    for model, message in ((linear, "no activation that could be watched"), (branch, "Branch cannot be traced")):
        with pytest.raises(UserError, match=message) as caught:
            train_sparse(config.sparse_of(epochs=1), task(tmp_path, digits, model=model))
        assert "torch.fx can trace" in caught.value.expected


@pytest.mark.parametrize(("told", "wanted"), [(None, True), (True, True), (False, False)])
def test_steps_are_deterministic_as_the_section_says(
    told: bool | None, wanted: bool, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    step = Loop._step

    def noted(loop: Loop, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return step(loop, x, y)

    monkeypatch.setattr(Loop, "_step", noted)
    dense(tmp_path, digits, epochs=1, batch_size=len(digits.train), deterministic=told)
    assert seen == [wanted]


class Shown(Silent):
    """The texts beside the bar."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def update(self, done: float, text: str = "") -> None:
        self.texts.append(text)


def test_the_progress_tells_what_the_history_holds(tmp_path: Path, digits: Dataset) -> None:
    shown = Shown()
    section = config.sparse_of(**SMALL | {"lambda_peak": 0.6})
    trained = train_sparse(section, dataclasses.replace(task(tmp_path, digits), progress=shown))
    *_, before, last = rows(trained)
    for row in (before, last):
        figures = f"epoch {row['epoch']}/3  accuracy {100 * float(str(row['accuracy'])):.2f} %  "
        figures += f"dead {row['dead']}/{row['channels']}  lambda {row['lambda']:.2g}  sigma {row['sigma']:.2g}  "
        figures += f"{float(str(row['macs'])) / 1e6:,.5g} M MACs  loss "
        assert any(text.startswith(figures) and text.endswith("images/s") for text in shown.texts), figures


def test_a_method_need_not_have_every_figure_of_the_progress() -> None:
    row = {"epoch": 2, "accuracy": 0.5, "macs": 1_250_000}
    assert told_of(row, 3) == "epoch 2/3  accuracy 50.00 %  1.25 M MACs"
    some = told_of(row | {"dead": 1, "channels": 8, "sigma": 5e-5}, 3)
    assert some == "epoch 2/3  accuracy 50.00 %  dead 1/8  sigma 5e-05  1.25 M MACs"


def test_batch_norms_take_up_the_share_of_a_batch_that_the_section_says(tmp_path: Path, digits: Dataset) -> None:
    """One step from running means of 0 leaves that share of the batch's means; null leaves the network's own 0.1."""
    means = {}
    for share in (0.5, 0.25, 0.1, None):
        trained = dense(tmp_path / str(share), digits, epochs=1, batch_size=len(digits.train), norm_momentum=share)
        means[share] = load_file(trained.weights)["bn1.running_mean"]
    assert means[0.5].abs().min() > 0
    torch.testing.assert_close(means[0.5], 2 * means[0.25])
    torch.testing.assert_close(means[0.5], 5 * means[0.1])
    assert torch.equal(means[0.1], means[None])
