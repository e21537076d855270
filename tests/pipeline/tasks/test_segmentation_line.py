"""A U-Net of one's own through the whole line, and torchvision's networks, which answer with a dict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.commands.finished_run import publish
from pipeline.config.file import load_config
from pipeline.config.task import task_of, task_section
from pipeline.line import Order, run
from pipeline.models.networks import network
from pipeline.progress import Silent
from pipeline.stages.publish import Target
from pipeline.surgery import load_compact, save_compact, shrink
from pipeline.surgery.plan import Source
from pipeline.tasks.answers import answering
from runtime.errors import UserError

CONFIG = """
name: squares
threads: 1
data: {source: "npz:squares.npz"}
model: {name: demo:unet, args: {width: 4}}
task: {name: segmentation, dice: 1.0}
dense: {epochs: 2, batch_size: 20, lr: 0.05}
sparse: {epochs: 2, batch_size: 20, lr: 0.05, lambda_peak: 1.0, distill: {weight: 0.5}}
surgery: {align: 1}
precision: {graphs: [fp16, int8], max_accuracy_drop: 100, evaluation_images: 20, calibration: {images: 20}}
serving: {enabled: true, output: classes}
engine: {flavour: none}
check:
  {batch_sizes: [8], gate_batch: 8, threads: 1, min_blocks: 5, time_limit_s: 1, streams: [],
   gates: {min_speedup: 0, max_metric_drop: 100}}
