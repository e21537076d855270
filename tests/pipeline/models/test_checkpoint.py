"""Weights as people have them: what is read, what is refused, and when a head is replaced."""

from __future__ import annotations

import pickle
import urllib.error
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights

from pipeline import config
from pipeline.models import build
from runtime.errors import UserError
from tests.pipeline.models.test_models import COLOUR, GREY, made


def started(path: Path | str, name: str = "demo:resnet", classes: int = 10, **keys: Any) -> dict[str, Tensor]:
    args = {"width": 4} if name == "demo:resnet" else {}
    section = config.Model(name=name, args=args, weights=str(path), **keys)
    shape = GREY if name == "demo:resnet" else COLOUR
    return build(section, num_classes=classes, input_shape=shape).state_dict()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_state_dict_is_found_bare_under_its_usual_keys_and_behind_prefixes(tmp_path: Path) -> None:
    state = made("demo:resnet", GREY, width=4).state_dict()
    prefixed = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{name}": tensor for name, tensor in state.items()}}
    forms = [state, {"epoch": 3, "state_dict": prefixed}, {"model": state, "optimizer": {"lr": 0.1}},
             {"model_state_dict": state}, {"ema": {"state_dict": averaged}, "epoch": 1}]  # fmt: skip
    for form, suffix in zip(forms, (".pt", ".pth", ".bin", ".pt", ".pth"), strict=True):
        torch.save(form, tmp_path / f"w{suffix}")
        assert equal(started(tmp_path / f"w{suffix}"), state)
    assert not equal(made("demo:resnet", GREY, width=4).state_dict(), state)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("should_not_exist"),))


def test_what_is_no_checkpoint_is_one_line_and_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pt"
    torch.save({"state_dict": Runs()}, path)
    with pytest.raises(UserError, match=r"w\.pt cannot be read with weights_only=True") as caught:
        started(path)
    assert "\n" not in str(caught.value) and not (tmp_path / "should_not_exist").exists()
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match=r"w\.pt (cannot be read|holds no state dict)"):
        started(path)
    torch.save({"epoch": 3, "weights": {"a": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"w\.pt holds no state dict \(it has epoch, weights\)"):
        started(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"0" * 10_000)
    with pytest.raises(UserError, match=r"w\.pt is a compressed archive"):
        started(path)
    with pytest.raises(UserError, match=r"none\.bin is no file"):
        started(tmp_path / "none.bin")


def test_a_head_for_other_classes_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path, state = tmp_path / "w.pth", made("demo:resnet", GREY, width=4).state_dict()
    torch.save(state, path)
    with pytest.raises(UserError, match=r"linear\.weight, linear\.bias are for 10 classes; 7, as the data has; set"):
        started(path, classes=7)
    own = started(path, classes=7, new_head=True)
    assert own["linear.weight"].shape == (7, 16) and bool(own["linear.weight"].any())
    body = [name for name in state if not name.startswith("linear.")]
    assert all(torch.equal(own[name], state[name]) for name in body)
    torch.save({**state, "conv1.weight": torch.zeros(5, 1, 3, 3)}, path)
    with pytest.raises(UserError, match=r"conv1\.weight is float32 \(5, 1, 3, 3\)"):
        started(path, new_head=True)


def test_default_weights_come_from_the_hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import squeezenet1_1

    theirs = squeezenet1_1().state_dict()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(theirs, file)
    own = started("default", "torchvision:squeezenet1_1", new_head=True)
    assert len(own["classifier.1.bias"]) == 10
    assert torch.equal(own["features.0.weight"], theirs["features.0.weight"])
    with pytest.raises(UserError, match=r"default weights: classifier\.1\.weight, classifier\.1\.bias are for 1000"):
        started("default", "torchvision:squeezenet1_1")
    file.unlink()

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"squeezenet1_1 cannot be loaded \(.*no network.*; a machine"):
        started("default", "torchvision:squeezenet1_1")


def test_timm_default_weights_come_with_the_names_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    create, asked = timm.create_model, []

    def pretrained(model_name: str, **keys: Any) -> nn.Module:
        if keys.pop("pretrained", False):
            asked.append(keys)
        network: nn.Module = create(model_name, **keys)
        return network

    monkeypatch.setattr(timm, "create_model", pretrained)
    own = started("default", "timm:mobilenetv3_small_050", new_head=True)
    assert asked == [{"in_chans": 3}] and len(own["classifier.bias"]) == 10


def test_weights_that_the_config_cannot_mean_are_refused() -> None:
    for keys, words in (
        ({"name": "demo:resnet", "weights": "default"}, "default with demo:resnet"),
        ({"new_head": True}, "there are no weights"),
    ):
        with pytest.raises(ValueError, match=words):
            config.Model.model_validate(keys)
    for model, words in (({}, "no weights to take"), ({"weights": "w.pt", "new_head": True}, "head is not trained")):
        with pytest.raises(ValueError, match=words):
            config.Config.model_validate({"model": model, "dense": {"epochs": 0}})
