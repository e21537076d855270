"""A narrow network: every layer that could lose channels keeps the same share of them, its weights fresh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from pipeline.models.networks import network as build
from pipeline.surgery.channels.costs import costs_of
from pipeline.surgery.cut.choose import Choice, choose
from pipeline.surgery.cut.computed import settle
from pipeline.surgery.cut.rebuild import rebuild
from pipeline.surgery.plan import example_of
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import trace
from runtime.errors import UserError

SPEC = "pipeline.baselines.narrow:network"
STEPS = 6
"""Halvings of the search: a share to within 2 %."""


def network(
    *, of: str, args: Mapping[str, Any], share: float, align: int, num_classes: int, input_shape: tuple[int, int, int]
) -> nn.Module:
    """A narrow `of`, to be named as `model.name`; torch's random state decides its weights."""
    whole = build(of, args, num_classes=num_classes, input_shape=input_shape, classifies=False)
    return narrowed(whole, input_shape, share, align)


def narrowed(whole: nn.Module, input_shape: tuple[int, int, int], share: float, align: int) -> nn.Module:
    """`share` (0..1) of every group's channels, to the next multiple of `align` and at least that many where there are,
    with weights drawn anew by each layer's own rule. UserError where no channel can go."""
    analysis = analyse(settle(trace(whole, example_of(input_shape))))
    costs = costs_of(analysis)
    if not costs.groups:
        raise UserError("no layer can be made narrower", "channels that can go", "see what surgery freezes")
    gone = np.zeros(costs.count, bool)
    for group in costs.groups:
        width = len(group.classes)
        gone[group.classes[min(width, max(align, round(share * width / align) * align)) :]] = True

    def keep_rest(choice: Choice) -> None:
        choice.keep[:] = ~gone

    _, cut = choose(analysis, 1, keep_rest)
    smaller = rebuild(analysis, cut)
    for module in smaller.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return smaller.train()


def largest(fits: Callable[[float], bool]) -> float | None:
    """The largest share that fits, where smaller ones do as well; None where not even 1 % does."""
    low, high = 0.01, 1.0
    if not fits(low):
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
