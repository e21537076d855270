"""What cannot be had in a lower precision is told in one line, before a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from export.onnx.from_torch import onnx_from_torch
from export.precision.int8 import Calibration
from export.precision.rehearsal import demand_lower
from pipeline import cli
from runtime.errors import UserError
from tests.export.graphs import residual_net

SHAPE = (3, 8, 8)


def exported(path: Path, network: nn.Module) -> Path:
    torch.manual_seed(0)
    onnx_from_torch(network.eval(), torch.randn(4, *SHAPE), path, opset=18, max_abs_diff=1e-3, metadata={})
    return path


@pytest.mark.parametrize(
    ("method", "runtime"), [("minmax", "tensorrt"), ("percentile", "onnxruntime"), ("entropy", "tensorrt")]
)
def test_local_response_norms_are_no_obstacle(tmp_path: Path, method: Any, runtime: Any) -> None:
    """Their sums lie too near to each other for the bins of ONNX Runtime's histograms."""
    layers = nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5)
    source = exported(tmp_path / "lrn.onnx", nn.Sequential(*layers))
    before = source.read_bytes()
    demand_lower(source, "lrn", SHAPE, ("fp16", "int8"), Calibration(method, runtime=runtime))
    assert source.read_bytes() == before and list(tmp_path.iterdir()) == [source]


class Weightless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10] * self.scale


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_network_without_layers_is_told(tmp_path: Path, precision: Any) -> None:
    source = exported(tmp_path / "net.onnx", Weightless())
    with pytest.raises(UserError) as told:
        demand_lower(source, "mine:net", SHAPE, (precision,), Calibration())
    assert str(told.value).startswith(f"mine:net cannot be computed in {precision}: no convolution or matrix product")
    assert str(tmp_path) not in str(told.value) and f"leave {precision} out" in str(told.value)


def test_an_operator_that_the_precision_does_not_have_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the converter raises, here for a stand-in."""

    def fails(*arguments: object) -> None:
        raise UserError("its graph has NoSuchOperator", "operators", "mend it")

    monkeypatch.setattr("export.precision.rehearsal.to_half", fails)
    with pytest.raises(UserError, match=r"net cannot be computed in bf16: its graph has NoSuch"):
        demand_lower(residual_net(tmp_path / "net.onnx"), "net", (3, 8, 8), ("bf16",), Calibration())
    assert list(tmp_path.iterdir()) == [tmp_path / "net.onnx"]


def test_a_run_says_so_before_the_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(
        "data: {source: digits}\nmodel: {name: 'tests.export.precision.test_rehearsal:Weightless'}\n"
        "precision: {graphs: [int8]}\nengine: {flavour: none}\n"
    )
    assert cli.command_line(["run", str(config), "--out", str(run)]) == 2
    assert "Weightless cannot be computed in int8: no convolution" in capsys.readouterr().err.splitlines()[-1]
    assert not (run / "10-dense").exists()
