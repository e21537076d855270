"""Learning from a trained network's logits, by hand; and where a sparse training begins."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline import config
from pipeline.config import Config
from pipeline.config.task import task_of
from pipeline.data import load
from pipeline.models.weights import save_weights
from pipeline.progress import Silent
from pipeline.stages import Run
from pipeline.stages.train import dense, sparse, uses_dense
from pipeline.training.compute import Compute
from pipeline.training.distillation import Teacher
from tests.pipeline.models.test_models import GREY, made


def test_the_mixed_loss_is_the_formula() -> None:
    x = torch.tensor([[2.0, 0.0]])
    network = nn.Sequential(nn.Identity(), nn.Dropout(0.9)).train()
    teacher = Teacher(network, config.Distill(weight=0.25, temperature=2.0), Compute(torch.device("cpu")), task_of())
    logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    loss = teacher.mixed(torch.tensor(3.0), logits, x)
    p = math.e / (math.e + 1)  # softmax of (2, 0) / 2
    apart = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(loss.detach()) == pytest.approx(0.75 * 3 + 0.25 * 4 * apart, rel=1e-6)
    torch.autograd.backward(loss)
    # d/dz of w T^2 KL = w T (softmax(z / T) - p)
    assert logits.grad is not None and logits.grad[0, 0].item() == pytest.approx(0.25 * 2 * (0.5 - p), rel=1e-5)
    assert not network.training


def settings(**keys: Any) -> Config:
    return Config.model_validate(
        {"dense": {"epochs": 1}, "model": {"args": {"width": 4}, **keys.pop("model", {})}, "sparse": keys}
    )


def test_the_sparse_training_starts_dense_and_distils_where_weights_are_given() -> None:
    given = {"model": {"weights": "w.pt"}}
    cases: list[tuple[Config, bool, bool]] = [
        (settings(), False, False),
        (settings(**given), True, True),
        (settings(start="dense"), True, True),
        (settings(start="init", **given), False, False),
        (settings(start="dense", distill=None), True, False),
        (settings(distill={"weight": 0.3}), False, True),
    ]
    for one, starts, distils in cases:
        assert (one.starts_dense, one.distill is not None, uses_dense(one)) == (starts, distils, starts or distils)
    assert cases[-1][0].distill == config.Distill(weight=0.3, temperature=4.0)


def test_given_weights_are_the_baseline_and_the_start(tmp_path: Path) -> None:
    """Without epochs they stay bit for bit, the history is empty, and a training at rate 0 ends with them too."""
    save_weights(made("demo:resnet", GREY, width=4), tmp_path / "w.safetensors")
    whole = Config.model_validate({
        "model": {"args": {"width": 4}, "weights": str(tmp_path / "w.safetensors")},
        "dense": {"epochs": 0},
        "sparse": {"epochs": 1, "batch_size": 700, "lr": 0.0, "sigma_peak": 0.0, "lambda_peak": 1e-9},
    })  # fmt: skip
    run, folders = (
        Run(whole, lambda: load(config.Data()), "cpu", Silent(), "20-sparse"),
        [tmp_path / name for name in "abcd"],
    )
    for folder in folders:
        folder.mkdir()
    baseline = dense(run, *folders[:2])
    assert baseline.weights.read_bytes() == (tmp_path / "w.safetensors").read_bytes()
    assert baseline.history.read_bytes() == b"" and (baseline.epochs, baseline.plan) == (0, None)
    assert 0 < baseline.accuracy < 0.5 and baseline.channels == 3 * 4 + 3 * 8 + 3 * 16
    trained = sparse(run, baseline, *folders[2:])
    assert trained.epochs == 1
    before, after = load_file(baseline.weights), load_file(trained.weights)
    assert trained.plan is None and torch.equal(before["conv1.weight"], after["conv1.weight"])
