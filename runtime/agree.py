"""How far two sets of logits for the same images lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.backend import Array


@dataclass(frozen=True)
class Agreement:
    """Of b with a, the reference.

    `max_abs` is the largest |a - b|, `max_rel` that over the largest |a|: relative to the logits' scale, because single
    logits come close to zero. Both are null when a value is not finite. `top1_agreement` is the fraction of images
    whose largest logit is the same class; an image with a value that is not finite in either counts as disagreeing.
    `nonfinite` counts such images.
    """

    max_abs: float | None
    max_rel: float | None
    top1_agreement: float
    nonfinite: int


def agree(a: Array, b: Array) -> Agreement:
    """a, b: logits (N, K) of the same images in the same order, any floating type."""
    assert a.shape == b.shape, f"logits of shapes {a.shape} and {b.shape}"
    assert a.ndim == 2, f"logits of shape {a.shape}"
    assert a.size > 0
    first, second = a.astype(np.float64), b.astype(np.float64)
    finite: Array = np.isfinite(np.concatenate([first, second], axis=1)).all(axis=1)
    same = (first.argmax(axis=1) == second.argmax(axis=1)) & finite
    nonfinite = int(len(finite) - np.count_nonzero(finite))
    top1 = float(np.mean(same))
    if nonfinite:
        return Agreement(None, None, top1, nonfinite)
    max_abs, scale = float(np.abs(first - second).max()), float(np.abs(first).max())
    if scale == 0.0:
        return Agreement(max_abs, 0.0 if max_abs == 0.0 else None, top1, 0)
    return Agreement(max_abs, max_abs / scale, top1, 0)