"""


def write_squares(folder: Path, **changes: Any) -> None:
    """A light square (class 1) and a dark one (class 2) on grey of 16x16 pixels, with noise."""
    random = np.random.Generator(np.random.PCG64(0))
    arrays: dict[str, Any] = {}
    for part, count in (("train", 200), ("test", 40)):
        images = random.integers(110, 146, (count, 16, 16)).astype(np.uint8)
        masks = np.zeros((count, 16, 16), np.uint8)
        for image, mask in zip(images, masks, strict=True):
            for label, level, first in ((1, 230, 0), (2, 20, 8)):
                row, column = int(random.integers(0, 10)), first + int(random.integers(0, 2))
                image[row : row + 6, column : column + 6], mask[row : row + 6, column : column + 6] = level, label
        arrays |= {f"x_{part}": images, f"y_{part}": masks}
    np.savez(folder / "squares.npz", **arrays | {"names": ["ground", "light", "dark"]} | changes)


def config_file(folder: Path, text: str = CONFIG) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_a_unet_from_arrays_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path)
    folder = tmp_path / "run"
    outcome = run(load_config(config_file(tmp_path)), Order(folder, device="cpu", config_folder=tmp_path), Silent())
    assert outcome is not None and outcome.status in ("pass", "inconclusive")
    document = json.loads((folder / "70-check" / "check.json").read_text())
    rows = [json.loads(row) for row in (folder / "10-dense" / "history.jsonl").read_text().splitlines()]
    assert document["metric_name"] == rows[-1]["metric"] == "mIoU"
    dense = document["models"]["dense"]
    assert dense["accuracy"]["torch"] == pytest.approx(rows[-1]["mIoU"], abs=1e-4)
    assert dense["intervals"]["onnx"][0] <= dense["accuracy"]["onnx"] <= dense["intervals"]["onnx"][1]
    assert {"fp16", "int8", "simplified"} <= document["models"]["compact"]["accuracy"].keys()
    assert {one["name"] for one in document["classes"]} == {"ground", "light", "dark"}
    assert {"max_mIoU_drop", "mIoU_at_hops"} <= {gate["name"] for gate in document["verdict"]["gates"]}
    for one in document["worst"]["images"]:
        assert Image.open(folder / "70-check" / one["file"]).size == (4 * 96 + 3 * 4, 96)
    assert "mIoU at every hop" in (folder / "report.html").read_text()
    graph = onnx.load(folder / "50-simplify" / "compact.onnx").graph
    assert [out.name for out in graph.output] == ["logits"]
    served = onnx.load(next((folder / "55-precision").glob("compact.fp32.pixels.onnx"))).graph
    assert [d.dim_value for d in served.output[0].type.tensor_type.shape.dim[1:]] == [16, 16]
    of_maps_published(folder, tmp_path)


def of_maps_published(run_folder: Path, out: Path) -> None:
    """A server is told that maps come out, has answers to compare with, and is promised no class of an image."""
    for form in ("triton", "bundle"):
        done = publish(run_folder, Target(out / form, form), (), Silent())
        assert [model.name for model in done.models] == ["squares", "squares_fp16", "squares_int8"]
        reasons = {what: one.why for one in done.left_out for what in one.what}
        assert "compact.fp32.pixels.onnx" in reasons
    settings = (out / "triton" / "squares" / "config.pbtxt").read_text()
    assert "dims: [3, 16, 16]" in settings
    for form in ("triton", "bundle"):
        recorded = json.loads((out / form / "squares" / "sample-response.json").read_text())
        assert recorded["outputs"][0]["shape"] == [1, 3, 16, 16]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("demo:unet, args: {width: 4}", "demo:resnet, args: {width: 4}", r"demo:resnet answers .*\(2, 3\).*demo:unet"),
        ("{name: segmentation, dice: 1.0}", "{name: classification}", "the data have a mask of classes for each image"),
        ("npz:squares.npz", "digits", "task.name is segmentation, and the data have one class for each image"),
        ("lr: 0.05}\n", "lr: 0.05, mixup: 0.2}\n", "mixup 0.2, and images that have no one class"),
    ],
)
def test_what_does_not_go_together_is_one_line_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path)
    assert old in CONFIG
    config = load_config(config_file(tmp_path, CONFIG.replace(old, new, 1)))
    with pytest.raises(UserError, match=message) as caught:
        run(config, Order(tmp_path / "run", device="cpu", config_folder=tmp_path), Silent())
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "10-dense").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": np.zeros((40, 16, 15), np.uint8)}, r"y_test has shape \(40, 16, 15\); \(40, 16, 16\), a label for"),
        (
            {"y_test": np.full((40, 16, 16), 7)},
            r"map 0 of .*: y_test has the label 7; 0 to 2 \(3 classes named\)",
        ),
        ({"y_train": np.full((200, 16, 16), -1)}, "y_train holds labels from -1 to -1"),
    ],
)
def test_maps_that_will_not_do(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    from pipeline import config
    from pipeline.data import load

    write_squares(tmp_path, **change)
    with pytest.raises(UserError, match=message) as caught:
        load(config.Data(source=f"npz:{tmp_path / 'squares.npz'}"))
    assert "\n" not in str(caught.value)


def test_torchvision_s_dict_becomes_one_output_named_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = network(
        "torchvision:lraspp_mobilenet_v3_large",
        {"weights_backbone": None},
        num_classes=4,
        input_shape=(3, 32, 32),
        classifies=False,
    ).eval()
    x = torch.rand(2, 3, 32, 32)
    task = task_of(task_section(name="segmentation"))
    named = task.network(whole)
    assert torch.equal(named(x), whole(x)["out"]) and named.state_dict().keys() == whole.state_dict().keys()
    assert task.loss(whole(x), torch.zeros(2, 32, 32, dtype=torch.uint8)).ndim == 0
    compact = shrink(whole, (x,))
    source = Source(
        name="torchvision:lraspp_mobilenet_v3_large", args={"weights_backbone": None}, num_classes=4,
        input_shape=(3, 32, 32),
    )  # fmt: skip
    save_compact(compact, tmp_path, source)
    again = task.network(load_compact(tmp_path).eval())
    assert torch.allclose(again(x), whole(x)["out"], atol=1e-5)


def test_a_renamed_network_is_copied_whole() -> None:
    import copy

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.conv(x), "more": x}

    x, plain = torch.rand(2, 1, 3, 3), Pair()
    traced = torch.fx.symbolic_trace(plain)
    for one in (plain, traced):
        first = answering(one, lambda answer: answer["out"])
        second = copy.deepcopy(first)
        assert torch.equal(first(x), plain(x)["out"]) and torch.equal(second(x), first(x))
        assert isinstance(one(x), dict) and first.get_parameter("conv.weight") is one.get_parameter("conv.weight")
        assert second.get_parameter("conv.weight") is not first.get_parameter("conv.weight")
