"""A torch network exported once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.onnx.from_torch import OnnxGraph, onnx_from_torch


class Residual(nn.Module):
    """Conv-BN-ReLU, one residual block, mean, linear; 3 convolutions, the first two with a batch norm to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.third = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        x = torch.relu(self.third(torch.relu(self.norm2(self.second(x)))) + x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def residual() -> Residual:
    """Seeded, with batch statistics that are not the identity."""
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        model(torch.randn(64, 3, 8, 8) * 2 + 1)
    return model.eval()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Residual, OnnxGraph]:
    """The network and its graph, opset 18."""
    model = residual()
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(1)
    made = onnx_from_torch(
        model,
        torch.randn(4, 3, 8, 8),
        folder / "dense.onnx",
        opset=18,
        max_abs_diff=1e-4,
        metadata={"demport.plan": "f00d", "demport.labels": "a,b"},
    )
    return model, made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that the code under test has to make."""
    return tmp_path / "out"
