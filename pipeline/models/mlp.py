"""Networks of linear layers, one after another, for small images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import nn

from runtime.errors import UserError

InputShape = tuple[int, int, int]


def relu(
    *, num_classes: int, input_shape: InputShape, widths: Sequence[int] = (300, 100), dropout: float = 0.0
) -> nn.Module:
    """Hidden layers of `widths` units with ReLUs, and `dropout` behind each; LeNet-300-100 by default."""
    return _chain(num_classes, input_shape, widths, dropout, lambda layer: nn.ReLU())


def all_relu(
    *,
    num_classes: int,
    input_shape: InputShape,
    widths: Sequence[int] = (1000, 1000, 1000),
    slope: float = 0.6,
    dropout: float = 0.0,
) -> nn.Module:
    """With All-ReLU (arXiv 2102.01732): below 0 the slope is -`slope` and `slope` in turn, from layer to layer. Its
    channels are never dead; units without inputs are constants, and surgery folds those."""
    return _chain(num_classes, input_shape, widths, dropout, lambda layer: nn.LeakyReLU(slope if layer % 2 else -slope))


def _chain(
    num_classes: int,
    input_shape: InputShape,
    widths: Sequence[int],
    dropout: float,
    activation: Callable[[int], nn.Module],
) -> nn.Module:
    if not widths or min(widths) < 1:
        raise UserError(f"model.args.widths is {list(widths)}", "at least one hidden layer", "e.g. widths: [300, 100]")
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (inputs, outputs) in enumerate(itertools.pairwise([math.prod(input_shape), *widths])):
        layers += [nn.Linear(inputs, outputs), activation(number)]
        layers += [nn.Dropout(dropout)] if dropout else []
    layers.append(nn.Linear(widths[-1], num_classes))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
