"""Small networks that carry their own answers: the same function as an ONNX file, a torch module and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

SHAPE = (2, 3, 3)
CLASSES = 4
WEIGHT = np.random.default_rng(7).standard_normal((CLASSES, 18)).astype(np.float32)


def expected(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """relu(flatten(x) W^T), (N, 4)."""
    logits: NDArray[np.float32] = np.maximum(images.reshape(len(images), -1) @ WEIGHT.T, 0.0)
    return logits


class Net(nn.Module):
    """The function as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT.copy()))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images.flatten(1) @ self.weight.T)


def write_onnx(path: Path, *, batch: int | str = "batch", side: int | str = 3) -> Path:
    """The function as an ONNX file; `batch` and `side` as strings are dynamic axes."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["sum"], transB=1),
        helper.make_node("Relu", ["sum"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 2, 3, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    """(count, 2, 3, 3) float32."""
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)
