"""Published CIFAR-10 weights in our networks, on the JPEG test images, for which 81.03 % is known (ResNet-20)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import config
from pipeline.models import build

FILES = {"resnet20": "cifar10_resnet20-12fca82f.npz", "resnet56": "cifar10_resnet56-4bfd9763.npz"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(real_data: Path, name: str, folder: Path) -> nn.Module:
    with np.load(real_data / "weights" / FILES[name], allow_pickle=False) as file:
        save_file({key: torch.from_numpy(file[key]) for key in file.files}, folder / "w.safetensors")
    section = config.Model(name=f"cifar:{name}", weights=str(folder / "w.safetensors"))
    return build(section, num_classes=10, input_shape=(3, 32, 32)).eval()


def images(real_data: Path, n: int) -> tuple[Tensor, Tensor]:
    """The first n: normalised (n, 3, 32, 32), labels (n,). Each file shares its header with others."""
    with np.load(real_data / "cifar10" / "cifar10_test_jpeg.npz", allow_pickle=False) as file:
        labels = torch.from_numpy(file["y"][:n].astype(np.int64))
        headers = np.split(file["headers"], np.cumsum(file["header_size"])[:-1])
        scans = np.split(file["scan"], np.cumsum(file["scan_size"])[:-1])
        files = [
            headers[k].tobytes() + s.tobytes() + b"\xff\xd9" for k, s in zip(file["header"][:n], scans[:n], strict=True)
        ]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in files])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), labels


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(torch.cat([model(part).argmax(1) for part in torch.split(x, 250)]).eq(y).double().mean())


@pytest.mark.parametrize("name", FILES)
def test_published_weights_work_in_our_network(real_data: Path, tmp_path: Path, name: str) -> None:
    x, y = images(real_data, 500)
    model = network(real_data, name, tmp_path)
    found = accuracy(model, x, y)
    assert 0.76 < found < 0.90  # 500 images: standard error 1.7 points
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).weight.zero_()
    assert accuracy(model, x, y) < 0.3


@pytest.mark.slow
def test_resnet20_reproduces_the_known_accuracy_on_all_test_images(real_data: Path, tmp_path: Path) -> None:
    x, y = images(real_data, 10_000)
    assert len(y) == 10_000
    assert accuracy(network(real_data, "resnet20", tmp_path), x, y) == pytest.approx(0.8103, abs=0.0005)
