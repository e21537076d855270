"""Stage 30: confirm the census over the whole training set, cut, hold the law, and save the compact network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.task import task_of
from pipeline.stages import Run, Stage
from runtime import device as machine

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline import config
    from pipeline.data import Dataset, Split
    from pipeline.progress import Progress
    from pipeline.results import Cut, Trained
    from pipeline.surgery import Compact
    from pipeline.surgery.align import Timing
    from pipeline.surgery.plan import Plan
    from pipeline.surgery.proof.evidence import Confirmation
    from pipeline.surgery.trace import Traced


def where_timed(run: Run) -> Mapping[str, Any]:
    """What `align: auto` and `gather: auto` depend on beside the network."""
    if "auto" not in (run.config.surgery.align, run.config.surgery.gather):
        return {}
    from pipeline.surgery.align import CANDIDATES, NAMES, PER_LAYER, timing_of

    timing = run.config.check.model_dump(mode="json", include={"gate_batch", "threads", "time_limit_s"})
    candidates: list[Any] = [*CANDIDATES, NAMES[PER_LAYER]]
    where = {"timing": timing, "machine": machine.fingerprint(), "device": run.device, "candidates": candidates}
    return {**where, "backend": timing_of(run.config.check, run.device, run.config.engine.flavour).backend}


def surgery(run: Run, trained: Trained, out: Path) -> Cut:
    """Cut the trained network into `out`. UserError where the law does not hold."""
    import torch

    from pipeline.results import Cut
    from pipeline.surgery.align import timing_of
    from pipeline.surgery.compact import save_compact
    from pipeline.surgery.plan import CERTIFICATE, PLAN, WEIGHTS, Source, example_of, plan_before
    from pipeline.surgery.proof.evidence import confirm
    from pipeline.surgery.watch import Anatomy
    from pipeline.training.census import load_census
    from pipeline.training.train import trained_network

    model, data, progress = run.config.model, run.data(), run.progress
    torch.set_num_threads(run.config.threads)
    network = trained_network(model, data, trained)
    example = example_of(data.input_shape)
    confirmation = None
    if trained.census is not None:
        progress.start("surgery: confirming the census", len(data.train))
        confirmation = confirm(Anatomy(network, example), load_census(trained.census), images_of(data.train, progress))
    source = Source(name=model.name, args=dict(model.args), num_classes=len(data.names), input_shape=data.input_shape)
    timing = timing_of(run.config.check, run.device, run.config.engine.flavour)
    answer = task_of(run.config.task).answer
    compact, worst = cut_network(run.config.surgery, network, data, confirmation, timing, progress, answer)
    count_from_the_first(compact.certificate, plan_before(network), trained)
    save_compact(compact, out, source)
    progress.stop()
    counts = compact.certificate["channels"]
    return Cut(
        out / PLAN, out / WEIGHTS, out / CERTIFICATE, counts["before"], counts["dead"], counts["after"],
        0 if confirmation is None else confirmation.revived, worst,
    )  # fmt: skip


BATCH = 256
SURGERY = Stage("30-surgery", surgery, "surgery", libraries="torch", version=3, also=where_timed)


def images_of(split: Split, progress: Progress | None = None) -> Iterator[Tensor]:
    """The images of a split, in batches (N, C, H, W)."""
    from pipeline.data.dataset import at_once

    seen = 0
    for images, _ in split.batches(at_once(split, BATCH)):
        yield images
        seen += len(images)
        if progress is not None:
            progress.update(seen, f"{seen} images")


def cut_network(
    section: config.Surgery,
    network: nn.Module,
    data: Dataset,
    confirmation: Confirmation | None,
    timing: Timing,
    progress: Progress,
    answer: Callable[[Tensor], Tensor] | None,
) -> tuple[Compact, float]:
    """The compact network, and its largest fp32 difference from dense-with-removed-held over the test split.

    The certificate gains `confirmation`, `alignment`, `max_abs_diff_fp32` and `change`: against the network given,
    nothing held, on the test split and, where deaths are approximate, on the training split.
    """
    from pipeline.surgery.cut.computed import settle
    from pipeline.surgery.plan import example_of
    from pipeline.surgery.shrink import held
    from pipeline.surgery.trace import trace

    traced = settle(replace(trace(network, example_of(data.input_shape)), probes=True))
    return held(traced, partial(_cut, section, network, data, confirmation, timing, progress, answer))


def _cut(
    section: config.Surgery,
    network: nn.Module,
    data: Dataset,
    confirmation: Confirmation | None,
    timing: Timing,
    progress: Progress,
    answer: Callable[[Tensor], Tensor] | None,
    traced: Traced,
) -> tuple[Compact, float]:
    from pipeline.surgery.align import cut_aligned
    from pipeline.surgery.gather.timing import gathered_by
    from pipeline.surgery.proof.equivalence import Held, anything_held
    from pipeline.surgery.proof.evidence import change_of_outputs, evidence_of_groups
    from pipeline.surgery.shrink import finish

    real = [(x,) for x in _few(data.test, (4, 7))]
    dead = None if confirmation is None else confirmation.dead
    analysis, choice, cut, alignment = cut_aligned(
        traced, dead, section.align, section.residual, real[-1][0], timing, progress.note
    )
    compact = finish(network, analysis, choice, cut, real=real, tolerance=section.law_tolerance)
    compact = gathered_by(section.gather, compact, real[-1][0], timing, section.law_tolerance, progress.note)
    certificate = compact.certificate
    certificate["alignment"] = alignment
    certificate["confirmation"] = None if confirmation is None else confirmation.document()
    if confirmation is not None:
        evidence_of_groups(certificate["groups"], analysis, choice, confirmation)
    change = change_of_outputs(network, compact.model, images_of(data.test), answer)
    approximate = confirmation is not None and confirmation.approximate
    train = change_of_outputs(network, compact.model, images_of(data.train), answer) if approximate else None
    certificate["change"] = {"test": change, "train": train}
    worst = change["max_abs"]
    if anything_held(cut):
        names = {n.name: n for n in traced.module.graph.nodes}
        held = Held(traced.module, cut, names)
        worst = change_of_outputs(held.run, compact.model, images_of(data.test), answer)["max_abs"]
    certificate["max_abs_diff_fp32"] = worst
    return compact, worst


def count_from_the_first(certificate: dict[str, Any], before: Plan | None, trained: Trained) -> None:
    """Channels that the training removed, into the certificate: its counts are those of the dense network then."""
    certificate["training"] = None
    if before is None:
        return
    removed = [r for row in _rows(trained.history) for r in row["removals"]]
    gone = sum(r["channels"] for r in removed)
    certificate["training"] = {
        "removed": gone,
        "max_rel_diff": max((r["max_rel_diff"] for r in removed), default=0.0),
        "removals": removed,
    }
    for key in ("before", "dead"):
        certificate["channels"][key] += gone
    for row in certificate["layers"]:
        width = before.widths.get(f"{row['layer']}.weight", row["before"])
        row["before"], row["dead"] = width, row["dead"] + width - row["before"]


def _rows(history: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in history.read_text("utf-8").splitlines()]


def _few(split: Split, sizes: tuple[int, ...]) -> Iterator[Tensor]:
    """The first images of a split in batches of these sizes."""
    images, _ = next(iter(split.batches(max(sizes))))
    for size in sizes:
        yield images[:size].cpu()
