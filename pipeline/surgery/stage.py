"""Stage 30: confirm the census over the whole training set, cut, hold the law, and save the compact network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.data import Dataset, Split
from pipeline.progress import Progress
from pipeline.surgery.align import Timing, cut_aligned
from pipeline.surgery.anatomy import Anatomy
from pipeline.surgery.computed import settle
from pipeline.surgery.evidence import Confirmation, change_of_outputs, confirm, evidence_of_groups
from pipeline.surgery.law import Held, anything_held
from pipeline.surgery.plan import (
    CERTIFICATE,
    PLAN,
    WEIGHTS,
    Compact,
    Plan,
    Source,
    example_of,
    plan_before,
    save_compact,
)
from pipeline.surgery.shrink import finish
from pipeline.surgery.trace import trace
from pipeline.training.census import load_census
from pipeline.training.stage import Trained, trained_network


@dataclass(frozen=True)
class Cut:
    """Channels are output channels of layers. `max_abs_diff`: compact against the dense network with the removed
    channels held, fp32 logits over the whole test split. `revived`: channels of the last census that the whole training
    set showed alive."""

    plan: Path
    weights: Path
    certificate: Path
    channels_before: int
    channels_dead: int
    channels_after: int
    revived: int
    max_abs_diff: float


def cut(
    section: config.Surgery,
    model: config.Model,
    data: Dataset,
    trained: Trained,
    *,
    threads: int,
    timing: Timing,
    out: Path,
    progress: Progress,
) -> Cut:
    """Cut the trained network into `out`; `timing` is for `align: auto`. UserError where the law does not hold."""
    torch.set_num_threads(threads)
    network = trained_network(model, data, trained)
    example = example_of(data.input_shape)
    confirmation = None
    if trained.census is not None:
        progress.start("surgery: confirming the census", len(data.train))
        confirmation = confirm(Anatomy(network, example), load_census(trained.census), data.train, progress)
    source = Source(name=model.name, args=dict(model.args), num_classes=len(data.names), input_shape=data.input_shape)
    compact, worst = cut_network(section, network, data, confirmation, timing, progress)
    count_from_the_first(compact.certificate, plan_before(network), trained)
    save_compact(compact, out, source)
    progress.stop()
    counts = compact.certificate["channels"]
    return Cut(
        out / PLAN, out / WEIGHTS, out / CERTIFICATE, counts["before"], counts["dead"], counts["after"],
        0 if confirmation is None else confirmation.revived, worst,
    )  # fmt: skip


def cut_network(
    section: config.Surgery,
    network: nn.Module,
    data: Dataset,
    confirmation: Confirmation | None,
    timing: Timing,
    progress: Progress,
) -> tuple[Compact, float]:
    """The compact network, and its largest fp32 difference from dense-with-removed-held over the test split.

    The certificate gains `confirmation`, `alignment`, `max_abs_diff_fp32` and `change`: against the network given,
    nothing held, on the test split and, where deaths are approximate, on the training split.
    """
    traced = settle(trace(network, example_of(data.input_shape)))
    real = [(x,) for x in _few(data.test, (4, 7))]
    dead = None if confirmation is None else confirmation.dead
    analysis, choice, cut, alignment = cut_aligned(
        traced, dead, section.align, section.residual, real[-1][0], timing, progress.note
    )
    compact = finish(network, analysis, choice, cut, real=real, tolerance=section.law_tolerance)
    told = compact.certificate
    told["alignment"] = alignment
    told["confirmation"] = None if confirmation is None else confirmation.document()
    if confirmation is not None:
        evidence_of_groups(told["groups"], analysis, choice, confirmation)
    change = change_of_outputs(network, compact.model, data.test)
    approximate = confirmation is not None and confirmation.approximate
    train = change_of_outputs(network, compact.model, data.train) if approximate else None
    told["change"] = {"test": change, "train": train}
    worst = change["max_abs"]
    if anything_held(cut):
        names = {n.name: n for n in traced.module.graph.nodes}
        held = Held(traced.module, cut, names)
        worst = change_of_outputs(held.run, compact.model, data.test)["max_abs"]
    told["max_abs_diff_fp32"] = worst
    return compact, worst


def count_from_the_first(told: dict[str, Any], before: Plan | None, trained: Trained) -> None:
    """Channels that the training removed, into the certificate: its counts are those of the dense network then."""
    told["training"] = None
    if before is None:
        return
    removed = [r for row in _rows(trained.history) for r in row["removals"]]
    gone = sum(r["channels"] for r in removed)
    told["training"] = {
        "removed": gone,
        "max_rel_diff": max((r["max_rel_diff"] for r in removed), default=0.0),
        "removals": removed,
    }
    for key in ("before", "dead"):
        told["channels"][key] += gone
    for row in told["layers"]:
        width = before.widths.get(f"{row['layer']}.weight", row["before"])
        row["before"], row["dead"] = width, row["dead"] + width - row["before"]


def _rows(history: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in history.read_text("utf-8").splitlines()]


def _few(split: Split, sizes: tuple[int, ...]) -> Iterator[Tensor]:
    """The first images of a split in batches of these sizes."""
    images, _ = next(iter(split.batches(max(sizes))))
    for size in sizes:
        yield images[:size].cpu()
