"""Which layers a lower precision hurts, and how few of them must stay in fp32 until the accuracy holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from export.onnx import graph

Make = Callable[[Collection[str]], onnx.ModelProto]
"""The graph, in a form that ONNX Runtime runs, with the named layers kept in fp32."""


@dataclass(frozen=True)
class LayerError:
    """What one layer alone in the lower precision does to the outputs: mean squared change over mean square."""

    layer: str
    error: float


def rank(
    layers: Sequence[str], make: Make, reference: Sequence[Sequence[graph.Array]], batches: Sequence[graph.Feeds]
) -> tuple[LayerError, ...]:
    """Every layer with its error, the largest first. `reference`: the fp32 graph's outputs for each of `batches`.

    A change that is not finite counts as infinite.
    """
    errors = []
    for layer in layers:
        session = graph.open_graph(make([other for other in layers if other != layer]))
        outputs = [graph.run_graph(session, feeds) for feeds in batches]
        errors.append(LayerError(layer, relative_error(reference, outputs)))
    return tuple(sorted(errors, key=lambda item: (-item.error, layers.index(item.layer))))


def relative_error(reference: Sequence[Sequence[graph.Array]], outputs: Sequence[Sequence[graph.Array]]) -> float:
    """Squared difference over squared reference, each summed over all outputs of all batches; inf where not finite."""
    change = power = 0.0
    for expected, actual in zip(reference, outputs, strict=True):
        for a, b in zip(expected, actual, strict=True):
            first, second = a.astype(np.float64), b.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                change += float(np.square(first - second).sum())
            power += float(np.square(first).sum())
    if not np.isfinite(change):
        return float("inf")
    return change / power if power else (0.0 if change == 0.0 else float("inf"))


def fewest(most: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number in 1..`most` that holds, found by doubling and halving; None where `most` does not.

    Exact where holding never ends again at a larger number; otherwise a number that holds.
    """
    low, high = 0, 1
    while high < most and not holds(high):
        low, high = high, high * 2
    high = min(high, most)
    if high <= low or (high == most and not holds(most)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
