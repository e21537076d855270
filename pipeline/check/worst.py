"""The images that a hop got wrong, drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.check.accuracy import Images
from pipeline.check.results import WorstImage
from pipeline.tasks import Task
from runtime.backends import Array
from runtime.measure.accuracy import Accuracy

WORST = 12  # images shown of a hop
Outputs = Callable[[Array], Any]
"""Images (N, C, H, W) -> a network's outputs to them."""


def worst_images(before: Accuracy, after: Accuracy, images: Images, folder: str, task: Task) -> tuple[WorstImage, ...]:
    """The images that the second scores lower than the first, those that lost most certainty first; each as a PNG in
    `folder` of the check. Where an image has no one class, the two scores stand for the two answers."""
    lost = np.flatnonzero(before.scores.astype(np.float64) > after.scores)
    shares = [certainties(result, task) for result in (before, after)]
    order = lost[np.argsort(shares[1][lost] - shares[0][lost], kind="stable")][:WORST]
    texts = [_texts(result, order, images, task) for result in (before, after)]
    labels = ["" if task.answer is None else images.name(int(before.targets[index])) for index in order]
    return tuple(
        WorstImage(
            int(index),
            label,
            first,
            second,
            round(float(shares[0][index]), 4),
            round(float(shares[1][index]), 4),
            f"{folder}/{index}.png",
        )
        for index, label, first, second in zip(order, labels, *texts, strict=True)
    )


def certainties(result: Accuracy, task: Task) -> Array:
    """(N,); the score, where not all outputs are held."""
    if task.certainty is None or len(result.targets) < len(result.scores):
        return result.scores.astype(np.float64)
    return task.certainties(result.outputs, result.targets)


def _texts(result: Accuracy, order: Array, images: Images, task: Task) -> list[str]:
    """What a network answers to the images of `order`, in a word."""
    answers = task.answers(result.outputs[order]) if task.answer and len(order) else None
    if answers is None:
        name = "score" if task.pooled else task.metric  # of one image
        return [f"{name} {result.scores[index]:.3f}" for index in order]
    return [images.name(int(answer)) for answer in answers]


def save_images(
    entries: Sequence[WorstImage],
    batches: Iterator[tuple[Any, Any]],
    images: Images,
    out: Path,
    task: Task,
    networks: Sequence[Outputs] = (),
) -> None:
    """Write the image of each entry, whose `file` is relative to `out`; where the task draws, with its target and what
    `networks` answer to it."""
    from PIL import Image

    indices = sorted(entry.index for entry in entries)
    if not indices:
        return
    inputs, targets = _taken(batches, indices)
    drawn = dict(zip(indices, levels(inputs, images), strict=True))
    if task.draw is not None:
        each = [outputs(inputs[at : at + 1]) for at in range(len(inputs)) for outputs in networks]
        answers = [each[at : at + len(networks)] for at in range(0, len(each), len(networks))]
        pictures = zip(indices, targets, answers, strict=True)
        drawn = {i: task.draw(_coloured(drawn[i]), target, pair, images.names) for i, target, pair in pictures}
    for entry in entries:
        path = out / entry.file
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(drawn[entry.index]).save(path)


def _taken(batches: Iterator[tuple[Any, Any]], indices: Sequence[int]) -> tuple[Array, list[Array]]:
    """The inputs (N, C, H, W) and targets of these images."""
    inputs, targets, start = list[Array](), list[Array](), 0
    for x, y in batches:
        own = [i - start for i in indices if start <= i < start + len(x)]
        inputs += [np.asarray(x[i]) for i in own]
        targets += [np.asarray(y[i]) for i in own]
        start += len(x)
        if len(inputs) == len(indices):
            break
    return np.stack(inputs), targets


def levels(inputs: Array, images: Images) -> list[Array]:
    """uint8 (H, W, 3) or (H, W) of each: all on the same scale, 0 and the largest pixel at its ends."""
    shape = (-1, 1, 1)
    pixels = [x * np.reshape(images.std, shape) + np.reshape(images.mean, shape) for x in inputs]
    low, high = min(0.0, *(float(x.min()) for x in pixels)), max(float(x.max()) for x in pixels)
    scaled = [(255 * (x - low) / max(high - low, 1e-9)).round().clip(0, 255).astype(np.uint8) for x in pixels]
    return [x.transpose(1, 2, 0) if len(x) == 3 else x.mean(axis=0).astype(np.uint8) for x in scaled]


def _coloured(grey: Array) -> Array:
    return grey if grey.ndim == 3 else np.repeat(grey[:, :, None], 3, axis=2)
