"""2:4: trained by `sr_ste`, proven on the written ONNX file, and asked of the builder."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.engines import manifest
from export.engines.options import engine_options
from export.engines.tensorrt.config import Request, configure
from export.engines.tensorrt.features import features
from export.engines.tensorrt.network import parse
from export.onnx.from_torch import onnx_from_torch
from export.onnx.weights import weights_of
from pipeline.training.methods.straight_through.sr_ste import largest_of_four
from runtime.backends.trt_library import Log
from tests.export.small_engines import PROFILE, build, needs_rtx


@pytest.fixture(scope="module")
def patterned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions, the second with 2 living weights of every 4 along its inputs; a batch norm goes into it."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    with torch.no_grad():
        weight = network.get_parameter("2.weight")
        weight.mul_(largest_of_four(weight))
    path = tmp_path_factory.mktemp("sparse") / "net.onnx"
    onnx_from_torch(network.eval(), torch.randn(2, 3, 8, 8), path, opset=18, max_abs_diff=1e-4, metadata={})
    return path


def test_the_pattern_holds_in_the_written_file(patterned: Path) -> None:
    weights = weights_of(patterned, patterned.with_suffix(".sparse.onnx"), torch.randn(2, 3, 8, 8).numpy())
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(patterned).graph.initializer}
    (name,) = weights.two_of_four
    assert tensors[name].shape == (32, 16, 3, 3)
    for group in range(0, 16, 4):  # counted here by hand
        assert int((tensors[name][:, group : group + 4] != 0).sum(1).max()) == 2
    (head,) = (values for values in tensors.values() if math.prod(values.shape) == 32 * 5)
    assert weights.groups == 32 * 4 * 9 + head.size // 4  # the first convolution reads 3 inputs
    assert weights.groups_that_fit >= 32 * 4 * 9


@needs_rtx
@pytest.mark.parametrize("sparse", [True, False])
def test_the_builder_is_asked_for_sparse_weights(patterned: Path, sparse: bool, tmp_path: Path) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    options = engine_options({"profile": PROFILE, "workspace_mib": 64, "timing_cache": None, "sparse": sparse})
    request = Request(
        str(patterned), "", "", "", "tensorrt_rtx", "fp32", ("SM86",), options, None,
    )  # fmt: skip
    with (tmp_path / "log").open("w") as file:
        log = Log(trt, file)
        builder, can = trt.Builder(log.logger), features(trt)
        network, parser = parse(str(patterned), trt, builder, can, log, "tensorrt_rtx")
        config, profiles = configure(request, trt, builder, network, can)
        assert config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS) is sparse and profiles
        del config, network, parser, builder


@needs_rtx
def test_an_engine_is_built_so_and_its_manifest_says_it(patterned: Path, tmp_path: Path) -> None:
    engine = build(patterned, tmp_path / "sparse.engine", sparse=True)
    assert manifest.verify(engine.path).options.sparse
    assert engine.layers["CONVOLUTION"] == {"FLOAT": 2} and engine.bytes == engine.path.stat().st_size
