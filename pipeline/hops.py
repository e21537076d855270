"""Accuracy from hop to hop: what each form of a network changed, the first hop that broke the budget, and the images it
got wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import lookup
from pipeline.measuring import Hop, Results
from runtime.accuracy import Accuracy
from runtime.agree import agree
from runtime.backend import Array
from runtime.errors import UserError
from runtime.paired import non_inferior, paired_accuracy

WORST = 12  # images kept of a hop
MASKED = "masked"
FIGURES = ("max_abs", "max_rel", "top1_agreement", "accuracy_delta", "paired", "non_inferior")


@dataclass(frozen=True)
class Images:
    """What the test images show: class names, and how a network's input becomes a pixel again, (x * std + mean)."""

    names: Sequence[str] = ()
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else str(label)


def hop_entry(model: str, hop: Hop, results: Results, margin_pp: float) -> dict[str, Any]:
    """One of check.json's `hops`: tensors, answers and accuracy of a form against the form before it."""
    assert hop.source is not None
    entry: dict[str, Any] = {"model": model, "from": hop.source, "to": hop.name}
    before, after = results[hop.source], results[hop.name]
    if isinstance(before, str) or isinstance(after, str):
        return {**entry, **dict.fromkeys(FIGURES), "reason": after if isinstance(after, str) else before}
    told, paired = agree(before.logits, after.logits), paired_accuracy(before.correct, after.correct)
    return {
        **entry,
        "max_abs": told.max_abs,
        "max_rel": told.max_rel,
        "top1_agreement": told.top1_agreement,
        "accuracy_delta": after.top1 - before.top1,
        "paired": asdict(paired),
        "non_inferior": non_inferior(paired, margin_pp),
        "reason": f"logits of {told.nonfinite} images are not finite" if told.nonfinite else None,
    }


def drops(hops: Sequence[Hop], results: Results, reference: Accuracy) -> list[tuple[Hop, float]]:
    """Percentage points that each measured form loses against `reference`, in the order of the line."""
    return [
        (hop, 100 * (reference.top1 - result.top1)) for hop in hops if isinstance(result := results[hop.name], Accuracy)
    ]


def said(hop: Hop) -> str:
    """`onnx to simplified`, and for the first form of a line its name."""
    if hop.source is None:
        return "the network before the cut" if hop.name == MASKED else hop.name
    return f"{hop.source} to {hop.name}"


def by_class(images: Images, dense: Accuracy, compact: Accuracy, forms: Results) -> list[dict[str, Any]]:
    """Accuracy of every class that the split has images of, the one that lost most first; `forms` are compact's."""
    measured = {name: told for name, told in forms.items() if isinstance(told, Accuracy)}
    rows = [
        {
            "name": images.name(label),
            "n": int(np.count_nonzero(dense.labels == label)),
            "dense": dense.of_class(label),
            "compact": compact.of_class(label),
            "forms": {name: told.of_class(label) for name, told in measured.items()},
        }
        for label in range(dense.logits.shape[1])
    ]
    there = [row for row in rows if row["n"]]
    return sorted(there, key=lambda row: float(row["compact"]) - float(row["dense"]))


def own_metric(spec: str | None) -> Callable[[Accuracy], float] | None:
    """check.metric as a function of what was measured. Raises UserError where it is not found or answers no number."""
    if spec is None:
        return None
    function = lookup.function_named(spec, "check.metric")

    def value(result: Accuracy) -> float:
        try:
            answer = float(function(result.logits.copy(), result.labels.copy()))
        except Exception as error:  # the user's own code
            raise UserError(
                f"check.metric {spec} raised {type(error).__name__}: {error}",
                "a number for logits (N, K) and labels (N,)",
                "mend the function",
            ) from error
        if not math.isfinite(answer):
            raise UserError(f"check.metric {spec} answered {answer}", "a finite number", "mend the function")
        return answer

    return value


def metric_of(results: Mapping[str, Accuracy | str], metric: Callable[[Accuracy], float] | None) -> dict[str, Any]:
    """The user's metric at every measured form; {} without one."""
    if metric is None:
        return {}
    return {name: metric(result) for name, result in results.items() if isinstance(result, Accuracy)}


def worst_images(before: Accuracy, after: Accuracy) -> list[dict[str, Any]]:
    """The images that the first classifies rightly and the second does not, those that lost most probability first."""
    lost = np.flatnonzero(before.correct & ~after.correct)
    shares = [_probability(result) for result in (before, after)]
    order = lost[np.argsort(shares[1][lost] - shares[0][lost], kind="stable")][:WORST]
    return [
        {
            "index": int(index),
            "label": int(before.labels[index]),
            "before": int(before.logits[index].argmax()),
            "after": int(after.logits[index].argmax()),
            "p_before": round(float(shares[0][index]), 4),
            "p_after": round(float(shares[1][index]), 4),
        }
        for index in order
    ]


def keep_images(entries: list[dict[str, Any]], batches: Iterator[tuple[Any, Any]], images: Images, out: Path) -> None:
    """Write each entry's image as a PNG into `out` and name it in the entry; names take the place of class numbers."""
    from PIL import Image

    wanted = {entry["index"]: entry for entry in entries}
    if not wanted:
        return
    pictures: dict[int, Array] = {}
    start = 0
    for batch, _ in batches:
        pictures |= {i: np.asarray(batch[i - start]) for i in wanted if start <= i < start + len(batch)}
        start += len(batch)
    shape = (-1, 1, 1)
    pixels = {i: x * np.reshape(images.std, shape) + np.reshape(images.mean, shape) for i, x in pictures.items()}
    low, high = min(0.0, *(float(x.min()) for x in pixels.values())), max(float(x.max()) for x in pixels.values())
    out.mkdir(exist_ok=True)
    for index, entry in wanted.items():
        grey = (255 * (pixels[index] - low) / max(high - low, 1e-9)).round().clip(0, 255).astype(np.uint8)
        picture = grey.transpose(1, 2, 0) if len(grey) == 3 else grey.mean(axis=0).astype(np.uint8)
        Image.fromarray(picture).save(out / f"{index}.png")
        entry["file"] = f"{out.name}/{index}.png"
        for key in ("label", "before", "after"):
            entry[key] = images.name(entry[key])


def _probability(result: Accuracy) -> Array:
    """Softmax of each image's own class, (N,)."""
    logits = np.nan_to_num(result.logits.astype(np.float64), nan=-1e30, posinf=1e30, neginf=-1e30)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    share: Array = powers[np.arange(len(powers)), result.labels] / powers.sum(axis=1)
    return share
