"""i-SpaSP: greedy sparse approximation of what a layer hands on, layer by layer, from samples alone (Wolfe and
Kyrillidis 2021, arXiv 2112.04905).

H are the channels as the next layer reads them, U(H) what it makes of them, without bias and norm. From S = {}: V =
U(H) - U(H restricted to S); y_j = the sum of d(|V|^2 / 2)/dH over samples and positions of channel j, with its sign;
Omega = S with the 2 s largest y; S = the s of Omega with the largest sum of H; ITERATIONS times. The channels in S
stay, with their weights.

It acts within blocks: on channels that one layer makes. s is the same share of every layer, the largest that meets the
target; what is between two shares goes by the sum of H.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.config.options.channels import Ranked
from pipeline.config.section import Positive
from pipeline.surgery.channels.groups import Group
from pipeline.surgery.channels.labels import Ids
from pipeline.surgery.channels.ledger import Flags, Floats
from pipeline.training.compute.distributed import Ranks
from pipeline.training.hooks import Hooks, Training
from pipeline.training.methods.channels.cutting import Cutting
from pipeline.training.steering.channels import Channels
from pipeline.training.steering.prunable import Rows

ITERATIONS = 20
HALVINGS = 20


class Options(Ranked):
    score_batches: Positive = Field(default=5, description="Batches of samples that selections look at.")
    score_batch_size: Positive = Field(default=256, description="Images in each of them.")


def ispasp(options: Options, training: Training) -> Hooks:
    """Needs no labels. Raises UserError where the target is out of reach with channels inside of blocks."""
    cutting = Cutting(options, training, eligible=inside_blocks)

    def score(step: int) -> Floats:
        channels = cutting.channels
        open_to = channels.can_go(cutting.alive) & inside_blocks(channels)
        share, result = even_share(cutting, open_to), np.ones(channels.costs.count) * 2
        for group in channels.costs.groups:
            classes = np.unique(group.classes)
            classes = classes[open_to[classes]]
            if len(classes):
                batches = training.samples(step, options.score_batches, options.score_batch_size)
                inputs = read_by(cutting.state.network, channels, group, batches)
                stays, sums = chosen(inputs, classes, max(1, round(share * len(classes))), training.ranks)
                result[classes] = stays + sums / (sums.max() + 1) / 2
        return result

    return cutting.hooks(score)


def inside_blocks(channels: Channels) -> Flags:
    """(count,): classes that one layer makes and convolutions without groups or linear layers read."""
    inside = np.zeros(channels.costs.count, bool)
    for part in readers_of(channels):
        inside[part.classes] = True
    for group in channels.costs.groups:
        if len(group.layers) > 1:
            inside[group.classes] = False
    return inside


def readers_of(channels: Channels) -> list[Rows]:
    """Weights that mix channels linearly, by their input axis."""
    readers = []
    for part in channels.readers:
        module = channels.traced.module.get_submodule(part.name.rpartition(".")[0])
        plain = isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1 and not module.transposed
        if part.axis == 1 and (plain or isinstance(module, nn.Linear)):
            readers.append(part)
    return readers


def even_share(cutting: Cutting, open_to: Flags) -> float:
    """The largest share of the channels of each group, of those open to a choice, that meets the target."""

    def share(ratio: float) -> float:
        alive = cutting.alive
        for group in cutting.channels.costs.groups:
            classes = np.unique(group.classes)
            classes = classes[open_to[classes]]
            alive[classes[max(1, round(ratio * len(classes))) :]] = False
        return cutting.share(alive)

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) <= cutting.asked else (low, middle)
    return low


def chosen(
    inputs: Sequence[tuple[nn.Module, Rows, Tensor]], classes: Ids, count: int, ranks: Ranks
) -> tuple[Flags, Floats]:
    """Which `count` of `classes` stay, (classes,), and the sum of H of each; `inputs`: what each reader reads, (N, C,
    ...) or (..., C), a batch at a time."""
    place = {int(c): i for i, c in enumerate(classes)}
    columns = [torch.as_tensor([place.get(int(c), len(classes)) for c in part.classes]) for _, part, _ in inputs]

    def by_class(values: Tensor, module: nn.Module, columns: Tensor) -> Tensor:
        each = values.movedim(channel_axis(module), 0).reshape(len(columns), -1).sum(1, dtype=torch.float64)
        sums = torch.zeros(len(classes) + 1, dtype=torch.float64, device=values.device)
        return sums.index_add_(0, columns.to(values.device), each)[:-1]

    def summed(parts: list[Tensor]) -> Floats:
        return np.asarray(ranks.sum(torch.stack(parts).sum(0)).cpu().numpy())

    sums = summed([by_class(h, module, own) for (module, _, h), own in zip(inputs, columns, strict=True)])
    stays = np.zeros(len(classes), bool)
    for _ in range(ITERATIONS):
        slopes = []
        for (module, _, h), own in zip(inputs, columns, strict=True):
            gone = torch.as_tensor(np.append(~stays, False))[own].to(h.device)
            shape = [-1 if axis == channel_axis(module) % h.dim() else 1 for axis in range(h.dim())]
            full = h.detach().requires_grad_()
            rest = linear_part(module, h * gone.view(shape).to(h.dtype)).detach()
            slopes.append(by_class(torch.autograd.grad(linear_part(module, full), full, rest)[0], module, own))
        order = np.argsort(-summed(slopes), kind="stable")[: 2 * count]
        omega = stays.copy()
        omega[order] = True
        best = np.flatnonzero(omega)[np.argsort(-sums[omega], kind="stable")[:count]]
        before, stays = stays, np.zeros(len(classes), bool)
        stays[best] = True
        if (stays == before).all():
            break
    return stays, sums


def channel_axis(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear) else 1


def linear_part(module: nn.Module, x: Tensor) -> Tensor:
    """The layer without its bias."""
    if isinstance(module, nn.Linear):
        return F.linear(x, module.weight)
    assert isinstance(module, nn.modules.conv._ConvNd)
    output: Tensor = module._conv_forward(x, module.weight, None)
    return output


@torch.no_grad()
def read_by(
    network: nn.Module, channels: Channels, group: Group, samples: Iterable[tuple[Tensor, ...]]
) -> list[tuple[nn.Module, Rows, Tensor]]:
    """What the readers of a group read, in eval mode, batch by batch."""
    inputs: list[tuple[nn.Module, Rows, Tensor]] = []
    modules, own = dict(network.named_modules()), set(group.classes.tolist())
    mode, handles = {module: module.training for module in network.modules()}, []
    for part in readers_of(channels):
        if own.intersection(part.classes.tolist()):
            module = modules[channels.names[part.name].rpartition(".")[0]]

            def seen(module: nn.Module, args: tuple[Tensor, ...], part: Rows = part) -> None:
                inputs.append((module, part, args[0].detach()))

            handles.append(module.register_forward_pre_hook(seen))
    network.eval()
    try:
        for batch in samples:
            network(*batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in mode.items():
            module.training = training
    return inputs
