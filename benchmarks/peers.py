"""torch-pruning's pruners on the training budget that all methods of benchmarks/methods.py have."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.data import Dataset
from pipeline.training.loop import steps_per_epoch
from pipeline.training.schedule import one_cycle
from runtime.macs import macs

DECAY = (
    5e-4  # as torch.optim.SGD has it; ours does not go through the momentum, which makes it this many times as strong
)
MOMENTUM = 0.9


def pruned(
    network: nn.Module, method: str, share: float, seed: int, data: Dataset, shared: dict[str, Any]
) -> nn.Module:
    """A fresh network trained with regularisation, pruned to the share of MACs and fine-tuned, as the documentation
    has it; in eval mode. `method`: `slimming` (BN scales) or `group norm`."""
    import torch_pruning as tp

    example = torch.zeros(1, *data.input_shape)
    last = [m for m in network.modules() if isinstance(m, nn.Linear)]
    importance = (
        tp.importance.BNScaleImportance() if method == "slimming" else tp.importance.GroupMagnitudeImportance(p=2)
    )
    kind = tp.pruner.BNScalePruner if method == "slimming" else tp.pruner.GroupNormPruner
    strength = {"reg": 1e-4} if method == "slimming" else {"reg": 5e-4}
    steps = 50
    pruner = kind(
        network, example, importance, global_pruning=True, pruning_ratio=1.0, max_pruning_ratio=0.9,
        iterative_steps=steps * 4, ignored_layers=last, **strength,
    )  # fmt: skip
    half = shared["epochs"] // 2
    fit(network, data, seed, half, 0, shared, pruner)
    whole = macs(network, data.input_shape)
    while macs(network, data.input_shape) > 1.01 * share * whole:
        pruner.step()
    fit(network, data, seed, shared["epochs"] - half, half, shared, None)
    return network.eval()


def fit(
    network: nn.Module, data: Dataset, seed: int, epochs: int, first: int, shared: dict[str, Any], pruner: Any
) -> None:
    """Epochs of SGD with a cycle of their own; with a pruner its regularisation in every step."""
    batch, lr = shared["batch_size"], shared["lr"]
    steps = steps_per_epoch(data.train, batch)
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
    if pruner is not None:
        pruner.update_regularizer()
    network.train().to(memory_format=torch.channels_last)
    step = 0
    for epoch in range(first, first + epochs):
        for x, y in data.train.batches(batch, seed=seed, epoch=epoch, augment=shared["augment"]):
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(step, epochs * steps, lr)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(x.contiguous(memory_format=torch.channels_last))
            torch.autograd.backward(F.cross_entropy(logits.float(), y))
            if pruner is not None:
                pruner.regularize(network)
            optimizer.step()
            step += 1
