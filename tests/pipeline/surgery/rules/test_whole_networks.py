"""Shapes of public networks that once raised, or froze channels without need."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.surgery import shrink
from tests.pipeline.surgery.laws import difference

DEAD = torch.tensor([True, False, False, True, False, False, False, False])


@torch.no_grad()
def half_dead(layer: nn.Conv2d | nn.Linear) -> None:
    layer.weight[DEAD] = 0
    layer.bias[DEAD] = 0  # type: ignore[index]


class Bilinear(nn.Module):
    """As timm's BilinearAttnTransform: one map a group, repeated for its channels, which are multiplied by it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.maps, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2 * 4, 1), nn.Conv2d(8, 5, 1)
        half_dead(self.a)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        batch, channels = y.shape[:2]
        maps = self.maps(nn.functional.adaptive_max_pool2d(y, (4, 1))).view(batch, 2, 4, 4)
        maps = maps.view(batch, 2, 1, 4, 4).expand(batch, 2, channels // 2, 4, 4).contiguous()
        maps = maps.view(batch, channels, 4, 4).sigmoid()
        return self.b(maps.matmul(y)).mean((2, 3))  # type: ignore[no-any-return]


def test_one_channel_at_several_places_of_a_batch_axis_stays_itself() -> None:
    """All eight stay, for the maps are counted by them: nothing raises."""
    net, x = Bilinear().eval(), torch.randn(2, 3, 4, 4)
    compact = shrink(net, (x,))
    assert difference(net, compact.model, (x,)) < 1e-6
    assert {row["reason"] for row in compact.certificate["frozen"]} >= {"channels on a batch axis of a product"}


class Registers(nn.Module):
    """As DINOv2 with registers: positions are cut in pieces along the tokens, whose channels are normalised."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.norm, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8), nn.Linear(8, 5)
        self.positions, self.registers = nn.Parameter(torch.randn(1, 5, 8)), nn.Parameter(torch.randn(1, 2, 8))
        half_dead(self.patches)
        with torch.no_grad():
            self.positions[..., DEAD] = 0
            self.registers[..., DEAD] = 0
            self.norm.weight[DEAD] = 0
            self.norm.bias[DEAD] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).mT
        y = torch.cat([self.registers.expand(len(y), -1, -1), y + self.positions[:, 1:]], 1)
        first = self.positions[:, :1].expand(len(y), -1, -1)
        return self.head(self.norm(torch.cat([first, y], 1)).mean(1))  # type: ignore[no-any-return]


def test_tokens_with_channels_of_their_own_do_not_freeze_those_that_are_normalised() -> None:
    net, x = Registers().eval(), torch.randn(2, 3, 4, 4)
    compact = shrink(net, (x,))
    assert compact.certificate["channels"] == {"before": 8, "dead": 2, "after": 6}
    assert difference(net, compact.model, (x,)) < 1e-6
    assert compact.model.get_parameter("norm.weight").shape == (6,)
