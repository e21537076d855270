"""The comparison of methods: every case once, networks of the size asked for, the same number of steps for all."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from benchmarks import real_data
from benchmarks.methods import campaign as methods
from benchmarks.methods import contenders, peers
from benchmarks.methods.contenders import Recipe
from benchmarks.methods.final_latency import graph_name
from benchmarks.results import Point
from benchmarks.training import first
from pipeline import config
from pipeline.data import Dataset, load
from pipeline.models import build
from pipeline.training.optimizer import optimizer_for
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_USAGE, UserError
from runtime.macs import macs


@pytest.fixture(scope="module")
def few() -> Dataset:
    data = load(config.Data())
    return dataclasses.replace(data, train=first(data.train, 512))


def test_each_case_once_and_every_seed_of_a_share_before_the_next_share() -> None:
    listed = contenders.cases([0, 1, 2])
    assert len(set(listed)) == len(listed)
    at = {share: [i for i, case in enumerate(listed) if case[1] == share] for share in (1.0, 0.2, 0.35)}
    assert [listed[i][2] for i in at[1.0]] == [0, 1, 2]
    assert max(at[1.0] + at[0.2]) < min(at[0.35]) and max(at[0.35]) == len(listed) - 1
    assert {"dense", "narrow", "demp plain", "demp macs", "steered macs", "slimming", "group norm"} <= {
        case[0] for case in listed
    }


def test_shares_left_out_are_not_trained_and_sets_do_not_share_a_folder() -> None:
    settings = methods.arguments_of(["--out", "a.json", "--set", "fashion_mnist", "--shares", "0.2"])
    listed = settings.cases
    assert {amount for method, amount, _ in listed if not method.startswith("demp")} == {1.0, 0.2}
    assert len(listed) == 3 * (1 + len(contenders.SHARES[0.2]) + sum(map(len, contenders.STRENGTHS.values())))
    points = [{"seed": seed, "amount": amount} for _, amount, seed in listed]
    told = methods.document(settings, points, 0.0)["command"]
    assert told.endswith("--set fashion_mnist --side 16 --epochs 12 --seeds 0 1 2 --shares 0.2")
    assert settings.work != methods.arguments_of(["--out", "b.json"]).work
    more = [{"seed": 0, "amount": share} for share in contenders.SHARES]  # what a run finds in the file counts too
    assert "--shares" not in methods.document(settings, [*points, *more], 0.0)["command"]


def test_what_was_asked_is_said_in_words() -> None:
    cases = ("dense", 1.0, 0), ("narrow", 0.35, 1), ("demp macs", 0.003, 2)
    assert [contenders.asked(case) for case in cases] == ["", "35 % of the MACs", "lambda 0.003"]


@pytest.mark.parametrize("asked", [0.02, 0.2, 0.35, 0.97])
@pytest.mark.parametrize("model", ["demo:resnet", "cifar:resnet18"])
def test_the_narrow_network_is_the_nearest_in_macs(model: str, asked: float, few: Dataset) -> None:
    recipe = Recipe(model, width=16)

    def share(width: int) -> float:
        one, whole = (build(recipe.model_of(w), num_classes=10, input_shape=(1, 8, 8)) for w in (width, 16))
        return macs(one, (1, 8, 8)) / macs(whole, (1, 8, 8))

    nearest = min(range(2, 16), key=lambda width: abs(share(width) - asked))
    assert recipe.narrow_width(asked, few) == nearest


@pytest.fixture
def settings(few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> methods.Campaign:
    monkeypatch.setattr(methods, "data_of", lambda settings: few)
    return methods.Campaign(tmp_path / "out.json", tmp_path, tmp_path, "digits", 8, (0,), 1, recipe=Recipe(epochs=4))


@pytest.mark.parametrize("method", ["narrow", "steered macs", "slimming"])
def test_a_run_has_the_share_it_was_asked_for(method: str, settings: methods.Campaign) -> None:
    if method == "slimming" and importlib.util.find_spec("torch_pruning") is None:
        pytest.skip("torch-pruning is not installed")
    point = methods.trained((method, 0.35, 0), settings)
    allowed = {"narrow": 0.1, "steered macs": 0.03, "slimming": 0.03}[method]
    assert point["macs_pct"] == pytest.approx(35, rel=allowed) and 0 < point["accuracy_pct"] <= 100
    graph = onnx.load(settings.work / graph_name(point))
    assert sum(math.prod(t.dims) for t in graph.graph.initializer if t.data_type == 1) <= 1.2 * point["params"]


@pytest.mark.parametrize(("method", "align"), [("steered macs", 1), ("steered macs aligned", 8), ("demp plain", 1)])
def test_only_aligned_runs_keep_multiples(
    method: str, align: int, few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[config.Sparse, int]] = []
    monkeypatch.setattr(contenders, "train_sparse", lambda section, task, align: told.append((section, align)))
    monkeypatch.setattr(contenders, "trained_network", lambda *_: None)
    contenders.trained_by((method, 0.2, 0), Recipe(), few, 1)
    ((section, asked),) = told
    assert asked == align and section.cost == method.split()[1]
    assert (section.target.macs if section.target else section.lambda_peak) == 0.2


def test_the_whole_command_goes_on_where_it_was_and_times_at_the_end(
    settings: methods.Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[contenders.Case] = []

    def trained(case: contenders.Case, settings: methods.Campaign) -> Point:
        made.append(case)
        return point_of(case, settings)

    point_of = methods.trained
    monkeypatch.setattr(methods, "trained", trained)
    monkeypatch.setattr(methods, "ProcessPoolExecutor", lambda *_: contextlib.nullcontext(Inline()))
    monkeypatch.setattr(methods, "arguments_of", lambda _: settings)
    settings = dataclasses.replace(settings, timed_s=0.5)
    monkeypatch.setattr(contenders, "cases", lambda seeds, shares: [("dense", 1.0, 0), ("narrow", 0.35, 0)])
    monkeypatch.setattr(methods, "arguments_of", lambda _: dataclasses.replace(settings, limit_s=0.0))
    assert methods.main([]) == EXIT_INCONCLUSIVE and made == []
    monkeypatch.setattr(methods, "arguments_of", lambda _: settings)
    assert methods.main([]) == EXIT_PASS
    seconds = json.loads(settings.out.read_text())["seconds"]
    assert methods.main([]) == EXIT_PASS
    trained_s = sum(p["training_s"] for p in json.loads(settings.out.read_text())["points"])
    assert seconds > trained_s
    assert made == [("dense", 1.0, 0), ("narrow", 0.35, 0)]
    dense, narrow = json.loads(settings.out.read_text())["points"]
    assert dense["macs_pct"] == 100.0 and narrow["macs"] < dense["macs"]
    for point in (dense, narrow):
        assert 0 < point["speedup_low"] <= point["speedup"] <= point["speedup_high"]
    assert 0.5 < dense["speedup"] < 2
    monkeypatch.setattr(methods, "arguments_of", lambda _: dataclasses.replace(settings, retime=True))
    assert methods.main([]) == EXIT_PASS
    assert [p["speedup"] for p in json.loads(settings.out.read_text())["points"]] != [
        dense["speedup"],
        narrow["speedup"],
    ]
    again = json.loads(settings.out.read_text())
    assert again["command"].endswith("--retime") and again["seconds"] > seconds


class Inline:
    """A pool that works in this process."""

    map = staticmethod(map)


def test_what_times_networks_while_it_trains_runs_alone_and_last(
    settings: methods.Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[list[contenders.Case]] = []

    class Noting:
        def __init__(self, workers: int, context: Any) -> None:
            pools.append([("workers", workers, 0)])

        def __enter__(self) -> Noting:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def map(self, work: Any, some: list[contenders.Case]) -> list[Point]:
            pools[-1] += some
            return [{"case": case} for case in some]

    monkeypatch.setattr(methods, "ProcessPoolExecutor", Noting)
    listed = [("steered latency", 0.2, 0), ("dense", 1.0, 0), ("steered latency", 0.2, 1), ("steered macs", 0.2, 0)]
    made = [point["case"] for point in methods.runs(dataclasses.replace(settings, workers=3), listed)]
    assert made == [listed[1], listed[3], listed[0], listed[2]]
    assert pools == [[("workers", 3, 0), listed[1], listed[3]], [("workers", 1, 0), listed[0], listed[2]]]


def test_every_option_that_is_not_the_default_is_in_the_command_told() -> None:
    asked = "--set tiny_imagenet100 --side 64 --epochs 60 --seeds 3 --model cifar:resnet18 --width 64"
    more = " --optimizer adamw --batch 256 --amp none --device cuda --shares 0.2 --workers 1 --compile --retime"
    settings = methods.arguments_of(["--out", "x.json", *(asked + more).split()])
    assert settings.recipe == Recipe("cifar:resnet18", 64, 60, "adamw", 256, "none", True, "cuda")
    told = methods.document(settings, [{"seed": 3, "amount": amount} for amount in (1.0, 0.2)], 7.0)
    assert told["command"] == f"python -m benchmarks.methods --out benchmarks/results/x.json {asked}{more}"
    assert told["recipe"]["optimizer"] == "adamw" and told["recipe"]["set"] == "tiny_imagenet100"


def test_a_file_that_was_measured_otherwise_is_not_gone_on_with(
    settings: methods.Campaign, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = methods.document(settings, [], 0.0)
    other_machine = {**whole, "environment": {**whole["environment"], "cpu": "another"}}
    longer = {**whole, "recipe": {**whole["recipe"], "epochs": 5}}
    monkeypatch.setattr(methods, "arguments_of", lambda _: settings)
    for before in (other_machine, longer, {k: v for k, v in whole.items() if k != "recipe"}):
        settings.out.write_text(text := json.dumps(before))
        assert methods.main([]) == EXIT_USAGE and settings.out.read_text() == text
        assert capsys.readouterr().err.count("\n") == 1
    settings.out.write_text(json.dumps(whole))
    assert methods.before(settings) == ([], 0.0)


def test_a_gpu_that_is_not_there_is_told_before_anything_is_trained(
    settings: methods.Campaign, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = dataclasses.replace(settings, recipe=Recipe(device="cuda"))
    monkeypatch.setattr(methods, "arguments_of", lambda _: asked)
    assert methods.main([]) == EXIT_USAGE and not settings.out.exists()
    assert capsys.readouterr().err.startswith("error: no CUDA device")


needs_torch_pruning = pytest.mark.skipif(
    importlib.util.find_spec("torch_pruning") is None, reason="torch-pruning is not installed"
)


@needs_torch_pruning
def test_the_peers_train_for_as_many_steps(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the epochs with the regulariser, half after the cut; each image is seen once in an epoch."""
    seen: list[tuple[range, bool]] = []

    def fit(network: Any, data: Dataset, seed: int, epochs: range, section: Any, device: Any, pruner: Any) -> None:
        assert section.epochs == 5 and device.type == "cpu"
        seen.append((epochs, pruner is not None))

    monkeypatch.setattr(peers, "fit", fit)
    torch.manual_seed(0)
    contenders.trained_by(("group norm", 0.35, 0), Recipe(epochs=5), few, 1)
    assert seen == [(range(2), True), (range(2, 5), False)]


