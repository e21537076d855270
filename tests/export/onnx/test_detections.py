"""Non-maximum suppression inside a graph, beside torchvision's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from export.onnx import graph
from export.onnx.detections import OUTPUTS, Nms, with_nms
from export.onnx.from_torch import onnx_from_torch
from runtime.errors import UserError

ANCHORS, CLASSES = 40, 3
NMS = Nms(0.6, 0.5, 60)


class Boxes(nn.Module):
    """Forty boxes near each other, and scores that the image decides."""

    def __init__(self, most: int = ANCHORS) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        corner = torch.rand(most, 2, generator=generator) * 0.4
        side = 0.1 + torch.rand(most, 2, generator=generator) * 0.3
        self.register_buffer("corners", torch.cat([corner, corner + side], 1))
        self.scores = nn.Linear(12, most * CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        flat = x.flatten(1)
        boxes = self.get_buffer("corners") + 0.01 * flat.mean(1)[:, None, None]
        return {"boxes": boxes, "scores": torch.unflatten(torch.sigmoid(4 * self.scores(flat)), 1, (-1, CLASSES))}


def reference(boxes: graph.Array, scores: graph.Array) -> list[graph.Array]:
    """By torchvision, class by class."""
    result = []
    for corners, values in zip(torch.from_numpy(boxes), torch.from_numpy(scores), strict=True):
        which, label = torch.nonzero(values > NMS.score_threshold).unbind(1)
        keep = batched_nms(corners[which], values[which, label], label, NMS.iou_threshold)[: NMS.max_detections]
        rows = [corners[which], values[which, label][:, None], label[:, None].float()]
        result.append(torch.cat(rows, 1)[keep].numpy())
    return result


def written(folder: Path, model: nn.Module) -> tuple[Path, graph.Array]:
    torch.manual_seed(1)
    images = torch.randn(5, 3, 2, 2)
    images[0] = 0  # hardly a score above the threshold's
    onnx_from_torch(model, images, folder / "plain.onnx", opset=18, max_abs_diff=1e-5, metadata={})
    return folder / "plain.onnx", images.numpy()


def test_the_graph_gives_what_torchvision_keeps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, images = written(tmp_path, Boxes())
    path = with_nms(source, tmp_path / "nms.onnx", NMS, images, reference)
    session = graph.open_graph(path)
    assert [output.name for output in session.get_outputs()] == list(OUTPUTS)
    for count in (1, 5):
        counts, boxes, scores, classes = graph.run_graph(session, images[:count])
        assert boxes.shape == (count, 60, 4) and classes.dtype == np.int32
        plain = graph.run_graph(graph.open_graph(source), images[:count])
        for index, rows in enumerate(reference(*plain)):
            number = int(counts[index, 0])
            assert number == len(rows)
            assert scores[index, :number] == pytest.approx(rows[:, 4], abs=1e-6)
            assert boxes[index, :number] == pytest.approx(rows[:, :4], abs=1e-6)
            assert classes[index, :number].tolist() == rows[:, 5].tolist()
            assert not scores[index, number:].any() and (classes[index, number:] == -1).all()
    assert 0 < counts.min() < counts.max(), "images with few and with many"


def test_fewer_boxes_than_detections(tmp_path: Path) -> None:
    source, images = written(tmp_path, Boxes(2))
    path = with_nms(source, tmp_path / "nms.onnx", NMS, images, reference)
    dims = onnx.load(path).graph.output[1].type.tensor_type.shape.dim
    assert [dims[0].dim_param, dims[1].dim_value, dims[2].dim_value] == ["batch", 2 * CLASSES, 4]
    assert graph.run_graph(graph.open_graph(path), images)[0].shape == (5, 1)


def test_other_detections_than_pythons_are_refused(tmp_path: Path) -> None:
    source, images = written(tmp_path, Boxes())
    with pytest.raises(UserError, match=r"gives \d+ detections of image \d, .*|gives \d+ detections") as error:
        with_nms(source, tmp_path / "nms.onnx", Nms(0.9, 0.5, 60), images, reference)
    assert "NMS in Python" in str(error.value)
    with pytest.raises(UserError, match="off; at most"):
        shift = lambda boxes, scores: [rows + 0.1 for rows in reference(boxes, scores)]  # noqa: E731
        with_nms(source, tmp_path / "nms.onnx", NMS, images, shift)
    assert not (tmp_path / "nms.onnx").exists()


def test_a_graph_without_boxes_is_one_line(tmp_path: Path) -> None:
    source, images = written(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    with pytest.raises(UserError, match=r"boxes \(batch, A, 4\)") as error:
        with_nms(source, tmp_path / "nms.onnx", NMS, images, reference)
    assert "logits" in str(error.value)
