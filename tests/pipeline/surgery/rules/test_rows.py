"""Groups of channels that go together or keep equal numbers: groups of convolutions and norms, heads, branches."""

from __future__ import annotations

import torch
from pytest import mark
from torch import Tensor, nn

from pipeline.surgery import shrink
from tests.pipeline.surgery.laws import difference, parameters, reasons

IMAGE = (torch.zeros(2, 3, 6, 6),)


def dead(layer: nn.Module, *channels: int) -> nn.Module:
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor[list(channels)] = 0
    return layer


@mark.parametrize(
    ("grouped", "size"),
    [
        (nn.Conv2d(16, 16, 3, padding=1, groups=4), 3 * 4 * 4 * 9 + 12),
        (nn.ConvTranspose2d(16, 8, 3, groups=4), None),
        (nn.GroupNorm(4, 16), 2 * 12),
    ],
)
def test_a_group_that_is_dead_on_both_sides_goes(grouped: nn.Module, size: int | None) -> None:
    outs = (0, 1, 2, 3)
    if isinstance(grouped, nn.ConvTranspose2d):
        with torch.no_grad():
            grouped.weight[:4] = 0
            assert grouped.bias is not None
            grouped.bias[:2] = 0
        net = nn.Sequential(dead(nn.Conv2d(3, 16, 1), *outs), grouped, nn.Conv2d(8, 4, 1)).eval()
    else:
        net = nn.Sequential(dead(nn.Conv2d(3, 16, 1), *outs), dead(grouped, *outs), nn.Conv2d(16, 4, 1)).eval()
    compact = shrink(net, IMAGE)
    first, second = (compact.model.get_submodule(name) for name in ("0", "1"))
    assert first.weight.shape == (12, 3, 1, 1) and difference(net, compact.model, IMAGE) < 1e-12
    assert size is None or parameters(second) == size
    assert getattr(second, "groups", 3) == 3
    again = shrink(compact.model, IMAGE)
    assert difference(net, again.model, IMAGE) < 1e-12


def test_a_group_with_a_live_output_stays() -> None:
    net = nn.Sequential(
        dead(nn.Conv2d(3, 16, 1), 0, 1, 2), dead(nn.Conv2d(16, 16, 1, groups=4), 0, 1, 2), nn.Conv2d(16, 4, 1)
    ).eval()
    compact = shrink(net, IMAGE)
    assert compact.certificate["channels"]["after"] == 32
    assert [g["kept_dead_because"] for g in compact.certificate["groups"]] == [
        {"groups or heads keep equal numbers": 3},
        {"groups or heads keep equal numbers": 3},
    ]
    assert [g["kept_dead"] for g in compact.certificate["groups"]] == [3, 3]
    assert difference(net, compact.model, IMAGE) < 1e-12


class Heads(nn.Module):
    """q, k and v of unequal widths inside each head; of every head the first three of eight are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Conv2d(8, 64, 1), nn.Conv2d(32, 8, 1)
        dead(self.qkv, *[i for i in range(64) if i % 8 < 3])

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q, k, v = self.qkv(x).view(n, 2, 32, h * w).split([8, 8, 16], dim=2)
        mixed = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        return self.proj(mixed.reshape(n, -1, h, w))  # type: ignore[no-any-return]


def test_unequal_pieces_of_a_head_shrink_each_by_its_own() -> None:
    net, example = Heads().eval(), (torch.zeros(2, 8, 4, 4),)
    compact = shrink(net, example)
    assert {r["layer"]: r["after"] for r in compact.certificate["layers"]} == {"qkv": 40, "proj": 8}
    assert difference(net, compact.model, example) < 1e-12


class Branches(nn.Module):
    """Two branches weighed by a softmax over them, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(dead(nn.Conv2d(3, 8, 1), 0, 1, 2) for _ in range(2))
        self.gate, self.out = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([branch(x) for branch in self.branches], 1)
        gates = self.gate(y.sum(1).mean((2, 3), keepdim=True)).view(x.shape[0], 2, 8).softmax(1)
        return self.out((y * gates[..., None, None]).sum(1))  # type: ignore[no-any-return]


def test_a_gate_goes_with_the_channel_it_weighs() -> None:
    net = Branches().eval()
    compact = shrink(net, IMAGE)
    widths = {r["layer"]: r["after"] for r in compact.certificate["layers"]}
    assert widths == {"branches.0": 5, "branches.1": 5, "gate": 10, "out": 4}
    assert difference(net, compact.model, IMAGE) < 1e-12 and not reasons(compact.certificate)


@mark.parametrize("eps", [None, 1e-3])
def test_a_root_mean_square_norm_counts_what_is_gone(eps: float | None) -> None:
    net = nn.Sequential(dead(nn.Linear(4, 8), 0, 1, 2), nn.RMSNorm(8, eps=eps), nn.Linear(8, 3)).eval()
    compact, example = shrink(net, (torch.zeros(2, 4),)), (torch.zeros(2, 4),)
    assert compact.certificate["channels"]["after"] == 5 and difference(net, compact.model, example) < 1e-12
    dead(compact.model.get_submodule("0"), 1)
    again = shrink(compact.model, example)
    assert again.certificate["channels"]["after"] == 4
    assert difference(compact.model, again.model, example) < 1e-12


class Decoder(nn.Module):
    """A linear layer whose outputs are the pixels of 8 maps; three maps are dead, and one has a single live pixel."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc, self.act, self.up = nn.Linear(16, 8 * 16), act, nn.ConvTranspose2d(8, 4, 4, 2, 1)
        dead(self.fc, *range(3 * 16), *range(4 * 16, 5 * 16 - 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.act(self.fc(x).relu().view(x.shape[0], -1, 4, 4)))  # type: ignore[no-any-return]


@mark.parametrize("act", [nn.Identity(), nn.Hardswish()])
def test_maps_made_of_a_linear_layers_outputs_go_as_a_whole(act: nn.Module) -> None:
    net, example = Decoder(act).eval(), (torch.zeros(2, 16),)
    compact = shrink(net, example)
    assert {r["layer"]: r["after"] for r in compact.certificate["layers"]} == {"fc": 5 * 16, "up": 4}
    assert compact.model.get_parameter("up.weight").shape == (5, 4, 4, 4)
    assert difference(net, compact.model, example) < 1e-12
    assert difference(net, shrink(compact.model, example).model, example) < 1e-12
