"""Every method beside every other: none is left out, each takes the steps that all have, and figures are those of
what a run would deploy."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.methods import campaign as methods
from benchmarks.methods import every_method, final_latency
from benchmarks.methods.contenders import Recipe
from benchmarks.training import first
from export.onnx.from_torch import onnx_from_torch
from pipeline import config
from pipeline.data import Dataset, load
from pipeline.training.methods import METHODS
from pipeline.training.train import training_of
from runtime.errors import UserError
from runtime.macs import macs

RECIPE = Recipe(width=4, epochs=6, batch=64)


@pytest.fixture(scope="module")
def few() -> Dataset:
    data = load(config.Data())
    return dataclasses.replace(data, train=first(data.train, 128), test=first(data.test, 100))


def test_every_method_is_there_and_seeds_are_whole() -> None:
    listed = every_method.cases([0, 1])
    assert len(set(listed)) == len(listed) and [case[:2] for case in listed if case[2] == 0] * 2 == [
        case[:2] for case in listed
    ]
    names = {method.removeprefix("mlp ") for method, _, _ in listed}
    assert names == {*METHODS, "dense", "narrow", "low resolution"}
    assert {amount for method, amount, _ in listed if method == "rigl"} == {0.1, 0.02, 0.01}
    assert {amount for method, amount, _ in listed if method == "hesso"} == {0.35, 0.2}


def test_what_was_asked_and_what_a_method_is() -> None:
    cases = ("dense", 1.0), ("mlp set", 0.02), ("hesso", 0.35), ("rigl", 0.01), ("nnrelief", 0.5), ("han", 0.1)
    assert [every_method.asked((*case, 0)) for case in cases] == [
        "", "2 % of the weights", "35 % of the MACs", "1 % of the weights", "alpha 0.5", "10 % of the weights",
    ]  # fmt: skip
    kinds = [every_method.kind(name) for name in ("dense", "low resolution", "mlp ctre", "variational", "demp", "set")]
    assert kinds == ["dense", "dense", "mlp", "channels", "channels", "weights"]


@pytest.mark.parametrize("method", [name for name in METHODS if name not in every_method.CHAINS])
def test_all_phases_together_take_the_epochs_that_all_have(method: str, few: Dataset, tmp_path: Path) -> None:
    """Asked of the method itself, before a step."""
    from pipeline.config.sparse import function_of
    from pipeline.progress import Silent
    from pipeline.training.compute import compute_of
    from pipeline.training.compute.distributed import ALONE
    from pipeline.training.train import Setting

    amount, steps = every_method.amounts(method, every_method.DENSITIES)[0], 2
    keys = RECIPE.keys() | every_method.keys_of(method, amount, RECIPE.epochs, steps)
    section = config.sparse_of(method=method, **keys)
    network = RECIPE.built(RECIPE.width, few)
    setting = Setting(RECIPE.model_of(RECIPE.width), few, 0, 1, "cpu", tmp_path, Silent())
    training = training_of(section, network, few, compute_of(section, torch.device("cpu"), ALONE), setting)
    hooks = function_of(method)(section, training)
    whole = RECIPE.epochs * steps
    assert training.steps_per_epoch == steps
    assert (hooks.steps or training.steps) == whole


def test_epochs_that_rounds_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="a multiple of 6"):
        every_method.rounds_of("imp", 0.1, 7)
    keys = every_method.rounds_of("lottery_ticket", 0.0625, 12)
    assert keys["prune"] == pytest.approx(0.5) and keys["epochs"] == 4
    assert every_method.rounds_of("han", 0.31731, 6)["quality"] == pytest.approx(1.0, abs=1e-4)  # 68 % within sigma


def test_a_case_is_cut_as_a_run_cuts_and_counts_what_lives(few: Dataset) -> None:
    trainee = every_method.trained_by(("static_erk", 0.02, 0), RECIPE, few, 1)
    dense = RECIPE.built(RECIPE.width, few)
    assert trainee.figures["density_pct"] == pytest.approx(2.0, abs=0.1)
    assert macs(trainee.network, few.input_shape) < macs(dense, few.input_shape)  # most channels lost their inputs
    weights = sum(m.weight.numel() for m in dense.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert trainee.figures["weights"] == round(trainee.figures["density_pct"] / 100 * weights)


def test_the_network_on_smaller_images_takes_the_share_of_macs_that_is_nearest(few: Dataset) -> None:
    model = every_method.network_of("low resolution", 0.35, RECIPE, few)
    side, whole = model.args["side"], macs(RECIPE.built(4, few), (1, 8, 8))
    shares = {s: macs(RECIPE.built(4, few), (1, s, s)) / whole for s in range(4, 8)}
    assert side == min(shares, key=lambda s: abs(shares[s] - 0.35))
    network = every_method.low_resolution(num_classes=10, input_shape=(1, 8, 8), **model.args)
    assert macs(network, (1, 8, 8)) == pytest.approx(shares[side] * whole)
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_method_that_refuses_is_a_point_with_its_reason(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "data_of", lambda settings: few)
    # At a width of 4 oneDNN of torch 2.14 writes beyond its buffers where a processor has no AVX-512.
    recipe = dataclasses.replace(RECIPE, width=8)
    settings = methods.Campaign(tmp_path / "o.json", tmp_path, tmp_path, every=True, recipe=recipe)
    point = methods.trained(("snip", 1e-4, 0), settings)
    assert point["kind"] == "weights" and "accuracy_pct" not in point
    assert "snip" in point["refused"] or "density" in point["refused"]
    assert methods.in_words(point) == point["refused"]
    (row,) = final_latency.timed([point], tmp_path, (2, 1, 8, 8), ("onnxruntime",), 0.1)
    assert row == point


def test_networks_of_one_form_are_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points: list[dict[str, Any]] = []
    for method, width in (("dense", 4), ("rigl", 4), ("narrow", 2)):
        point = {"method": method, "amount": 0.5, "seed": 0}
        torch.manual_seed(len(points))
        network = RECIPE.built(width, load(config.Data()))
        onnx_from_torch(
            network.eval(), torch.zeros(2, 1, 8, 8), tmp_path / final_latency.graph_name(point), opset=18,
            max_abs_diff=1.0, metadata={},
        )  # fmt: skip
        points.append(point)
    own = [tmp_path / final_latency.graph_name(point) for point in points]
    assert final_latency.form(own[0]) == final_latency.form(own[1]) != final_latency.form(own[2])
    asked: list[Path] = []
    against = final_latency.against

    def noting(dense: Path, path: Path, *rest: Any) -> Any:
        asked.append(path)
        return against(dense, path, *rest)

    monkeypatch.setattr(final_latency, "against", noting)
    dense, rigl, narrow = final_latency.timed(points, tmp_path, (2, 1, 8, 8), ("onnxruntime",), 0.2)
    assert asked == [own[0], own[2]] and rigl["batch_32_p50_ms"] == dense["batch_32_p50_ms"]
    assert narrow["speedup"] > 0 and rigl["method"] == "rigl"


def test_the_command_says_what_decides_the_figures() -> None:
    line = "--every --images 5000 --only dense rigl 'low resolution' --densities 0.1 --workers 1 --timed-s 3"
    arguments = ["--out", "x.json", "--epochs", "6", "--every", "--images", "5000", "--only", "dense", "rigl"]
    arguments += ["low resolution", "--densities", "0.1", "--workers", "1", "--timed-s", "3", "--seeds", "0"]
    settings = methods.arguments_of([*arguments, "--backends", "onnxruntime", "openvino"])
    document = methods.document(settings, [{"seed": 0, "amount": 1.0}], 1.0)
    assert document["command"].endswith(f"--epochs 6 --seeds 0 {line} --backends onnxruntime openvino")
    assert document["data"] == "cifar10, averaged down to 16x16, the first 5,000 images; 6 epochs"
    assert document["recipe"]["images"] == 5000


def test_a_process_of_its_own_finds_what_it_is_to_do() -> None:
    """By module and name: of a package that runs as a program there is neither in another process."""
    work = methods.unless_late
    assert work.__module__ == "benchmarks.methods.campaign"
    assert pickle.loads(pickle.dumps(work)) is work
