"""torch-pruning's pruners on the training budget that all methods of benchmarks.methods have."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pipeline import config
from pipeline.data import Dataset
from pipeline.models.cifar import ThinBlock, ThinResNet
from pipeline.training.compute import compute_of
from pipeline.training.compute.distributed import ALONE
from pipeline.training.loop import steps_per_epoch
from pipeline.training.optimizer.schedule import one_cycle
from runtime.errors import UserError
from runtime.macs import macs

REGULARISED = {"slimming": 1e-4, "group norm": 5e-4}
"""Method -> strength of its regulariser: of the batch norms' scales; of the norms of groups of weights."""
METHODS = tuple(REGULARISED)
ROUNDS = 200
"""In so many equal rounds a pruner would take all channels away; it stops at the share asked for."""
NEAR = 1.01
"""Times the share asked for: there it stops."""


def pruned(
    network: nn.Module,
    method: str,
    share: float,
    seed: int,
    data: Dataset,
    section: config.Training,
    device: torch.device,
) -> nn.Module:
    """A network trained with regularisation for half of the epochs, pruned to the share of MACs and fine-tuned,
    as the documentation has it; in eval mode, on the CPU. Raises UserError where the share is out of its reach."""
    pruner = pruner_of(method, network, data)
    half = section.epochs // 2
    fit(network, data, seed, range(half), section, device, pruner)
    whole = macs(network, data.input_shape)
    for _ in range(ROUNDS):
        if macs(network, data.input_shape) <= NEAR * share * whole:
            break
        pruner.step()
    if (remaining := macs(network, data.input_shape) / whole) > NEAR * share:
        raise UserError(f"{method} ends at {remaining:.3g} of the MACs", f"{share:g}", "ask for a larger share")
    fit(network, data, seed, range(half, section.epochs), section, device, None)
    return network.eval()


def pruner_of(method: str, network: nn.Module, data: Dataset) -> Any:
    """torch-pruning's pruner of the network on the CPU; the last linear layer stays."""
    import torch_pruning as tp

    slim = method == "slimming"
    importance = tp.importance.BNScaleImportance() if slim else tp.importance.GroupMagnitudeImportance(p=2)
    return (tp.pruner.BNScalePruner if slim else tp.pruner.GroupNormPruner)(
        network, torch.zeros(1, *data.input_shape), importance, global_pruning=True, pruning_ratio=1.0,
        max_pruning_ratio=0.9, iterative_steps=ROUNDS, reg=REGULARISED[method],
        ignored_layers=ignored_layers(network),
    )  # fmt: skip


def ignored_layers(network: nn.Module) -> list[nn.Module]:
    """Layers whose outputs torch-pruning leaves whole: linear ones; and what writes a stream that zero channels widen,
    whose channels it loses count of."""
    layers: list[nn.Module] = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if isinstance(network, ThinResNet):
        layers += [network.conv1, *(m.conv2 for m in network.modules() if isinstance(m, ThinBlock))]
    return layers


def fit(
    network: nn.Module,
    data: Dataset,
    seed: int,
    epochs: range,
    section: config.Training,
    device: torch.device,
    pruner: Any,
) -> None:
    """These epochs, with a learning rate cycle of their own, on the device; with a pruner its regularisation in every
    step. The network comes from the CPU and goes back there."""
    batch, train = section.batch_size, data.train.to(device)
    steps = len(epochs) * steps_per_epoch(data.train, batch)
    compute = compute_of(section, device, ALONE)
    forward = compute.forward_of(compute.placed(network.train()), (torch.zeros(2, *data.input_shape, device=device),))
    optimizer = optimizer_of(section, network)
    if pruner is not None:
        pruner.update_regularizer()
    step = 0
    for epoch in epochs:
        for x, y in train.batches(batch, seed=seed, epoch=epoch, augment=section.augment):
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(step, steps, section.lr)
            optimizer.zero_grad()
            with compute.autocast():
                logits = forward(compute.images(x))
            torch.autograd.backward(F.cross_entropy(logits.float(), y))
            if pruner is not None:
                pruner.regularize(network)
            optimizer.step()
            step += 1
    network.cpu()


def optimizer_of(section: config.Training, network: nn.Module) -> torch.optim.Optimizer:
    """torch's own; the SGD of `section` decays weights apart from its momentum, torch's through it, as strongly."""
    decay = section.weight_decay
    if section.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), section.lr, weight_decay=decay, fused=True)
    through = decay * (1 - section.momentum)
    return torch.optim.SGD(network.parameters(), section.lr, section.momentum, weight_decay=through, fused=True)
