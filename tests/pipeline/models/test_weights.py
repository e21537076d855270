"""Weights of a network as files: what comes back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline import config
from pipeline.models import build
from pipeline.models.weights import load_weights, save_weights
from runtime.errors import UserError
from tests.pipeline.models.test_models import GREY, made


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_weights_come_back_and_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = made("demo:resnet", GREY, width=4), made("demo:resnet", GREY, width=4)
    assert not same(one, two)
    save_weights(one, tmp_path / "a.safetensors")
    load_weights(two, tmp_path / "a.safetensors")
    save_weights(two, tmp_path / "b.safetensors")
    assert same(one, two)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.safetensors", "b.safetensors"]


def test_build_starts_from_given_weights(tmp_path: Path) -> None:
    one = made("demo:resnet", GREY, width=4)
    save_weights(one, tmp_path / "w.safetensors")
    section = config.Model(args={"width": 4}, weights=str(tmp_path / "w.safetensors"))
    two = build(section, num_classes=10, input_shape=GREY)
    assert same(one, two)
    assert two.training


def test_a_tied_tensor_is_written_once_and_read_under_any_name(tmp_path: Path) -> None:
    one = Tied()
    save_weights(one, tmp_path / "w.safetensors")
    tensors = load_file(tmp_path / "w.safetensors")
    assert sorted(tensors) == ["first.bias", "first.weight", "second.bias"]
    tensors["second.weight"] = tensors.pop("first.weight")
    save_file(tensors, tmp_path / "other.safetensors")
    two = Tied()
    load_weights(two, tmp_path / "other.safetensors")
    assert same(one, two)
    assert two.first.weight is two.second.weight


def test_half_precision_is_widened_and_a_missing_batch_count_is_no_fault(tmp_path: Path) -> None:
    one, two = made("demo:resnet", GREY, width=4), made("demo:resnet", GREY, width=4)
    tensors = {k: v.half() for k, v in one.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "w.safetensors")
    load_weights(two, tmp_path / "w.safetensors")
    wanted = one.state_dict()["conv1.weight"].half().float()
    assert torch.equal(two.state_dict()["conv1.weight"], wanted)
    assert two.state_dict()["conv1.weight"].dtype == torch.float32


def test_weights_that_do_not_fit_are_named_and_the_model_stays(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    model = made("demo:resnet", GREY, width=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sound = {k: torch.zeros_like(v) for k, v in before.items()}
    faults = {
        r"lacks 1 tensors of the network \(first linear.bias\)": {k: v for k, v in sound.items() if k != "linear.bias"},
        r"has 1 that the network does not \(first extra\)": sound | {"extra": torch.zeros(1)},
        r"linear.weight is float32 \(7, 16\); float32 \(10, 16\)": sound | {"linear.weight": torch.zeros(7, 16)},
        r"linear.bias is float64 \(10,\); float32 \(10,\)": sound | {"linear.bias": torch.zeros(10).double()},
        r"linear.bias holds NaN": sound | {"linear.bias": torch.full((10,), torch.nan)},
    }
    for message, tensors in faults.items():
        save_file(tensors, path)
        with pytest.raises(UserError, match=message):
            load_weights(model, path)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_infinity_is_taken_where_the_network_is_made_with_it(tmp_path: Path) -> None:
    class Masked(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("mask", torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))

    path = tmp_path / "w.safetensors"
    save_weights(Masked(), path)
    load_weights(Masked(), path)
    state = Masked().state_dict()
    for name, at, value in (("mask", (1, 1), -torch.inf), ("mask", (0, 1), torch.inf), ("weight", (0, 0), torch.inf)):
        wrong = {k: v.clone() for k, v in state.items()}
        wrong[name][at] = value
        save_file(wrong, path)
        with pytest.raises(UserError, match=f"{name} holds NaN or infinity; .* only where the network itself"):
            load_weights(Masked(), path)


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    model = made("demo:resnet", GREY, width=4)
    with pytest.raises(UserError, match=r"w.safetensors is no file"):
        load_weights(model, tmp_path / "w.safetensors")
    for content in (b"", b"hello", b"\x80\x04K\x01."):
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"w.safetensors cannot be read"):
            load_weights(model, tmp_path / "w.safetensors")
