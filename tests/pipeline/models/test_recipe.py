"""The pixels of default weights: taken from the library where the config names none, told where it names others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline import cli
from pipeline.config.file import config_from_overrides
from pipeline.models import checkpoint
from pipeline.models.recipe import normalised

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # docs of torchvision.models and of timm


def arrays(path: Path, channels: int = 3, kind: Any = np.uint8) -> str:
    """Sixteen images of two classes, 32x32."""
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, channels)).astype(kind)
    labels = np.arange(16) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    return f"npz:{path}"


def settled(*texts: str) -> tuple[Any, list[str]]:
    notes: list[str] = []
    return normalised(config_from_overrides(list(texts)), notes.append).data, notes


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("torchvision:resnet18", IMAGENET),
        ("timm:resnet18", IMAGENET),
        ("timm:vit_tiny_patch16_224", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    ],
)
def test_default_weights_bring_their_pixels(model: str, expected: Any, tmp_path: Path) -> None:
    if model.startswith("timm"):
        pytest.importorskip("timm", reason="needs the extra timm")
    source = f"data.source={arrays(tmp_path / 'd.npz')}"
    section, notes = settled(source, f"model.name={model}", "model.weights=default")
    assert (section.mean, section.std) == expected
    assert len(notes) == 1 and f"{model}'s default weights" in notes[0]
    assert settled(source, f"model.name={model}")[0].mean is None  # from scratch: of the training images


@pytest.mark.parametrize(
    ("channels", "kind", "why"), [(1, np.uint8, "the images have 1 channel:"), (3, np.float32, "floats")]
)
def test_other_pixels_keep_their_own(channels: int, kind: Any, why: str, tmp_path: Path) -> None:
    source = f"data.source={arrays(tmp_path / 'd.npz', channels, kind)}"
    section, (note,) = settled(source, "model.name=torchvision:resnet18", "model.weights=default")
    assert section.mean is None and section.std is None
    assert why in note and "those of the training images" in note


@pytest.mark.parametrize(("mean", "told"), [("[0.485,0.456,0.406]", 0), ("[0.1307]", 1), ("[0.5,0.5,0.5]", 1)])
def test_a_value_of_ones_own_stays_and_is_told(mean: str, told: int) -> None:
    texts = ["model.name=torchvision:resnet18", "model.weights=default", f"data.mean={mean}"]
    section, notes = settled(*texts, "data.std=[0.229,0.224,0.225]")
    assert list(section.mean) == json.loads(mean)
    assert len(notes) == told and all("0.485, 0.456, 0.406" in note for note in notes)


def test_what_the_library_does_not_know_is_left_to_the_network() -> None:
    for name in ("torchvision:resnet19", "timm:resnet19", "torchvision:retinanet_resnet50_fpn"):
        assert settled(f"model.name={name}", "model.weights=default")[1] == []


def test_the_run_folder_records_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import squeezenet1_1

    monkeypatch.setattr(checkpoint, "_torchvision", lambda name: squeezenet1_1(num_classes=2).state_dict())
    config, run = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(
        f"data: {{source: '{arrays(tmp_path / 'd.npz')}'}}\n"
        "model: {name: 'torchvision:squeezenet1_1', weights: default}\n"
        "dense: {epochs: 0}\n"
    )
    assert cli.command_line(["run", str(config), "--out", str(run), "--until", "10-dense"]) == 0
    written = YAML(typ="safe").load((run / "config.yaml").read_text())
    assert tuple(written["data"]["mean"]) == IMAGENET[0] and tuple(written["data"]["std"]) == IMAGENET[1]
    assert cli.command_line(["run", str(run / "config.yaml"), "--out", str(run), "--until", "10-dense"]) == 0
