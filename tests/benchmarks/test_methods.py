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

from benchmarks import methods, peers
from benchmarks.training import first
from pipeline import config
from pipeline.data import Dataset, load
from pipeline.models import build
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_PASS
from runtime.macs import macs


@pytest.fixture(scope="module")
def few() -> Dataset:
    data = load(config.Data())
    return dataclasses.replace(data, train=first(data.train, 512))


def test_each_case_once_and_every_seed_of_a_share_before_the_next_share() -> None:
    listed = methods.cases([0, 1, 2])
    assert len(set(listed)) == len(listed)
    at = {share: [i for i, case in enumerate(listed) if case[1] == share] for share in (1.0, 0.2, 0.35)}
    assert [listed[i][2] for i in at[1.0]] == [0, 1, 2]
    assert max(at[1.0] + at[0.2]) < min(at[0.35]) and max(at[0.35]) == len(listed) - 1
    assert {"dense", "narrow", "demp plain", "demp macs", "steered macs", "slimming", "group norm"} <= {
        case[0] for case in listed
    }


def test_shares_left_out_are_not_trained_and_sets_do_not_share_a_folder() -> None:
    given = methods.arguments_of(["--out", "a.json", "--set", "fashion_mnist", "--shares", "0.2"])
    listed = methods.cases(given.seeds, given.shares)
    assert {amount for method, amount, _ in listed if not method.startswith("demp")} == {1.0, 0.2}
    assert len(listed) == 3 * (1 + len(methods.SHARES[0.2]) + sum(map(len, methods.STRENGTHS.values())))
    points = [{"seed": seed, "amount": amount} for _, amount, seed in listed]
    told = methods.document(given, points)["command"]
    assert told.endswith("--set fashion_mnist --side 16 --epochs 12 --seeds 0 1 2 --shares 0.2")
    assert given.work != methods.arguments_of(["--out", "a.json"]).work
    more = [{"seed": 0, "amount": share} for share in methods.SHARES]  # what a run finds in the file counts too
    assert "--shares" not in methods.document(given, [*points, *more])["command"]


def test_what_was_asked_is_said_in_words() -> None:
    cases = ("dense", 1.0, 0), ("narrow", 0.35, 1), ("demp macs", 0.003, 2)
    assert [methods.asked(case) for case in cases] == ["", "35 % of the MACs", "lambda 0.003"]


def test_the_narrow_network_is_the_nearest_in_macs(few: Dataset) -> None:
    def share(width: int) -> float:
        one, whole = (build(methods.model_of(w), num_classes=10, input_shape=(1, 8, 8)) for w in (width, methods.WIDTH))
        return macs(one, (1, 8, 8)) / macs(whole, (1, 8, 8))

    width = methods.narrow_width(0.35, few)
    assert abs(share(width) - 0.35) < min(abs(share(width - 1) - 0.35), abs(share(width + 1) - 0.35))


@pytest.fixture
def given(few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> methods.Given:
    monkeypatch.setattr(methods, "data_of", lambda given: few)
    return methods.Given(tmp_path / "out.json", tmp_path, tmp_path, "digits", 8, (0,), 4, 1, math.inf)


@pytest.mark.parametrize("method", ["narrow", "steered macs", "slimming"])
def test_a_run_has_the_share_it_was_asked_for(method: str, given: methods.Given) -> None:
    if method == "slimming" and importlib.util.find_spec("torch_pruning") is None:
        pytest.skip("torch-pruning is not installed")
    point = methods.trained((method, 0.35, 0), given)
    allowed = {"narrow": 0.1, "steered macs": 0.03, "slimming": 0.03}[method]
    assert point["macs_pct"] == pytest.approx(35, rel=allowed) and 0 < point["accuracy_pct"] <= 100
    graph = onnx.load(given.work / methods.graph_name(point))
    assert sum(math.prod(t.dims) for t in graph.graph.initializer if t.data_type == 1) <= 1.2 * point["params"]


@pytest.mark.parametrize(("method", "align"), [("steered macs", 1), ("steered macs aligned", 8), ("demp plain", 1)])
def test_only_aligned_runs_keep_multiples(
    method: str, align: int, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[config.Demp, int]] = []
    monkeypatch.setattr(methods, "train_demp", lambda section, task, align: told.append((section, align)))
    monkeypatch.setattr(methods, "trained_network", lambda *_: None)
    methods.trained_by((method, 0.2, 0), few, 4, 1, tmp_path)
    ((section, asked),) = told
    assert asked == align and section.cost == method.split()[1]
    assert (section.target.macs if section.target else section.lambda_peak) == 0.2


def test_the_whole_command_goes_on_where_it_was_and_times_at_the_end(
    given: methods.Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[methods.Case] = []

    def trained(case: methods.Case, given: methods.Given) -> methods.Point:
        made.append(case)
        return point_of(case, given)

    point_of = methods.trained
    monkeypatch.setattr(methods, "trained", trained)
    monkeypatch.setattr(methods, "ProcessPoolExecutor", lambda *_: contextlib.nullcontext(Inline()))
    monkeypatch.setattr(methods, "arguments_of", lambda _: given)
    monkeypatch.setattr(methods, "cases", lambda seeds, shares: [("dense", 1.0, 0), ("narrow", 0.35, 0)])
    monkeypatch.setattr(methods, "TIMED_S", 0.5)
    monkeypatch.setattr(methods, "arguments_of", lambda _: dataclasses.replace(given, limit_s=0.0))
    assert methods.main([]) == EXIT_INCONCLUSIVE and made == []
    monkeypatch.setattr(methods, "arguments_of", lambda _: given)
    assert methods.main([]) == methods.main([]) == EXIT_PASS
    assert made == [("dense", 1.0, 0), ("narrow", 0.35, 0)]
    dense, narrow = json.loads(given.out.read_text())["points"]
    assert dense["macs_pct"] == 100.0 and narrow["macs"] < dense["macs"]
    for point in (dense, narrow):
        assert 0 < point["speedup_low"] <= point["speedup"] <= point["speedup_high"]
    assert 0.5 < dense["speedup"] < 2
    monkeypatch.setattr(methods, "arguments_of", lambda _: dataclasses.replace(given, retime=True))
    assert methods.main([]) == EXIT_PASS
    assert [p["speedup"] for p in json.loads(given.out.read_text())["points"]] != [dense["speedup"], narrow["speedup"]]
    assert json.loads(given.out.read_text())["command"].endswith("--retime")


class Inline:
    """A pool that works in this process."""

    map = staticmethod(map)


def test_the_peers_train_for_as_many_steps(few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the epochs with the regulariser, half after the cut; each image is seen once in an epoch."""
    if importlib.util.find_spec("torch_pruning") is None:
        pytest.skip("torch-pruning is not installed")
    seen: list[tuple[int, int, bool]] = []

    def fit(network: Any, data: Dataset, seed: int, epochs: int, first: int, shared: Any, pruner: Any) -> None:
        seen.append((epochs, first, pruner is not None))

    monkeypatch.setattr(peers, "fit", fit)
    torch.manual_seed(0)
    methods.trained_by(("group norm", 0.35, 0), few, 5, 1, tmp_path)
    assert seen == [(2, 0, True), (3, 2, False)]
