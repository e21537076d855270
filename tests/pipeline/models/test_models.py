"""Networks by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from pipeline import config
from pipeline.config import Config
from pipeline.models import build
from pipeline.models.networks import OWN
from pipeline.workspace.fingerprint import has_own_code
from runtime.errors import UserError

GREY, COLOUR = (1, 8, 8), (3, 32, 32)


def made(name: str, input_shape: tuple[int, int, int] = COLOUR, **args: object) -> nn.Module:
    return build(config.Model(name=name, args=args), num_classes=10, input_shape=input_shape)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def widths(model: nn.Module, kernel: int) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (kernel, kernel)]


# ---- the networks, against counts worked out by hand or published


def test_demo_resnet_is_seven_convolutions_and_two_projections() -> None:
    model = made("demo:resnet", GREY)
    assert widths(model, 3) == [32, 32, 32, 64, 64, 128, 128]
    assert widths(model, 1) == [64, 128]
    convs = 9 * (1 * 32 + 2 * 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 32 * 64 + 64 * 128
    norms = 2 * (32 + 32 + 32 + 3 * 64 + 3 * 128)
    assert parameters(model) == convs + norms + 128 * 10 + 10
    assert widths(made("demo:resnet", GREY, width=8, blocks=2), 3) == [8] * 5 + [16] * 4 + [32] * 4
    sides: list[int] = []
    for stage in ("layer1", "layer2", "layer3"):
        model.get_submodule(stage).register_forward_hook(lambda _m, _i, y: sides.append(y.shape[-1]))
    model(torch.zeros(2, *GREY))
    assert sides == [8, 4, 2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar:resnet20", 269_722),  # 0.27 M in He et al. (2015), table 6
        ("cifar:resnet56", 853_018),  # 0.85 M there
        ("cifar:resnet18", 11_173_962),  # torchvision's 11,181,642 with 3x3 instead of 7x7 in the stem
    ],
)
def test_parameters_of_the_cifar_networks(name: str, expected: int) -> None:
    model = made(name)
    assert parameters(model) == expected
    assert model.training


def test_resnet18_puts_out_3904_channels() -> None:
    outputs: list[int] = []
    model = made("cifar:resnet18").eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _m, _i, y: outputs.append(y.shape[1]))
    model(torch.zeros(1, *COLOUR))
    assert len(outputs) == 17
    assert sum(outputs) == 3904


def test_resnet50_is_torchvision_s_with_the_stem_of_small_images() -> None:
    theirs = torchvision.models.resnet50(num_classes=10).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    ours = made("cifar:resnet50").eval()
    names = {name: name.replace("downsample", "skip").replace("fc", "linear") for name in theirs.state_dict()}
    ours.load_state_dict({names[name]: value for name, value in theirs.state_dict().items()})
    x = torch.randn(2, *COLOUR, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), theirs(x)) and bool(ours(x).abs().max() > 0)


def test_vgg16_has_thirteen_convolutions_and_three_linear_layers() -> None:
    model = made("cifar:vgg16_bn", hidden=64)
    assert widths(model, 3) == [64, 64, 128, 128, 256, 256, 256] + [512] * 6
    assert [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)] == [
        (512, 64),
        (64, 64),
        (64, 10),
    ]
    larger = made("cifar:vgg16_bn", (3, 64, 64), hidden=64, dropout=0.5)
    assert next(m for m in larger.modules() if isinstance(m, nn.Linear)).in_features == 512 * 4
    assert sum(isinstance(m, nn.Dropout) for m in larger.modules()) == 2


def test_padded_skip_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    from pipeline.models.cifar import PaddedSkip

    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    y = PaddedSkip(2, 4, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert y[0, 1].tolist() == [[0, 2], [8, 10]]
    assert y[0, 2].tolist() == [[16, 18], [24, 26]]
    assert not y[0, [0, 3]].any()


@pytest.mark.parametrize(
    "name", ["demo:resnet", "cifar:resnet18", "cifar:resnet20", "cifar:resnet50", "cifar:vgg16_bn"]
)
def test_own_networks_can_be_traced(name: str) -> None:
    args: dict[str, object] = {"hidden": 64} if name == "cifar:vgg16_bn" else {"width": 16}
    model = made(name, COLOUR, **args).eval()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, *COLOUR, generator=torch.Generator().manual_seed(0))
    assert torch.equal(traced(x), model(x))
    assert model(x).shape == (2, 10)


# ---- names


def test_torchvision_and_timm_networks_get_the_classes_and_channels() -> None:
    assert made("torchvision:resnet18")(torch.zeros(2, *COLOUR)).shape == (2, 10)
    pytest.importorskip("timm", reason="the extra timm is not installed")
    model = made("timm:resnet18", (1, 32, 32))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_without_timm_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="timm is not installed") as caught:
        made("timm:resnet18")
    assert caught.value.remedy == "pip install 'demport[timm]'"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar:resnet21", "perhaps cifar:resnet20, cifar:resnet"),
        ("demo:resnt", "perhaps demo:resnet"),
        ("torchvision:resnet19", "perhaps torchvision:resnet1"),
        ("timm:resnet18x", "perhaps timm:resnet18"),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones(name: str, hint: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="the extra timm is not installed")
    with pytest.raises(UserError, match=hint) as caught:
        made(name)
    assert name in caught.value.found


def test_a_detector_is_no_classifier() -> None:
    with pytest.raises(UserError, match=r"fasterrcnn_resnet50_fpn is a detector of two stages.*retinanet_resnet50_fpn"):
        made("torchvision:fasterrcnn_resnet50_fpn")
    with pytest.raises(UserError, match=r"fcn_resnet50 answers two images with OrderedDict; logits \(2, 10\)"):
        made("torchvision:fcn_resnet50")  # no weights of a backbone are fetched for it


USERS = """
from torch import nn
def build(num_classes, hidden=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def shaped(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], num_classes))
def eleven(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 11))
def two(num_classes):
    class Two(nn.Module):
        def forward(self, x):
            return x, x
    return Two()
