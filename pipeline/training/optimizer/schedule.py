"""What changes over the steps: the cosine one-cycle of learning rate, lambda and sigma, and the other schedules."""

from __future__ import annotations

import math

from pipeline import config

RISE = 0.3
START_DIVISOR = 25.0
END_DIVISOR = 25.0 * 1e4


def one_cycle(step: float, span: float, peak: float) -> float:
    """peak/25 at step 0, by half a cosine up to `peak` at 0.3 span, down to peak/250,000 at `span`, constant after."""
    if step >= span:
        return peak / END_DIVISOR
    top = RISE * span
    if step <= top:
        return _half_cosine(peak / START_DIVISOR, peak, step / top)
    return _half_cosine(peak, peak / END_DIVISOR, (step - top) / (span - top))


def learning_rate(section: config.Training, step: int, steps_per_epoch: int) -> float:
    """Of the step with this number, the first being 0."""
    total, epoch = section.epochs * steps_per_epoch, step // steps_per_epoch
    match section.schedule:
        case "one_cycle":
            return one_cycle(step, total, section.lr)
        case "constant":
            drops = 0
        case "step":
            drops = epoch // section.step_epochs
        case "milestones":
            drops = sum(epoch >= milestone for milestone in section.milestones)
    rising = min(1.0, (step + 1) / max(1.0, section.warmup * total))
    return section.lr * rising * section.step_factor**drops


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
