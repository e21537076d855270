"""What a file says of its weights: zeros, sparse initialisers that compute the same, and 2:4, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.onnx.from_torch import onnx_from_torch
from export.onnx.graph import open_graph, run_graph
from export.onnx.weights import two_of_four, weights_of, with_sparse_initialisers

SAMPLES = torch.rand(4, 1, 8, 8)


def written(folder: Path, share: float | None) -> Path:
    """A file whose convolutions have 2:4 (None), or of whose weights about `share` live."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    with torch.no_grad():
        for weight in (p for p in network.parameters() if p.ndim > 1):
            if share is not None:
                weight.mul_(torch.rand_like(weight) < share)
            elif weight.ndim == 4 and weight.shape[1] == 16:
                weight.mul_(torch.tensor([1.0, 0, 0, 1.0] * 4).view(1, 16, 1, 1))
    return onnx_from_torch(network.eval(), SAMPLES, folder / "net.onnx", max_abs_diff=1e-4, opset=20, metadata={}).path


def test_groups_of_four_along_an_axis_are_counted() -> None:
    weight = np.array([[1.0, 0, 0, 2], [1, 2, 3, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert two_of_four(weight, 1) == (4, 2)
    assert two_of_four(weight, 0) == (4, 3)
    assert two_of_four(weight[:3], 0) == (0, 0)


def test_a_pattern_is_proven_on_the_file_and_one_weight_more_breaks_it(tmp_path: Path) -> None:
    path = written(tmp_path, None)
    weights = weights_of(path, tmp_path / "sparse.onnx", SAMPLES.numpy())
    assert len(weights.two_of_four) == 1
    assert weights.groups == 32 * 4 * 9 + 10 * 128
    assert weights.groups_that_fit == 32 * 4 * 9
    assert weights.sparse_bytes is None and weights.reason is not None and "not be smaller" in weights.reason
    model = onnx.load(path)
    (tensor,) = [t for t in model.graph.initializer if t.name == weights.two_of_four[0]]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 1, 0, 0] = 1.0
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    broken = weights_of(path, tmp_path / "sparse.onnx", SAMPLES.numpy())
    assert broken.two_of_four == () and broken.groups_that_fit == 32 * 4 * 9 - 1


def test_sparse_initialisers_are_smaller_and_compute_the_same(tmp_path: Path) -> None:
    path, out = written(tmp_path, 0.02), tmp_path / "sparse.onnx"
    weights = weights_of(path, out, SAMPLES.numpy())
    assert weights.count == 16 * 9 + 16 * 32 * 9 + 5120
    assert weights.living == pytest.approx(0.02 * weights.count, rel=0.3)
    assert weights.sparse_path == out and weights.sparse_bytes == out.stat().st_size < weights.bytes / 3
    dense, sparse = (run_graph(open_graph(one), SAMPLES.numpy())[0] for one in (path, out))
    assert np.array_equal(dense, sparse) and np.abs(dense).max() > 0
    assert len(with_sparse_initialisers(onnx.load(path)).graph.sparse_initializer) == 3
