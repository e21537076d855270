"""A U-Net in a plain loop with a loss of its own: skips, transposed convolutions and maps as answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import demport
from runtime.macs import macs


def block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


class UNet(nn.Module):
    """(N, 1, H, W) -> (N, 1, H, W), two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = block(1, 8), block(8, 16), block(16, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.join2, self.join1, self.out = block(32, 16), block(16, 8), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        y = self.bottom(nn.functional.max_pool2d(second, 2))
        y = self.join2(torch.cat([self.up2(y), second], 1))
        y = self.join1(torch.cat([self.up1(y), first], 1))
        answer: Tensor = self.out(y)
        return answer


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    shares = logits.sigmoid()
    return 1 - 2 * (shares * masks).sum() / (shares.sum() + masks.sum())


def test_a_u_net_loses_channels_under_dice_and_still_segments() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(16, 1, 16, 16)
    for i in range(16):
        masks[i, :, i // 4 : i // 4 + 8, i % 4 : i % 4 + 8] = 1
    x = masks + 0.3 * torch.randn_like(masks)
    network = UNet()
    dense = macs(network, (1, 16, 16))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    sparse = demport.sparsify(network, optimizer, (x[:2],), steps=60, target={"macs": 0.5})
    for _ in range(60):
        loss = dice(sparse.network(x), masks) + sparse.penalty()
        sparse.optimizer.zero_grad()
        torch.autograd.backward(loss)
        sparse.optimizer.step()
        sparse.step(x)
    compact = sparse.finish()
    assert 0.4 < macs(compact.model, (1, 16, 16)) / dense < 0.56
    assert {name for name, _ in compact.model.named_parameters()} == {name for name, _ in network.named_parameters()}
    assert dice(compact.model.eval()(x), masks).item() < 0.1
    assert compact.certificate["law"]["max_rel_diff"] <= 1e-9
