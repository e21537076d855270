"""One training step as a witness: what a channel must be so that training cannot tell it was removed.

A channel that is zero in eval mode may still learn: a batch norm with gamma = beta = 0 in front of an addition gets a
gradient. So one forward and backward pass in training mode, in float64, on the batch given, with random gradients at
the outputs, tells which entries of which parameters a gradient reaches. Nothing a gradient reaches is removed, and a
consumer's weights for a channel get one exactly when the channel is not zero.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.channels.labels import Ids, Labels
from pipeline.surgery.cut.carry import Cut
from pipeline.surgery.cut.slices import cut_tensor
from pipeline.surgery.proof.equivalence import flat
from pipeline.surgery.trace.float64 import Double, in_double, widened
from runtime.errors import UserError

RANDOM_MODULES = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "StochasticDepth", "DropPath")


@dataclass(frozen=True)
class Step:
    """What one step in training mode leaves: outputs, gradients by parameter, and buffers by name; all float64."""

    outputs: tuple[Tensor, ...]
    gradients: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]


def step_of(model: nn.Module, batch: tuple[Tensor, ...], seed: int = 0) -> Step:
    """One forward and backward pass of a copy of `model` in training mode, modules that drop at random switched off.

    Modules frozen in eval mode stay so when the network as a whole is training. Parameters that are not trained get
    gradients too: they tell whether the channels they read are zero.
    """
    probe = in_double(copy.deepcopy(model))
    if not probe.training:
        probe.train()
    for module in probe.modules():
        if type(module).__name__ in RANDOM_MODULES:
            module.eval()
    for parameter in probe.parameters():
        parameter.grad = None
        parameter.requires_grad_(True)
    with torch.enable_grad():
        with Double():
            outputs = flat(probe(*map(widened, batch)))
        generator = torch.Generator().manual_seed(seed)
        random = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device) for t in outputs]
        pairs = [pair for pair in zip(outputs, random, strict=True) if pair[0].requires_grad]  # a detector's anchors
        torch.autograd.backward([value for value, _ in pairs], [weight for _, weight in pairs])
    zeros = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in probe.named_parameters()}
    return Step(tuple(t.detach() for t in outputs), zeros, dict(probe.named_buffers()))


def keep_what_learns(analysis: Analysis, gradients: Mapping[str, Tensor]) -> None:
    """Enter in the ledger that every channel whose parameters get a gradient stays; names are those of the graph."""
    for (name, axis), ids in analysis.axes.items():
        if name in gradients:
            _keep(analysis, ids, _reached(gradients[name], axis))
    for layer in analysis.layers:
        weight = analysis.canonical(layer.weight)
        if weight in gradients:
            _keep_of_layer(analysis, layer.ids, layer.node.args[0], gradients[weight], layer.axis)


def _keep_of_layer(analysis: Analysis, outs: Ids, source: Any, gradient: Tensor, axis: int) -> None:
    """The same for convolutions, grouped ones included: their weights (out, in / groups) have no ids of what enters."""
    x = analysis.value(source)
    field = x.at(1) if isinstance(x, Labels) else None
    if gradient.dim() < 3 or field is None or field.axes != (1,):
        return
    ins, count = field.ids, len(outs)
    each = gradient.ne(0).flatten(2).any(2)
    each = each if axis == 0 else each.t()  # (out, in / groups), or (out / groups, in) of a transposed convolution
    groups = len(ins) // each.shape[1] if axis == 0 else count // each.shape[0]
    if axis == 1:
        each = torch.cat(each.chunk(groups, 1))
    reached = each.reshape(groups, -1, each.shape[1]).any(1).reshape(-1)
    _keep(analysis, outs, each.any(1))
    _keep(analysis, ins, reached)


def _reached(gradient: Tensor, axis: int) -> Tensor:
    """Per index of `axis`, whether any entry is not zero (NaN is not)."""
    return gradient.ne(0).movedim(axis, 0).reshape(gradient.shape[axis], -1).any(1)


def _keep(analysis: Analysis, ids: Ids, reached: Tensor) -> None:
    stay = ids[reached.cpu().numpy()]
    analysis.ledger.read(stay, np.zeros(len(stay), bool))


def check_step(dense: Step, compact: Step, cut: Cut, tolerance: float) -> float:
    """Largest difference of the compact network's step from the dense one's, over what is kept, or UserError.

    Relative to the largest entry of each tensor, and not to less than 1e-6 of the largest gradient of the network: the
    gradient of a bias in front of a batch norm is nothing but rounding.
    """
    largest = max((float(g.abs().max()) for g in dense.gradients.values() if g.numel()), default=0.0)
    pairs = [(f"output {i}", a, b, 0.0) for i, (a, b) in enumerate(zip(dense.outputs, compact.outputs, strict=False))]
    for name, gradient in dense.gradients.items():
        if name in compact.gradients:
            pairs.append((f"the gradient of {name}", cut_tensor(gradient, name, cut), compact.gradients[name], largest))
    for name, buffer in dense.buffers.items():
        if name in compact.buffers:
            pairs.append((name, cut_tensor(buffer, name, cut), compact.buffers[name], 0.0))
    if len(dense.outputs) != len(compact.outputs):
        raise _differs(f"{len(dense.outputs)} outputs in training mode, the compact one {len(compact.outputs)}")
    worst = 0.0
    for name, want, got, overall in pairs:
        scale = max(float(want.abs().max()) if want.numel() else 0.0, 1e-6 * overall, 1e-30)
        same = want.shape == got.shape
        difference = float((want - got).abs().max()) / scale if same and want.numel() else 0.0
        if not same or not difference <= tolerance:
            raise _differs(f"another training step: {name} differs by {difference:.2g} (relative)")
        worst = max(worst, difference)
    return worst


def _differs(text: str) -> UserError:
    return UserError(
        f"the network has {text}",
        "a network that computes the same in training mode as in eval mode but for batch norm and dropout modules",
        "use modules such as nn.Dropout instead of self.training, switch auxiliary outputs off, or cut after training",
    )
