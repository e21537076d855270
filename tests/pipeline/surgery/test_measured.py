"""Channels that a census calls dead: they are held at zero, the most alive stay for alignment, and firing revives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.surgery import shrink
from pipeline.surgery.proof.evidence import confirm
from pipeline.surgery.watch import anatomy
from runtime.errors import UserError
from tests.pipeline.surgery.laws import difference, untouched
from tests.pipeline.surgery.nets import conv, image, net, pooled, still


def mask(width: int, *dead: int) -> Tensor:
    out = torch.zeros(width, dtype=torch.bool)
    out[list(dead)] = True
    return out


def two_layers(held: tuple[int, ...] = ()) -> Any:
    """relu(conv1) -> relu(conv2) -> fc; `held` channels of the first are multiplied by zero."""
    keep = (~mask(8, *held)).double().reshape(8, 1, 1)
    return net(
        lambda m, x: m.fc(pooled(F.relu(m.conv2(F.relu(m.conv1(x)) * keep)))) if held
        else m.fc(pooled(F.relu(m.conv2(F.relu(m.conv1(x)))))),
        conv1=conv(3, 8, bias=True), conv2=conv(8, 6, bias=True), fc=nn.Linear(6, 4),
    ).double()  # fmt: skip


def doubled(size: int = 8) -> tuple[Tensor, ...]:
    return tuple(x.double() for x in image(3, size))


def test_measured_channels_are_held_at_zero_even_where_they_would_fire() -> None:
    model = two_layers()
    with untouched(model):
        compact = shrink(model, doubled(), {"relu": mask(8, 1, 3), "relu_1": mask(6, 0)})
    shapes = {name: tuple(p.shape) for name, p in compact.model.named_parameters()}
    assert (shapes["conv1.weight"], shapes["conv2.weight"]) == ((6, 3, 3, 3), (5, 6, 3, 3))
    assert compact.certificate["law"]["held"] is True
    groups = {g["group"]: (g["by_proof"], g["by_measurement"]) for g in compact.certificate["groups"]}
    assert groups == {"conv1": (0, 2), "conv2": (0, 1)}
    assert difference(model, compact.model, doubled()) > 1e-3
    only_first = shrink(model, doubled(), {"relu": mask(8, 1, 3)})
    assert difference(two_layers(held=(1, 3)), only_first.model, doubled()) < 1e-12


def test_proof_and_measurement_are_told_apart() -> None:
    model = two_layers()
    still(model.conv1, (0, 5))
    compact = shrink(model, doubled(), {"relu": mask(8, 0, 2, 7)})
    (group,) = compact.certificate["groups"]
    assert (group["dead"], group["by_proof"], group["by_measurement"]) == (4, 2, 2)
    assert group["removed_indices"] == [0, 2, 5, 7]
    assert compact.plan.layers["conv1.weight"] == (1, 3, 4, 6)


def test_the_evidence_counts_the_channels_of_every_layer_of_a_group() -> None:
    """A depthwise convolution loses the channels of the one before it: one group of 8, output channels 16."""
    model = net(
        lambda m, x: m.fc(pooled(F.relu(m.deep(F.relu(m.conv1(x)))))),
        conv1=conv(3, 8), deep=conv(8, 8, groups=8), fc=nn.Linear(8, 4),
    ).double()  # fmt: skip
    still(model.conv1, (0,))
    told = shrink(model, doubled(), {"relu": mask(8, 2, 3)}).certificate
    assert [(g["channels"], g["by_proof"], g["by_measurement"]) for g in told["groups"]] == [(8, 1, 2)]
    assert told["channels"] == {"before": 16, "dead": 6, "after": 10}
    assert told["evidence"] == {"by_proof": 2, "by_measurement": 4}


def test_a_constant_proven_is_not_overruled_by_a_census() -> None:
    """0.5 under a padded convolution cannot go, whatever a census says of it; a zero one goes."""
    model = two_layers()
    still(model.conv1, (2,), 0.5)
    compact = shrink(model, doubled(), {"relu": mask(8, 2, 3)})
    assert compact.plan.layers["conv1.weight"] == (0, 1, 2, 4, 5, 6, 7)
    assert compact.certificate["groups"][0]["by_measurement"] == 1


@pytest.mark.parametrize(
    ("align", "left"),
    [(1, (1, 4, 6)), (2, (1, 3, 4, 6)), (4, (1, 3, 4, 6)), (8, tuple(range(8))), (16, tuple(range(8)))],
)
def test_alignment_keeps_the_most_alive_of_the_dead(align: int, left: tuple[int, ...]) -> None:
    """0, 2, 3, 5 and 7 are dead; the weights that make 3 are the largest of them."""
    model = two_layers()
    with torch.no_grad():
        model.conv1.weight[3] *= 10
    compact = shrink(model, doubled(), {"relu": mask(8, 0, 2, 3, 5, 7)}, align=align)
    assert compact.plan.layers.get("conv1.weight", tuple(range(8))) == left
    rows = {row["layer"]: row for row in compact.certificate["layers"]}
    assert (rows["conv1"]["dead"], rows["conv1"]["after"]) == (5, len(left))
    assert rows["conv2"]["after"] == 6


@pytest.mark.parametrize(("align", "left"), [(1, 1), (4, 4)])
def test_of_a_layer_without_a_live_channel_one_stays_aligned(align: int, left: int) -> None:
    compact = shrink(two_layers(), doubled(), {"relu": mask(8, *range(8))}, align=align)
    assert len(compact.plan.layers["conv1.weight"]) == left
    assert compact.certificate["channels"] == {"before": 14, "dead": 14, "after": 2 * left}  # conv2 makes constants


def one_by_one(activation: nn.Module) -> Any:
    """Channel c of a 1x1 convolution fires where the picture is above c - 1."""
    model = net(
        lambda m, x: m.fc(pooled(m.act(m.conv(x)))), conv=nn.Conv2d(1, 4, 1), act=activation, fc=nn.Linear(4, 2)
    )
    with torch.no_grad():
        model.conv.weight.fill_(1)
        model.conv.bias.copy_(torch.tensor([1.0, 0.0, -1.0, -2.0]))
    return model


def test_one_image_of_the_training_set_that_fires_revives_a_channel() -> None:
    model = one_by_one(nn.ReLU())
    pictures = torch.full((600, 1, 2, 2), -3.0)
    pictures[599, 0, 1, 1] = 0.25  # the last image lights channels 0 and 1
    seen = confirm(anatomy(model, (pictures[:2],)), {"act": mask(4, 0, 1, 2, 3)}, torch.split(pictures, 256))
    dead, record = seen.dead, seen.document()
    assert dead["act"].tolist() == [False, False, True, True]
    assert record == {"images": 600, "revived": 2, "largest_activation": {"act": 0.0}, "approximate": []}
    assert shrink(model, (pictures[:2],), dead).plan.layers["conv.weight"] == (0, 1)


def test_a_census_that_was_right_is_confirmed_as_it_is() -> None:
    model, pictures = one_by_one(nn.ReLU()), torch.full((300, 1, 2, 2), -0.5)
    seen = confirm(anatomy(model, (pictures[:2],)), {"act": mask(4, 1, 3)}, torch.split(pictures, 256))
    dead, record = seen.dead, seen.document()
    assert torch.equal(dead["act"], mask(4, 1, 3))
    assert (record["images"], record["revived"]) == (300, 0)


def test_for_other_activations_death_is_an_approximation_and_bounded() -> None:
    """GELU at -2 and -3 is small, not zero: removing it changes the answers by at most its size times the weights."""
    model, pictures = one_by_one(nn.GELU()), torch.linspace(-1.2, -0.9, 512).reshape(128, 1, 2, 2)
    traced = anatomy(model, (pictures[:2],))
    seen = confirm(traced, {"act": mask(4, 2, 3)}, torch.split(pictures, 256))
    dead, record = seen.dead, seen.document()
    assert traced.exact == set()
    assert record["approximate"] == ["act"]
    largest = record["largest_activation"]["act"]
    assert largest == pytest.approx(float(-F.gelu(torch.tensor(-1.9))), rel=1e-5)
    compact = shrink(model, (pictures[:2],), dead)
    with torch.no_grad():
        change = (compact.model(pictures) - model(pictures)).abs().amax(0)
        bound = largest * model.fc.weight[:, 2:].abs().sum(1)
    assert compact.plan.layers["conv.weight"] == (0, 1)
    assert bool((change > 0).all())
    assert bool((change <= bound * 1.0001).all())


def test_a_name_nobody_watches_is_refused() -> None:
    with pytest.raises(UserError, match="no tensor of the network is named relu_9") as caught:
        shrink(two_layers(), doubled(), {"relu_9": mask(8, 0)})
    assert caught.value.remedy == "take the census on this network"


def test_a_mask_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dead mask of relu has shape \(7,\)") as caught:
        shrink(two_layers(), doubled(), {"relu": mask(7, 0)})
    assert "its channels do not" in str(caught.value)


@pytest.mark.parametrize(("dead", "left"), [(range(5, 6), 4), (range(64), 3), (range(63), 4), (range(50, 140), 3)])
def test_a_channel_that_is_flattened_before_its_activation_is_dead_where_all_its_places_are(
    dead: range, left: int
) -> None:
    """Four channels of 8x8 places; one place that never fires is not the channel."""
    model = net(lambda m, x: m.fc(F.relu(m.conv(x).flatten(1))), conv=conv(3, 4, bias=True), fc=nn.Linear(256, 4))
    assert anatomy(model, image()).watch == {"relu": 256}
    compact = shrink(model, image(), {"relu": mask(256, *dead)}).model
    assert compact.get_parameter("conv.weight").shape[0] == left
