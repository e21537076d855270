"""Which entries of which parameters make nothing but dead units, worked out by hand on networks of a few layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import trace
from pipeline.surgery.watch import anatomy
from pipeline.surgery.watch.ownership import Units
from tests.pipeline.surgery.nets import conv, image, net, pooled

Rows = dict[str, list[int]]


def units(model: nn.Module, example: tuple[Tensor, ...]) -> Units:
    return Units(analyse(trace(model, example)), anatomy(model, example).axis)


def rows(model: nn.Module, dead: Mapping[str, Tensor], axis: int = 0, example: Any = None) -> Rows:
    """Per parameter the indices on `axis` (on the only axis of a vector) where all is gone; elsewhere nothing is."""
    found, shapes = {}, {name: p.shape for name, p in model.named_parameters()}
    for name, flags in units(model, example or image()).gone(dead).items():
        full = torch.as_tensor(flags).expand(shapes[name])
        lines = full.movedim(axis if full.dim() > 1 else 0, 0).flatten(1) if full.dim() > 1 else full[:, None]
        assert bool((lines.all(1) == lines.any(1)).all()), f"{name} is gone in part of a row"
        found[name] = lines.all(1).nonzero().flatten().tolist()
    return found


def mask(size: int, *dead: int) -> Tensor:
    return torch.tensor([i in dead for i in range(size)])


def stream() -> Any:
    """Stem of 4 channels, a block with an identity skip, and one whose inside is 3 wide and whose skip is projected.

    Watched: relu (stem), relu_1 and relu_2 (first block), relu_3 and relu_4 (second block).
    """

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.bn0(m.stem(x)))
        y = m.bn2(m.conv2(F.relu(m.bn1(m.conv1(x)))))
        y += x
        x = F.relu(y, inplace=True)
        y = m.bn4(m.conv4(F.relu(m.bn3(m.conv3(x)))))
        out: Tensor = m.fc(pooled(F.relu(y + m.bn5(m.skip(x)))))
        return out

    return net(
        forward, stem=conv(3, 4), bn0=nn.BatchNorm2d(4), conv1=conv(4, 5), bn1=nn.BatchNorm2d(5), conv2=conv(5, 4),
        bn2=nn.BatchNorm2d(4), conv3=conv(4, 3), bn3=nn.BatchNorm2d(3), conv4=conv(3, 6), bn4=nn.BatchNorm2d(6),
        skip=conv(4, 6, 1), bn5=nn.BatchNorm2d(6), fc=nn.Linear(6, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dead", "expected"),
    [
        ({}, {}),
        ({"relu": mask(4, 2)}, {"stem.weight": [2], "bn0.weight": [2], "bn0.bias": [2]}),
        ({"relu_1": mask(5, 0, 4)}, {"conv1.weight": [0, 4], "bn1.weight": [0, 4], "bn1.bias": [0, 4]}),
        ({"relu_2": mask(4, 1)}, {"conv2.weight": [1], "bn2.weight": [1], "bn2.bias": [1]}),
        (
            {"relu_4": mask(6, 5, 3)},
            {n: [3, 5] for n in ("conv4.weight", "bn4.weight", "bn4.bias", "skip.weight", "bn5.weight", "bn5.bias")},
        ),
        (
            {"relu": mask(4, 1), "relu_2": mask(4, 1, 2)},
            {n: [1] for n in ("stem.weight", "bn0.weight", "bn0.bias")}
            | {n: [1, 2] for n in ("conv2.weight", "bn2.weight", "bn2.bias")},
        ),
        ({"relu_3": mask(3, 0, 1, 2)}, {n: [0, 1, 2] for n in ("conv3.weight", "bn3.weight", "bn3.bias")}),
    ],
    ids=["none", "stem", "inside", "after the addition", "projection", "two of a stream", "a whole layer"],
)
def test_a_unit_of_a_residual_network_is_made_by_its_own_layers(dead: dict[str, Tensor], expected: Rows) -> None:
    model = stream()
    assert rows(model, dead) == expected
    alive = {name: torch.zeros_like(flags) for name, flags in dead.items()}
    assert rows(model, alive) == {}


def test_in_a_stream_without_activations_a_row_makes_a_unit_in_every_later_block() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        x = x + m.conv1(F.relu(m.bn1(x)))
        return m.fc(pooled(F.relu(m.bn2(x))))

    model = net(
        forward, stem=conv(3, 4), bn1=nn.BatchNorm2d(4), conv1=conv(4, 4), bn2=nn.BatchNorm2d(4), fc=nn.Linear(4, 2)
    )
    first, last = {"bn1.weight": [0, 1], "bn1.bias": [0, 1]}, {n: [1, 2] for n in ("conv1.weight", "bn2.weight")}
    assert rows(model, {"relu": mask(4, 0, 1)}) == first
    assert rows(model, {"relu_1": mask(4, 1, 2)}) == last | {"bn2.bias": [1, 2]}
    both = {"relu": mask(4, 0, 1), "relu_1": mask(4, 1, 2)}
    assert rows(model, both) == first | last | {"bn2.bias": [1, 2], "stem.weight": [1]}


def test_what_is_used_twice_is_gone_where_both_units_are_dead() -> None:
    model = net(
        lambda m, x: pooled(F.relu(m.bn(m.one(x))) + F.relu(m.bn(m.two(x)))),
        one=conv(3, 4), two=conv(3, 4), bn=nn.BatchNorm2d(4),
    )  # fmt: skip
    dead = {"relu": mask(4, 0, 1), "relu_1": mask(4, 1, 2)}
    shared = {"bn.weight": [1], "bn.bias": [1]}
    assert rows(model, dead) == {"one.weight": [0, 1], "two.weight": [1, 2]} | shared
    model.two.weight = model.one.weight
    assert rows(model, dead) == {"one.weight": [1]} | shared
    again = net(lambda m, x: pooled(F.relu(m.mid(F.relu(m.mid(x))))), mid=conv(4, 4, bias=True))
    assert rows(again, dead, example=image(4)) == {"mid.weight": [1], "mid.bias": [1]}


def test_what_a_module_uses_whose_inside_is_not_known_is_not_gone() -> None:
    model = net(lambda m, x: pooled(F.relu(m.one(x)) + m.two(x)), one=conv(3, 4, bias=True), two=conv(3, 4))
    model.two.weight = model.one.weight
    dead = {"relu": mask(4, 1)}
    assert rows(model, dead) == {"one.bias": [1]}
    model.two.register_forward_hook(lambda *_: None)  # it may do anything
    assert rows(model, dead) == {"one.bias": [1]}
    model.two.weight = nn.Parameter(torch.ones(4, 3, 3, 3))
    assert rows(model, dead) == {"one.weight": [1], "one.bias": [1]}


def test_channels_behind_a_concatenation_are_those_of_their_branch() -> None:
    model = net(
        lambda m, x: pooled(F.relu(m.bn(torch.cat([m.a(x), x, m.b(x)], 1)))),
        a=conv(3, 2, bias=True), b=conv(3, 4, bias=True), bn=nn.BatchNorm2d(9),
    )  # fmt: skip
    assert rows(model, {"relu": mask(9, 1, 2, 5, 8)}) == {
        "a.weight": [1], "a.bias": [1], "b.weight": [0, 3], "b.bias": [0, 3], "bn.weight": [1, 2, 5, 8],
        "bn.bias": [1, 2, 5, 8],
    }  # fmt: skip


def test_channels_taken_apart_are_those_that_they_were() -> None:
    model = net(_apart, stem=conv(3, 6), left=conv(2, 3, 1))
    dead = {"relu": mask(2, 0), "relu_1": mask(4, 1, 3)}  # channels 0 and 1 of the stem, and 2 to 5
    assert rows(model, dead) == {"stem.weight": [0, 3, 5]}
    chunked = net(lambda m, x: pooled(torch.cat([F.relu(y) for y in m.stem(x).chunk(2, 1)], 1)), stem=conv(3, 6))
    assert rows(chunked, {"relu": mask(3, 0), "relu_1": mask(3, 1)}) == {"stem.weight": [0, 4]}
    single = net(lambda m, x: pooled(F.relu(y := m.stem(x))) + y[:, 3].mean((1, 2))[:, None], stem=conv(3, 6))
    assert rows(single, {"relu": mask(6, 2, 3)}) == {"stem.weight": [2]}


def _apart(m: Any, x: Tensor) -> Any:
    y = m.stem(x)
    return pooled(torch.cat([m.left(F.relu(y[:, :2])), F.relu(y[:, 2:])], 1))


def test_linear_layers_and_features_of_a_flattened_image() -> None:
    model = net(
        lambda m, x: m.last(F.gelu(m.norm(m.mid(m.drop(F.relu(m.conv(x)).flatten(1)))))),
        conv=conv(3, 2), drop=nn.Dropout(), mid=nn.Linear(128, 5), norm=nn.BatchNorm1d(5), last=nn.Linear(5, 2),
    )  # fmt: skip
    dead = {"relu": mask(2, 1), "gelu": mask(5, 0, 4)}
    assert rows(model, dead) == {
        "conv.weight": [1], "mid.weight": [0, 4], "mid.bias": [0, 4], "norm.weight": [0, 4], "norm.bias": [0, 4],
    }  # fmt: skip
    late = net(lambda m, x: F.relu(m.conv(x).flatten(1)), conv=conv(3, 2))
    dead = {"relu": mask(128, *range(63), *range(64, 128))}  # of the first channel one position is alive
    assert rows(late, dead) == {"conv.weight": [1]}


def test_a_depthwise_convolution_has_a_row_for_each_channel() -> None:
    layers = {"wide": conv(3, 4, 1), "bn1": nn.BatchNorm2d(4), "depth": conv(4, 8, groups=4), "bn2": nn.BatchNorm2d(8)}
    model = net(lambda m, x: pooled(F.relu6(m.bn2(m.depth(F.relu6(m.bn1(m.wide(x))))))), **layers)
    depth = {"depth.weight": [2, 3, 5], "bn2.weight": [2, 3, 5], "bn2.bias": [2, 3, 5]}
    wide: Rows = {n: [1] for n in ("wide.weight", "bn1.weight", "bn1.bias")}
    dead = mask(8, 2, 3, 5)  # two outputs for each input: 2 and 3 are those of channel 1
    assert rows(model, {"relu6_1": dead}) == depth
    assert rows(model, {"relu6": mask(4, 1)}) == wide
    bare = net(lambda m, x: pooled(F.relu6(m.bn2(m.depth(m.bn1(m.wide(x)))))), **layers)
    assert rows(bare, {"relu6": dead}) == depth | wide


def test_outputs_of_a_transposed_convolution_lie_on_the_second_axis() -> None:
    model = net(lambda m, x: pooled(F.relu(m.up(x))), up=nn.ConvTranspose2d(3, 5, 3))
    found = rows(model, {"relu": mask(5, 0, 3)}, axis=1)
    assert found == {"up.weight": [0, 3], "up.bias": [0, 3]}
    grouped = net(lambda m, x: pooled(F.relu(m.up(x))), up=nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False))
    flags = units(grouped, image(4)).gone({"relu": mask(6, 1, 5)})["up.weight"]
    assert flags.shape == (4, 3, 1, 1)  # inputs 0 and 1 make outputs 0 to 2, inputs 2 and 3 the others
    assert flags[..., 0, 0].tolist() == [[False, True, False]] * 2 + [[False, False, True]] * 2
    forward = net(lambda m, x: pooled(F.relu(m.mid(x))), mid=conv(4, 6, groups=2))
    assert rows(forward, {"relu": mask(6, 1, 5)}, example=image(4)) == {"mid.weight": [1, 5]}


def test_what_is_also_read_by_something_else_than_the_unit_is_not_gone() -> None:
    def gated(m: Any, x: Tensor) -> Any:
        y = m.bn(m.conv(x))
        gate = torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3), keepdim=True)))))
        return pooled(F.relu(y * gate))

    model = net(gated, conv=conv(3, 4), bn=nn.BatchNorm2d(4), down=conv(4, 3, 1), up=conv(3, 4, 1, bias=True))
    assert rows(model, {"relu_1": mask(4, 2)}) == {"up.weight": [2], "up.bias": [2]}
    answer = net(lambda m, x: (F.relu(y := m.conv(x)), y), conv=conv(3, 4))
    assert rows(answer, {"relu": mask(4, 2)}) == {}
    twice = net(lambda m, x: pooled(F.relu(y := m.conv(x)) + F.silu(y)), conv=conv(3, 4))
    assert rows(twice, {"relu": mask(4, 1, 2), "silu": mask(4, 2, 3)}) == {"conv.weight": [2]}


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.cumsum(1), lambda x: x.softmax(1), F.normalize, lambda x: x.data, lambda x: x.sort(1)[0],
        lambda x: x.mean(1, keepdim=True),
    ],
    ids=["cumsum", "softmax", "normalize", "data", "sort", "mean"],
)  # fmt: skip
def test_what_mixes_or_is_not_understood_ends_the_way(other: Any) -> None:
    layers = {"conv": conv(3, 4), "bn": nn.BatchNorm2d(4)}
    beside = net(lambda m, x: pooled(F.relu(y := m.bn(m.conv(x)))) + pooled(other(y)), **layers)
    assert anatomy(beside, image()).watch == {"relu": 4}
    assert rows(beside, {"relu": mask(4, 1)}) == {}
    between = net(lambda m, x: pooled(F.relu(other(m.bn(m.conv(x))))), **layers)
    assert rows(between, dict.fromkeys(anatomy(between, image()).watch, mask(4, 1))) == {}
    alone = net(lambda m, x: pooled(F.relu(m.bn(m.conv(x)))), **layers)
    assert rows(alone, {"relu": mask(4, 1)}) == {"conv.weight": [1], "bn.weight": [1], "bn.bias": [1]}


def test_channels_of_two_axes_are_told_apart() -> None:
    """(B, 4, 64) -> (B, 4, 4), then the mean over the features: what is left are the channels of the convolution."""
    layers = {"conv": conv(3, 4), "mid": nn.Linear(64, 4)}
    model = net(lambda m, x: F.relu(m.mid(m.conv(x).flatten(2)).mean(2)), **layers)
    assert anatomy(model, image()).watch == {"relu": 4}
    assert rows(model, {"relu": mask(4, 1)}) == {}  # the linear layer mixes, though not channels: no rule says so


def test_a_norm_over_channels_ends_the_way_and_its_own_scales_are_of_one_channel_each() -> None:
    model = net(lambda m, x: pooled(F.relu(m.norm(m.conv(x)))), conv=conv(3, 4), norm=nn.GroupNorm(2, 4))
    assert rows(model, {"relu": mask(4, 1)}) == {"norm.weight": [1], "norm.bias": [1]}
    tokens = net(
        lambda m, x: m.last(F.gelu(m.norm(m.mid(x.flatten(2).transpose(1, 2))))),
        mid=nn.Linear(3, 4), norm=nn.LayerNorm(4), last=nn.Linear(4, 2),
    )  # fmt: skip
    assert rows(tokens, {"gelu": mask(4, 3)}) == {"norm.weight": [3], "norm.bias": [3]}
    own = net(lambda m, x: pooled(F.relu(m.norm(m.conv(x)))), conv=conv(3, 4), norm=nn.InstanceNorm2d(4, affine=True))
    assert rows(own, {"relu": mask(4, 1)}) == {"conv.weight": [1], "norm.weight": [1], "norm.bias": [1]}


def test_parameters_read_by_name_are_gone_like_those_of_modules() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = F.conv2d(x, m.weight, m.bias, padding=1) * m.scale
        y = F.layer_norm(y.permute(0, 2, 3, 1), (4,), m.gamma, m.beta).permute(0, 3, 1, 2) if m.gamma is not None else y
        return F.linear(F.relu(F.max_pool2d(F.dropout(y).double().float(), 2)).mean((2, 3)), m.last)

    def made(normalised: bool) -> Any:
        weights = {"weight": torch.randn(4, 3, 3, 3), "scale": torch.ones(1, 4, 1, 1), "last": torch.randn(2, 4)}
        model = net(forward, **{n: nn.Parameter(w) for n, w in weights.items()}, bias=nn.Parameter(torch.ones(4)))
        model.gamma, model.beta = (nn.Parameter(torch.ones(4)) if normalised else None for _ in range(2))
        return model

    found = units(made(False), image()).gone({"relu": mask(4, 1, 3)})
    assert sorted(found) == ["bias", "scale", "weight"]
    assert found["weight"].shape == (4, 1, 1, 1)
    assert found["scale"].shape == (1, 4, 1, 1)
    assert all(flags.ravel().tolist() == [False, True, False, True] for flags in found.values())
    assert rows(made(True), {"relu": mask(4, 1, 3)}) == {"gamma": [1, 3], "beta": [1, 3]}


def test_a_parameter_asked_for_its_type_alone_is_not_read() -> None:
    model = net(lambda m, x: pooled(F.relu(m.conv(x.to(m.conv.weight.dtype)))), conv=conv(3, 4))
    assert rows(model, {"relu": mask(4, 1)}) == {"conv.weight": [1]}
    read = net(lambda m, x: pooled(F.relu(m.conv(x))) + m.conv.weight.sum(), conv=conv(3, 4))
    assert rows(read, {"relu": mask(4, 1)}) == {}


def test_slopes_belong_to_the_units_that_they_shape() -> None:
    model = net(lambda m, x: pooled(m.act(m.conv(x))), conv=conv(3, 4), act=nn.PReLU(4))
    assert rows(model, {"act": mask(4, 0, 2)}) == {"conv.weight": [0, 2], "act.weight": [0, 2]}
    one = net(lambda m, x: pooled(m.act(m.conv(x))), conv=conv(3, 4), act=nn.PReLU())
    assert rows(one, {"act": mask(4, 0, 2)}) == {"conv.weight": [0, 2]}


def test_four_channels_shuffled_into_one_make_its_unit() -> None:
    model = net(lambda m, x: pooled(F.relu(F.pixel_shuffle(m.conv(x), 2))), conv=conv(3, 8))
    assert rows(model, {"relu": mask(2, 1)}) == {"conv.weight": [4, 5, 6, 7]}
    apart = net(lambda m, x: pooled(F.relu(F.pixel_unshuffle(m.conv(x), 2))), conv=conv(3, 2))
    assert rows(apart, {"relu": mask(8, 0, 1, 2, 4, 5, 6, 7)}) == {"conv.weight": [1]}
