"""Detectors as plain networks: what they answer, and that surgery cuts them exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from export.onnx.from_torch import onnx_from_torch
from pipeline.models.detection.demo import detector
from pipeline.models.networks import network
from pipeline.surgery import shrink
from pipeline.surgery.proof.gradients import step_of
from pipeline.surgery.shrink_training import shrink_training
from pipeline.tasks.answers import answering
from pipeline.tasks.boxes.codes import decoded, demand_detector
from runtime.errors import UserError

NAMES = {
    "demo:detector": (1, 64, 64),
    "torchvision:fcos_resnet50_fpn": (3, 64, 64),
    "torchvision:retinanet_resnet50_fpn": (3, 64, 64),
    "torchvision:retinanet_resnet50_fpn_v2": (3, 64, 64),
    "torchvision:ssd300_vgg16": (3, 300, 300),
    "torchvision:ssdlite320_mobilenet_v3_large": (3, 96, 96),
}

QUICK = ("demo:detector", "torchvision:ssdlite320_mobilenet_v3_large")
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def built(name: str, **args: Any) -> nn.Module:
    torch.manual_seed(0)
    return network(name, args, num_classes=4, input_shape=NAMES[name], classifies=False)


def half_dead(model: nn.Module) -> int:
    """Scale and shift of every other channel of the batch norms become zero; how many."""
    count = 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight[::2] = 0
                module.bias[::2] = 0
            count += len(module.weight[::2])
    return count


@pytest.mark.parametrize("name", [case for case in CASES if "vgg16" not in str(case)])
def test_surgery_cuts_it_exactly(name: str) -> None:
    model = built(name)
    dead = half_dead(model)
    assert dead > 20
    images = torch.randn(2, *NAMES[name])
    compact = shrink(model, (images,))  # holds the law in float64, or raises
    before, after = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in compact.model.parameters())
    assert after < 0.9 * before
    with torch.no_grad():
        whole, cut = model.eval()(images), compact.model.eval()(images)
    assert list(whole) == list(cut)
    for part, value in whole.items():
        assert torch.allclose(value, cut[part], rtol=1e-4, atol=1e-4 * float(value.abs().max())), part
    assert torch.equal(cut["anchors"], whole["anchors"])


@pytest.mark.slow
def test_a_network_without_batch_norms_is_cut_exactly() -> None:
    model = built("torchvision:ssd300_vgg16")
    first = model.get_submodule("backbone.features.0")
    assert isinstance(first, nn.Conv2d) and first.bias is not None
    with torch.no_grad():
        first.weight[:16] = 0
        first.bias[:16] = 0
    images = torch.randn(2, 3, 300, 300)
    compact = shrink(model, (images,)).model
    assert compact.get_submodule("backbone.features.0").weight.shape == (48, 3, 3, 3)
    with torch.no_grad():
        whole, cut = decoded(model.eval()(images)), decoded(compact.eval()(images))
    assert torch.allclose(whole["scores"], cut["scores"], atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_it_answers_as_a_detector(name: str) -> None:
    model = built(name)
    with torch.no_grad():
        answer = model.eval()(torch.zeros(2, *NAMES[name]))
    demand_detector(answer, name, 4, NAMES[name])
    outputs = decoded(answer)
    assert outputs["boxes"].shape == (2, len(answer["anchors"]), 4)
    assert outputs["scores"].shape == (2, len(answer["anchors"]), 4)
    assert float(outputs["boxes"].min()) >= 0 and float(outputs["boxes"].max()) <= 1
    assert not any("anchors" in key or "extent" in key for key in model.state_dict()), "torchvision's checkpoints fit"


def test_anchors_of_the_demo_are_squares_of_the_stride() -> None:
    anchors: Tensor = detector(num_classes=2, input_shape=(1, 16, 24)).anchors
    assert len(anchors) == 4 * 6 + 2 * 3
    assert anchors[0].tolist() == [0, 0, 4, 4]
    assert anchors[7].tolist() == [4, 4, 8, 8]
    assert anchors[-1].tolist() == [16, 8, 24, 16]


def test_what_is_no_one_stage_detector_is_one_line() -> None:
    with pytest.raises(UserError, match="fasterrcnn_resnet50_fpn is a detector of two stages") as error:
        network(
            "torchvision:fasterrcnn_resnet50_fpn", {}, num_classes=3, input_shape=(3, 64, 64), classifies=False
        )  # fmt: skip
    assert "retinanet_resnet50_fpn" in str(error.value)
    with pytest.raises(UserError, match="cannot run on images"):
        network("torchvision:ssd300_vgg16", {}, num_classes=3, input_shape=(3, 96, 96), classifies=False)
    with pytest.raises(UserError, match="width 0"):
        network("demo:detector", {"width": 0}, num_classes=3, input_shape=(1, 64, 64), classifies=False)


def test_a_classifier_is_no_detector_and_the_other_way_round() -> None:
    with pytest.raises(UserError, match="answers two images with Tensor"):
        demand_detector(torch.zeros(2, 4), "demo:resnet", 4, (1, 8, 8))
    with pytest.raises(UserError, match="answers two images with dict"):
        network("demo:detector", {}, num_classes=4, input_shape=(1, 64, 64))


def test_channels_leave_while_it_trains() -> None:
    """The anchors among its answers have no gradient."""
    model = built("demo:detector").train()
    half_dead(model)
    images = torch.randn(4, 1, 64, 64)
    before = step_of(model, (images,))
    assert len(before.gradients) == len(list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    after = shrink_training(model, (images,), optimizer)
    assert sum(p.numel() for p in after.compact.model.parameters()) < sum(p.numel() for p in model.parameters())


def test_the_compact_network_answers_with_the_tasks_outputs_in_a_graph(tmp_path: Path) -> None:
    """torch.export takes a traced network's own graph, with the answer before decoding."""
    model = built("demo:detector")
    half_dead(model)
    images = torch.randn(4, 1, 64, 64)
    compact = shrink(model, (images,)).model.eval()
    assert isinstance(compact, torch.fx.GraphModule)
    written = onnx_from_torch(
        answering(compact, decoded), images, tmp_path / "graph.onnx", opset=18, max_abs_diff=1e-5, metadata={}
    )
    assert written.outputs == ("boxes", "scores")
    names = [tensor.name for tensor in onnx.load(tmp_path / "graph.onnx").graph.initializer]
    assert "head1.cls_logits.weight" in names
