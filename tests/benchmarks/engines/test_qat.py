"""The benchmark of training in int8: its network, its promise, and what it times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engines import qat
from pipeline import config
from pipeline.models import build
from runtime.macs import macs
from tests.export.graphs import conv_net, images


def point(graph: str, drop_pp: float, form: str = "tensorrt") -> dict[str, Any]:
    return {"network": "net", "form": form, "weights": "tensor", "seed": 0, "graph": graph, "drop_pp": drop_pp}


def test_training_has_to_win_back_half_of_what_calibration_lost() -> None:
    points = [point("fp32", 0.0), point("int8, calibrated", 10.0), point("int8, trained", 5.0)]
    assert qat.broken(points) == []
    assert qat.broken([point("int8, calibrated", -0.2), point("int8, trained", 0.0)]) == []
    worse = [point("int8, calibrated", 10.0, "onnxruntime"), point("int8, trained", 5.1, "onnxruntime")]
    text = "net, onnxruntime, tensor, 0: trained int8 loses 5.1 points, calibrated 10"
    assert qat.broken(points + worse) == [text]


def test_the_network_keeps_the_size_of_small_images() -> None:
    """torchvision's halves 32x32 five times; this one four times, so that each layer has four times the pixels."""
    network = build(
        config.Model(name="benchmarks.engines.qat:small_images", args={"width": 0.5}),
        num_classes=10,
        input_shape=(3, 32, 32),
    )
    assert isinstance(network, torch.nn.Module)
    features = network.get_submodule("features").eval()
    assert features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 2, 2)
    assert macs(network, (3, 32, 32)) == pytest.approx(7_837_400, rel=1e-3)


@pytest.mark.parametrize("backend", qat.BACKENDS)
def test_files_are_timed_in_turn_against_the_first(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    files = [conv_net(tmp_path / "wide.onnx", width=32), conv_net(tmp_path / "narrow.onnx", width=4)]
    (first, none), (second, ratio) = qat.timed(files, backend, images(8), limit_s=1.0)
    assert none is None and first > 0 and second > 0
    assert ratio is not None and ratio == pytest.approx(first / second, rel=0.5)
