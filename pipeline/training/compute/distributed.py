"""Several processes that train one network together: torchrun starts them, DistributedDataParallel joins the gradients.

Every process holds the same network, optimizer and method, and sees its share of each batch; the first one alone
writes. The statistics of batch norm are those of the whole batch.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.data import Part
from pipeline.training.compute.onednn_workaround import without_onednn
from runtime.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1

    @property
    def part(self) -> Part:
        return self.rank, self.world

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean of x over all processes, in place."""
        return self.sum(x).div_(self.world)

    def same(self, x: Tensor) -> Tensor:
        """The first process's x; all have the same shape."""
        if self.world > 1:
            x = x.contiguous()
            dist.broadcast(x, src=0)
        return x

    def agree(self, value: Any) -> Any:
        """The first process's value; a small picklable thing of our own making."""
        if self.world == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def joined(self, network: nn.Module, device: torch.device, example: tuple[Tensor, ...]) -> nn.Module:
        """What to call in training: gradients are averaged over the processes after each backward pass; `example`:
        inputs, at least 2 samples."""
        if self.world == 1:
            return network
        synced = with_joined_norms(network, device)
        # It waits for every gradient, and a method's own are the same in all processes.
        unused = names_of(without_gradient(network, example), synced)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(synced, unused)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(synced, device_ids=[device.index] if device.type == "cuda" else None)


ALONE = Ranks()


def expected_ranks() -> Ranks:
    """What torchrun's environment variables say; one process where they are not set. Raises UserError."""
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise UserError(
            f"RANK={os.environ.get('RANK')}, WORLD_SIZE={os.environ.get('WORLD_SIZE')}",
            "what torchrun sets",
            "start with torchrun, or unset both",
        )
    return Ranks(rank, world)


@contextmanager
def together(device: torch.device) -> Iterator[Ranks]:
    """Joins the processes that torchrun started: NCCL between GPUs, gloo between CPUs. Raises UserError where one of
    them is gone."""
    ranks = expected_ranks()
    if ranks.world == 1 or dist.is_initialized():
        yield ranks
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            raise UserError(
                f"another process of this training is gone ({first_words(str(error))})",
                f"{ranks.world} processes that all train to the end",
                "look at what it said, and start again: the training goes on from its last checkpoint",
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def first_words(message: str) -> str:
    """The first sentence of torch's error, less the line of its code that it begins with."""
    return re.sub(r"^\[[^]]*\]\s*", "", message.partition("\n")[0]).partition(". ")[0]


def own_device(device: torch.device) -> torch.device:
    """One GPU for each process of a machine."""
    if device.type != "cuda" or expected_ranks().world == 1:
        return device
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own


def demand_equal_shares(batch_size: int, images: int, ranks: Ranks) -> None:
    """Averages over processes are averages over the batch where every process has as many images. Raises UserError."""
    size = min(batch_size, images)
    if size % ranks.world:
        raise UserError(
            f"batches of {size} images on {ranks.world} processes", "as many images for each", "change batch_size"
        )


def without_gradient(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[nn.Parameter]:
    """Parameters that are trained and that the answer to `inputs` (at least 2 samples) does not depend on."""
    apart = copy.deepcopy(network).train()
    pairs = [(own, p) for own, p in zip(network.parameters(), apart.parameters(), strict=True) if p.requires_grad]
    with torch.random.fork_rng(devices=[x.device for x in inputs if x.device.type == "cuda"][:1]), without_onednn():
        y = apart(*inputs)
        if not isinstance(y, Tensor):
            return []  # the first step says what is wrong
        gradients = torch.autograd.grad(y.sum(), [p for _, p in pairs], allow_unused=True)
    return [own for (own, _), gradient in zip(pairs, gradients, strict=True) if gradient is None]


def names_of(parameters: list[nn.Parameter], network: nn.Module) -> list[str]:
    """All names that they have in the network, as DistributedDataParallel spells them."""
    own = {id(p) for p in parameters}
    named = network.named_parameters(remove_duplicate=False)
    return [spelt for name, p in named if id(p) in own for spelt in ([name] if "." in name else [name, f".{name}"])]


def with_joined_norms(network: nn.Module, device: torch.device) -> nn.Module:
    """The same network, over the same parameters and buffers, with batch norms over the images of all processes."""
    shared = {id(t): t for t in [*network.parameters(), *network.buffers()]}
    twin = copy.deepcopy(network, shared)
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(twin)  # type: ignore[no-untyped-call]
        return converted
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, JoinedBatchNorm(module))
    return twin


class JoinedBatchNorm(nn.Module):
    """torch's SyncBatchNorm, which is for GPUs alone, on a CPU; over parameters and buffers of another norm."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if not norm.training:
            y: Tensor = norm(x)
            return y
        dtype, x = x.dtype, x if x.dtype == torch.float64 else x.float()  # as torch's own norms reckon
        axes = [0, *range(2, x.dim())]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = _over_all(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = _over_all(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * (count / max(1, count - 1)))
        y = centred * torch.rsqrt(variance + norm.eps).view(shape)
        if norm.weight is not None:
            y = y * norm.weight.view(shape) + norm.bias.view(shape)
        return y.to(dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        norm = self.norm
        if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
            return
        norm.num_batches_tracked.add_(1)
        share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(variance, share)


class _Sum(torch.autograd.Function):
    """The sum over all processes; what each has a part in is what each gets a gradient of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _over_all(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)
    return total
