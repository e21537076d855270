"""Compact networks seen by others: ONNX Runtime computes the same from them, and fvcore counts the same MACs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision import models

from export.onnx.from_torch import onnx_from_torch
from pipeline.surgery import shrink
from runtime.macs import macs
from tests.pipeline.surgery import nets, nets_shapes, nets_tokens
from tests.pipeline.surgery.nets import Oracle
from tests.pipeline.surgery.zoo import fill, kill, without_initialisation

QUICK = (nets.residual, nets.constant_without_padding, nets_shapes.squeeze_excite, nets_shapes.shuffle)
ORACLES = (*nets.ALL, *nets_shapes.ALL, *nets_tokens.ALL)
NETWORKS = (
    "resnet18", "resnet50", "densenet121", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf", "squeezenet1_1", "vgg11_bn", "convnext_tiny",
    "vit_b_32", "swin_t",
)  # fmt: skip


def tall(name: str) -> tuple[nn.Module, int]:
    """A network of torchvision with dead channels, and the side of its images."""
    more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with without_initialisation():
        model = models.get_model(name, weights=None, **more)
    side = 224 if name.startswith(("vit", "swin")) else 64
    return kill(fill(model, torch.zeros(1, 3, side, side)), classes=1000), side


def answers_alike(compact: nn.Module, images: torch.Tensor, path: Path) -> float:
    """Largest difference of ONNX Runtime from torch, over torch's largest answer."""
    onnx_from_torch(compact, images, path, opset=18, max_abs_diff=float("inf"), metadata={})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"input": images.numpy()})
    with torch.no_grad():
        wanted = compact(images).numpy()
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def exported(make: Callable[[], Oracle], path: Path) -> float:
    oracle = make()
    compact = shrink(oracle.model, oracle.example).model
    images = torch.randn(4, *oracle.example[0].shape[1:], generator=torch.Generator().manual_seed(2))
    return answers_alike(compact, images, path)


@pytest.mark.parametrize("make", QUICK, ids=lambda make: str(make.__name__))
def test_onnx_runtime_computes_the_same(make: Callable[[], Oracle], tmp_path: Path) -> None:
    assert exported(make, tmp_path / "compact.onnx") < 1e-5
    assert (tmp_path / "compact.onnx").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("make", ORACLES, ids=lambda make: str(make.__name__))
def test_onnx_runtime_computes_the_same_from_every_oracle(make: Callable[[], Oracle], tmp_path: Path) -> None:
    example = make().example
    if len(example) != 1 or example[0].dim() != 4:
        pytest.skip("demport exports networks of one image")
    assert exported(make, tmp_path / "compact.onnx") < 1e-5
    assert (tmp_path / "compact.onnx").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_computes_the_same_from_torchvision(name: str, tmp_path: Path) -> None:
    model, side = tall(name)
    compact = shrink(model, (torch.zeros(1, 3, side, side),), verify=False).model
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(2))
    assert answers_alike(compact, images, tmp_path / "compact.onnx") < 1e-4
    assert (tmp_path / "compact.onnx").stat().st_size < 4.1 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121"])
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_fvcore_counts_the_same_macs(name: str) -> None:
    """fvcore counts one operation for a multiplication and its addition, and counts normalisation and pooling too."""
    from fvcore.nn import FlopCountAnalysis

    model, side = tall(name)
    images = torch.zeros(1, 3, side, side)
    compact = shrink(model, (images,), verify=False).model
    counted = []
    for network in (model, compact):
        analysis = FlopCountAnalysis(network, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
        counted.append(int(sum(by_operator[kind] for kind in ("conv", "linear", "matmul", "addmm"))))
        assert counted[-1] == macs(network, (3, side, side))
    assert counted[1] < counted[0]