@needs_torch_pruning
def test_a_share_that_a_peer_cannot_reach_is_told(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "fit", lambda *_: None)
    with pytest.raises(UserError, match=r"group norm ends at .* of the MACs; 0.0001"):
        contenders.trained_by(("group norm", 0.0001, 0), Recipe(epochs=2), few, 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weights_of_peers_decay_as_strongly_as_ours(optimizer: str, few: Dataset) -> None:
    """Without gradients, and momentum given the time it takes, both shrink a weight alike: by lr * decay a step."""
    section = config.Training(**{**Recipe(optimizer=optimizer).keys(), "epochs": 1})
    theirs, ours = (torch.nn.Linear(1, 1, bias=False) for _ in range(2))
    for layer in (theirs, ours):
        torch.nn.init.ones_(layer.weight)
    inner, own = peers.optimizer_of(section, theirs), optimizer_for(section, list(ours.parameters()))
    for group in inner.param_groups:
        group["lr"] = 0.001
    for _ in range(2000):
        theirs.weight.grad, ours.weight.grad = torch.zeros(1, 1), torch.zeros(1, 1)
        inner.step()
        own.step(0.001)
    expected = pytest.approx(math.exp(-2000 * 0.001 * section.weight_decay), rel=2e-4)
    assert theirs.weight.item() == expected and ours.weight.item() == expected


def test_several_parts_of_a_training_set_are_one(tmp_path: Path) -> None:
    """As Tiny-ImageNet's 100 classes come: train_0, train_1 and val."""
    (tmp_path / "load.py").write_text(LOADER)
    data = real_data.dataset("tiny_imagenet100", tmp_path)
    assert (len(data.train), len(data.test), data.input_shape, len(data.names)) == (8, 3, (3, 4, 4), 2)
    assert data.train.labels.tolist() == [0, 1, 0, 1, 1, 0, 1, 0]
    assert len(real_data.dataset("tiny_imagenet100", tmp_path, n=5).train) == 5


LOADER = """
import numpy as np


def tiny_imagenet100(part):
    labels = {"train_0": [0, 1, 0, 1], "train_1": [1, 0, 1, 0], "val": [0, 0, 1]}[part]
    rng = np.random.default_rng(len(part))
    return rng.integers(0, 255, (len(labels), 4, 4, 3), np.uint8), np.array(labels, np.uint8), ["a", "b"]
"""
