"""An int8 graph in torch beside ONNX Runtime, in both forms; what is trained, and what cannot be."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from export.precision.int8 import Calibration, Runtime, Weights, quantise, ranges_of
from export.precision.pairs import with_values
from pipeline.config.task import task_of
from pipeline.training.quantisation.network import QuantisedNetwork, demand_trainable, followed
from runtime.errors import UserError
from tests.export.graphs import images, residual_net, save
from tests.export.lowered import run


def network(
    source: Path, runtime: Runtime = "tensorrt", weights: Weights = "channel"
) -> tuple[QuantisedNetwork, onnx.ModelProto, onnx.ModelProto]:
    full, calibration = onnx.load(str(source)), Calibration("minmax", runtime=runtime, weights=weights)
    low = quantise(full, ranges_of(source, [images(32)], calibration), (), source, calibration)
    return QuantisedNetwork(full, low, source), full, low


@pytest.mark.parametrize("weights", ["channel", "tensor"])
@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_it_computes_what_onnx_runtime_computes(tmp_path: Path, runtime: Runtime, weights: Weights) -> None:
    torch_network, full, low = network(residual_net(tmp_path / "net.onnx"), runtime, weights)
    x = images(64)
    before = torch_network(torch.from_numpy(x)).detach().numpy()
    onnx.save(low, str(tmp_path / "low.onnx"))
    np.testing.assert_allclose(before, run(tmp_path / "low.onnx", x), atol=1e-4)
    assert np.abs(before - run(tmp_path / "net.onnx", x)).max() > 1e-3
    with torch.no_grad():
        for parameter in torch_network.parameters():
            parameter.mul_(1 + 0.05 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(3)))
    moved = torch_network(torch.from_numpy(x)).detach().numpy()
    onnx.save(with_values(full, low, torch_network.values()), str(tmp_path / "moved.onnx"))
    np.testing.assert_allclose(moved, run(tmp_path / "moved.onnx", x), atol=1e-4)
    assert np.abs(moved - before).max() > 1e-2


def test_weights_biases_and_one_scale_for_each_pair_are_trained(tmp_path: Path) -> None:
    torch_network, _, _ = network(residual_net(tmp_path / "net.onnx"))
    values = torch_network.values()
    assert set(values.constants) == {
        "layer1.weight", "layer2.weight", "layer3.weight", "head.weight", "head.bias"
    }  # fmt: skip
    activations = {f"{name}_scale" for name in ("input", "p1", "r2", "c3", "m")}
    assert set(values.scales) == activations | {f"{name}_scale" for name in values.constants if name != "head.bias"}
    torch_network.train()
    torch_network(torch.from_numpy(images(16))).square().sum().backward()
    trained = dict(torch_network.named_parameters())
    assert len(trained) == 5 + 9
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained.values())


def test_a_batch_norm_that_is_left_keeps_its_statistics(tmp_path: Path) -> None:
    ones = np.ones(3, np.float32)
    nodes = [
        helper.make_node("BatchNormalization", ["input", "scale", "shift", "mean", "var"], ["n"], name="norm"),
        helper.make_node("Flatten", ["n"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w"], ["logits"], name="product"),
    ]
    w = np.random.default_rng(0).standard_normal((192, 5)).astype(np.float32)
    weights = {"scale": 2 * ones, "shift": ones, "mean": 0.5 * ones, "var": 4 * ones, "w": w}
    torch_network, full, low = network(save(tmp_path / "net.onnx", nodes, weights))
    x = torch.from_numpy(images(8))
    torch.testing.assert_close(torch_network.train()(x), torch_network.eval()(x))
    values = torch_network.values()
    np.testing.assert_array_equal(values.constants["w"], w)  # torch holds it transposed
    assert values.scales["w_scale"].shape == (5,)
    onnx.save(with_values(full, low, values), str(tmp_path / "low.onnx"))
    np.testing.assert_allclose(torch_network(x).detach(), run(tmp_path / "low.onnx", x.numpy()), atol=1e-4)


def test_a_deep_network_can_be_copied(tmp_path: Path) -> None:
    """As averages and teachers are; 200 layers are those of a MobileNet with its activations."""
    nodes, weights, value = [], {}, "input"
    for layer in range(100):
        weights[f"w{layer}"] = np.eye(3, dtype=np.float32)[:, :, None, None]
        nodes.append(helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], name=f"conv{layer}"))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [value := f"r{layer}"], name=f"relu{layer}"))
    nodes.append(helper.make_node("Flatten", [value], ["f"], name="flat"))
    nodes.append(helper.make_node("MatMul", ["f", "w"], ["logits"], name="product"))
    weights["w"] = np.random.default_rng(0).standard_normal((192, 5)).astype(np.float32)
    torch_network, _, _ = network(save(tmp_path / "net.onnx", nodes, weights))
    twin, x = copy.deepcopy(torch_network), torch.from_numpy(images(8))
    torch.testing.assert_close(twin(x), torch_network(x), rtol=0, atol=0)
    with torch.no_grad():
        next(iter(twin.parameters())).zero_()
    assert not torch.equal(twin(x), torch_network(x))
    assert not np.array_equal(twin.values().constants["w0"], torch_network.values().constants["w0"])


def test_what_cannot_be_trained_is_one_line(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["input"], ["f"], name="flat"),
        helper.make_node("Hardmax", ["f"], ["h"], name="hardest"),
        helper.make_node("MatMul", ["h", "w"], ["logits"], name="product"),
    ]
    source = save(tmp_path / "hard.onnx", nodes, {"w": np.ones((192, 5), np.float32)})
    with pytest.raises(UserError) as caught:
        followed(onnx.load(str(source)), source)
    assert "hard.onnx cannot be trained in int8: no gradient passes hardest, a Hardmax" in str(caught.value)
    assert "leave precision.qat out" in str(caught.value)
    with pytest.raises(UserError, match=r"^mine:net cannot be trained in int8: no gradient passes hardest, a Hardmax"):
        demand_trainable(source, "mine:net", task_of())
    demand_trainable(residual_net(tmp_path / "net.onnx"), "mine:net", task_of())
    named = dataclasses.replace(task_of(), named=lambda answer: answer["out"])
    with pytest.raises(UserError, match=r"outputs of a task judged by accuracy are not what it learns by; a task that"):
        demand_trainable(tmp_path / "net.onnx", "mine:net", named)
    model = onnx.load(str(tmp_path / "net.onnx"))
    model.graph.output.append(helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, ["batch", 8]))
    with pytest.raises(UserError, match=r"net\.onnx cannot be trained in int8: it has 2 outputs; one; leave"):
        followed(model, tmp_path / "net.onnx")
