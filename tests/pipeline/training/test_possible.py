"""What a DemP training needs is asked for before the dense training, whose end may be hours away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import config
from pipeline.config import Config
from pipeline.data import Dataset, load
from pipeline.progress import Silent
from pipeline.stages import Run
from pipeline.stages.train import dense
from pipeline.training.loop import Loop
from pipeline.training.possible import demand_possible
from pipeline.training.train import Setting
from runtime.errors import UserError
from runtime.gpu import first_gpu

MODEL = config.Model(args={"width": 4})
MODULE = (
    "from torch import nn\n"
    "def without_norm(num_classes):\n"
    "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))\n"
    "def without_relu(num_classes):\n"
    "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, num_classes))\n"
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(config.Data())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demport_test_possible.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def possible(digits: Dataset, model: config.Model = MODEL, **keys: Any) -> None:
    setting = Setting(model, digits, 1, 1, "cpu", Path(), Silent())
    demand_possible(config.sparse_of(**keys), setting)


def refused(words: str, digits: Dataset, model: config.Model = MODEL, **demp: Any) -> None:
    with pytest.raises(UserError, match=words) as caught:
        possible(digits, model, **demp)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own")
def test_networks_that_nothing_can_die_in(digits: Dataset) -> None:
    for name, words in (("without_norm", "no batch norm with a trained"), ("without_relu", "no activation that could")):
        refused(words, digits, config.Model(name=f"demport_test_possible:{name}"))


def test_a_missing_extra(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    possible(digits)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    possible(digits)
    refused("log: tensorboard is asked for and cannot be imported", digits, log=("tensorboard",))


def test_batches_that_processes_cannot_share(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    possible(digits, batch_size=100)
    refused("batches of 99 images on 2 processes", digits, batch_size=99)


@pytest.mark.skipif(first_gpu() is not None, reason="there is a GPU")
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_a_latency_that_nothing_here_can_measure(backend: str, digits: Dataset) -> None:
    target = {"latency_ms": 1.0, "backend": backend}
    refused(rf"sparse\.target\.backend {backend}: .*; set sparse\.target\.backend: onnxruntime", digits, target=target)
    possible(digits, target={"latency_ms": 1.0})


@pytest.mark.usefixtures("own")
def test_the_dense_training_begins_where_demp_could_or_is_not_asked_for(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Loop] = []
    loop_run = Loop.run

    def noted(loop: Loop) -> float:
        made.append(loop)
        return loop_run(loop)

    monkeypatch.setattr(Loop, "run", noted)
    section = config.Dense(epochs=1, batch_size=500)
    settings = Config(model=config.Model(name="demport_test_possible:without_norm"), dense=section)
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    with pytest.raises(UserError, match="no batch norm"):
        dense(Run(settings, lambda: digits, "cpu", Silent(), "20-sparse"), out, kept)
    assert made == []
    trained = dense(Run(settings, lambda: digits, "cpu", Silent(), "10-dense"), out, kept)
    assert len(made) == 1 and trained.weights.is_file()