def number():
    return 3
"""


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "demport_test_nets.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "demport_test_nets", raising=False)
    return "demport_test_nets"


def test_the_users_function_gets_what_it_accepts(users_module: str) -> None:
    assert parameters(made(f"{users_module}:build", GREY)) == 64 * 4 + 4 + 40 + 10
    assert parameters(made(f"{users_module}:build", GREY, hidden=5)) == 64 * 5 + 5 + 50 + 10
    assert parameters(made(f"{users_module}:fixed", GREY)) == 650
    assert parameters(build(config.Model(name=f"{users_module}:shaped"), num_classes=2, input_shape=GREY)) == 130


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        ("build", {"depth": 3}, r"model\.args \{'depth': 3\} raised TypeError: .*depth"),
        ("number", {}, r"returned int; a torch\.nn\.Module"),
        ("eleven", {}, r"answers two images with shape \(2, 11\); logits \(2, 10\)"),
        ("two", {}, "answers two images with tuple"),
        ("nothing", {}, "has no function nothing"),
    ],
)
def test_a_fault_of_the_users_function_is_named(
    users_module: str, function: str, args: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        made(f"{users_module}:{function}", GREY, **args)
    assert users_module in str(caught.value)


def test_a_network_for_other_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"torchvision:resnet18 cannot run on images \(1, 8, 8\)") as caught:
        made("torchvision:resnet18", GREY)
    assert "expected input[2, 1, 8, 8] to have 3 channels" in caught.value.found
    with pytest.raises(UserError, match=r"width 0, blocks 1; both at least 1"):
        made("demo:resnet", GREY, width=0)


# ---- weights


@pytest.mark.parametrize("name", OWN)
def test_a_config_takes_each_network_of_our_own_and_looks_for_no_file(name: str) -> None:
    config = Config.model_validate({"name": "x", "model": {"name": name}})
    assert config.model.name == name
    assert not has_own_code(config)


def test_mlps_have_their_widths_and_slopes_that_change_sign() -> None:
    model = made("mlp:all_relu", widths=[5, 6, 7], slope=0.5, dropout=0.1)
    slopes = [m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [-0.5, 0.5, -0.5]
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)][:-1] == [5, 6, 7]
    assert sum(isinstance(m, nn.ReLU) for m in made("mlp:relu").modules()) == 2
    with pytest.raises(UserError, match="at least one hidden layer"):
        made("mlp:relu", widths=[])
