"""A plan or a file that does not fit is refused with one clear line, and nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.surgery import load_compact, save_compact, shrink
from runtime.errors import UserError
from tests.pipeline.surgery import nets
from tests.pipeline.surgery.laws import untouched


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    oracle = nets.plain()
    folder = tmp_path_factory.mktemp("saved")
    save_compact(shrink(oracle.model, oracle.example), folder)
    return folder


def copied(saved: Path, to: Path) -> Path:
    for file in saved.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def layer(kept: list[Any], name: str = "conv1.weight", width: int | None = None) -> Callable[[dict[str, Any]], None]:
    """Edits what stays of a layer, and its width where one is given."""

    def edit(plan: dict[str, Any]) -> None:
        plan["layers"][name] = kept
        if width is not None:
            plan["widths"][name] = width

    return edit


NO_SET = "the channels of conv1.weight are no rising numbers below 8"
EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "duplicate": (layer([0, 2, 2, 5, 7]), NO_SET),
    "unsorted": (layer([2, 0, 3, 5, 7]), NO_SET),
    "negative": (layer([-1, 0, 3, 5, 7]), NO_SET),
    "beyond": (layer([0, 2, 3, 5, 8]), NO_SET),
    "huge": (layer([0, 2, 3, 5, 10**400]), NO_SET),
    "none": (layer([]), NO_SET),
    "fraction": (layer([0.5]), "layers.conv1.weight.0"),
    "text": (layer(["0"]), "layers.conv1.weight.0"),
    "truth": (layer([True]), "layers.conv1.weight.0"),
    "other channels": (layer([0, 2, 3]), "bn.bias is float32 (5,)"),
    "the answer": (layer([0, 1], "fc.weight", 4), "fc.bias is float32 (4,)"),
    "path": (layer([0], "../x", 2), "../x of 2 channels, the network has no such layer"),
    "class": (layer([0], "__class__", 2), "__class__ of 2 channels, the network has no such layer"),
    "training": (layer([0], "training", 1), "training of 1 channels, the network has no such layer"),
    "no width": (lambda p: p["widths"].pop("conv1.weight"), "name different layers"),
    "wider": (lambda p: p["widths"].update({"conv1.weight": 9}), "conv1.weight of 9 channels, the network has 8"),
    "huge width": (lambda p: p["widths"].update({"conv1.weight": 10**400}), "the network has 8"),
    "stream": (lambda p: (p["streams"].update({"add": [0]}), p["widths"].update({"add": 2})), "add of 2 channels"),
    "bias": (lambda p: p.update(biases=["training"]), "the plan adds training"),
    "gained": (lambda p: p.update(biases=["conv1.bias"]), "lacks 1 tensors of the network"),
    "schema": (lambda p: p.update(schema=2), "schema: Input should be less than or equal to 1"),
    "no schema": (lambda p: p.update(schema="1"), "schema: Input should be a valid integer"),
    "unknown key": (lambda p: p.update(run="rm"), "run: Extra inputs are not permitted"),
    "missing key": (lambda p: p.pop("layers"), "layers: Field required"),
    "residual": (lambda p: p.update(residual="both"), "residual: Input should be 'tied' or 'untied'"),
    "no shape": (lambda p: p["inputs"][0].update(shape=[]), "Net cannot be traced"),
    "huge shape": (lambda p: p["inputs"][0].update(shape=[2, 3, 1 << 20, 1 << 20]), "inputs.0.shape is no shape"),
    "endless shape": (lambda p: p["inputs"][0].update(shape=[1 << 19] * 80), "inputs.0.shape is no shape"),
    "empty shape": (lambda p: p["inputs"][0].update(shape=[2, 0, 8, 8]), "inputs.0.shape is no shape"),
    "dtype": (lambda p: p["inputs"][0].update(dtype="torch.nn"), "inputs.0.dtype is none of torch.float32"),
    "other class": (lambda p: p.update(network="torchvision.models.resnet.ResNet"), "the plan is for a torchvision"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_plan_that_does_not_fit_is_refused_in_one_line(edit: str, saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    plan = json.loads((folder / "plan.json").read_text())
    EDITS[edit][0](plan)
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError) as caught:
        load_compact(folder, nets.plain().model)
    line = f"{caught.value.found}; {caught.value.expected}; {caught.value.remedy}"
    assert EDITS[edit][1] in line
    assert "\n" not in line and len(line) < 600


CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "Invalid JSON"),
    "not JSON": (b"weights = 3", "Invalid JSON"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00", "Invalid JSON"),
    "not UTF-8": (b'{"schema": 1, "network": "\xff"}', "Invalid JSON"),
    "deep": (b'{"schema":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "Invalid JSON"),
    "a list": (b"[1, 2]", "Input should be an object"),
    "not a number": (b'{"schema": NaN}', "schema"),
    "half": (b'{"schema": 1, "network": "x', "Invalid JSON"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_that_is_no_plan_is_refused(content: str, saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    (folder / "plan.json").write_bytes(CONTENTS[content][0])
    with pytest.raises(UserError) as caught:
        load_compact(folder, nets.plain().model)
    assert CONTENTS[content][1] in caught.value.found
    assert caught.value.expected == "a plan of schema 1 as demport writes it"


def test_deep_arguments_are_no_way_in(saved: Path, tmp_path: Path) -> None:
    """The arguments of a source may nest; a nesting that no parser follows is refused, not followed."""
    folder = copied(saved, tmp_path)
    plan = json.loads((folder / "plan.json").read_text())
    plan["source"] = {"name": "cifar:resnet20", "args": {"x": 0}, "num_classes": 10, "input_shape": [3, 32, 32]}
    text = json.dumps(plan).replace('"x": 0', '"x": ' + "[" * 100_000 + "]" * 100_000)
    (folder / "plan.json").write_text(text)
    with pytest.raises(UserError, match="Invalid JSON") as caught:
        load_compact(folder)
    assert caught.value.remedy == "cut the network again"


def test_a_plan_too_long_to_be_one_is_not_read_to_its_end(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.surgery import plan

    monkeypatch.setattr(plan, "MAX_PLAN_BYTES", 100)
    with pytest.raises(UserError, match="over 100 bytes") as caught:
        load_compact(saved, nets.plain().model)
    assert str(saved) in caught.value.found


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
def test_a_missing_file_is_named(name: str, saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name) as caught:
        load_compact(folder, nets.plain().model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_truncated_weights_are_refused_and_the_network_stays(keep: int, saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    model = nets.plain().model
    with untouched(model), pytest.raises(UserError, match=r"weights\.safetensors cannot be read") as caught:
        load_compact(folder, model)
    assert caught.value.expected == "a safetensors file"


def test_weights_of_other_shapes_or_names_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    tensors = load_file(folder / "weights.safetensors")
    save_file({**tensors, "conv1.weight": torch.zeros(8, 3, 3, 3)}, folder / "weights.safetensors")
    with pytest.raises(UserError, match=r"conv1.weight is float32 \(8, 3, 3, 3\)"):
        load_compact(folder, nets.plain().model)
    save_file({**tensors, "extra": torch.zeros(1)}, folder / "weights.safetensors")
    with pytest.raises(UserError, match="has 1 that the network does not"):
        load_compact(folder, nets.plain().model)


def test_another_network_of_the_same_class_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match=r"the plan cuts conv2\.weight of 6 channels, the network has 8") as caught:
        load_compact(saved, _other())
    assert caught.value.remedy == "use the same model, arguments and library versions"
    with pytest.raises(UserError, match=r"the plan is for a tests.pipeline.surgery.nets.Net, the network is a torch"):
        load_compact(saved, nn.Sequential(nn.Conv2d(3, 8, 3)))


def _other() -> nn.Module:
    """`nets.plain` with a wider second layer."""
    model = nets.plain().model
    model.conv2, model.fc = nets.conv(8, 8, bias=True), nn.Linear(8, 4)
    return model


def test_a_plan_without_a_source_asks_for_the_network(saved: Path) -> None:
    with pytest.raises(UserError, match="names no network") as caught:
        load_compact(saved)
    assert "load_compact(folder, model)" in caught.value.remedy


def test_a_maker_serves_as_well_as_a_network(saved: Path) -> None:
    oracle = nets.plain()
    loaded = load_compact(str(saved), lambda: nets.plain().model)
    assert torch.equal(loaded(*oracle.example), load_compact(saved, nets.plain().model)(*oracle.example))
    assert not loaded.training
