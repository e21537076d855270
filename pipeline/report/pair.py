"""A run of two networks that were made elsewhere: what was compared, and what is not claimed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.report.page import Section, Table, Text, numbers
from pipeline.workspace.stages import PAIR

FORMS = {
    "weights": "weights of a torch network",
    "plan": "a folder that demport wrote, its plan applied to the network of the config",
    "onnx": "an ONNX file, for torch as layers that hold its weights",
}


@dataclass(frozen=True)
class Source:
    """What a network of a pair came as; `max_abs_diff`: of the torch form of an ONNX file from the file's logits."""

    form: Literal["weights", "plan", "onnx"]
    source: str
    max_abs_diff: float | None


@dataclass(frozen=True)
class Pair:
    """Two networks that were made elsewhere, and how far compact's outputs are from dense's on `images` test images."""

    dense: Source
    compact: Source
    images: int
    max_abs: float
    top1_changed: int | None


def facts(pair: Pair) -> list[tuple[str, str, str]]:
    """Question, answer, and what it rests on, of what a cut would have proven."""
    origin = f"both networks were made elsewhere ({PAIR}), so no cut was seen"
    moved = f"outputs lie {numbers.small(pair.max_abs)} apart at most on {pair.images:,} test images"
    if pair.top1_changed is not None:
        moved += f"; {pair.top1_changed:,} of them change class"
    return [("Channels", "Not counted", origin), ("Same function", "Not claimed", f"{origin}; {moved}")]


def section(pair: Pair) -> Section:
    rows = []
    for role, member in (("Dense", pair.dense), ("Compact", pair.compact)):
        rows.append((role, f"{member.source}: {FORMS[member.form]}"))
        if member.max_abs_diff is not None:
            rows.append((f"{role}: torch form from the file", f"{numbers.small(member.max_abs_diff)} at most"))
    moved = f"{numbers.small(pair.max_abs)} at most on {pair.images:,} test images, in fp32"
    rows.append(("Compact's outputs from dense's", moved))
    if pair.top1_changed is not None:
        rows.append(("Answers that differ", f"{pair.top1_changed:,} of {pair.images:,}"))
    text = "There is no certificate: the training and the cut were not seen. Accuracy and speed are measured as ever."
    return Section("The two networks", [Text(f"{PAIR}/stage.json", "source"), Text(text), Table((), rows)])
