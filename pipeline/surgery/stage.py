"""Stage 30: confirm the census over the whole training set, cut, hold the law, and save the compact network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline import config
from pipeline.data import Dataset, Split
from pipeline.models import build, load_weights
from pipeline.progress import Progress
from pipeline.surgery.align import Timing, cut_aligned
from pipeline.surgery.anatomy import Anatomy
from pipeline.surgery.law import Held, anything_held
from pipeline.surgery.plan import CERTIFICATE, PLAN, WEIGHTS, Compact, Source, example_of, save_compact
from pipeline.surgery.shrink import finish
from pipeline.training.census import load_census
from pipeline.training.stage import Trained

BATCH = 256


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
    fresh = model.model_copy(update={"weights": None})
    network = build(fresh, num_classes=len(data.names), input_shape=data.input_shape)
    load_weights(network, trained.weights)
    network.eval()
    example = example_of(data.input_shape)
    dead, confirmation = None, None
    if trained.census is not None:
        progress.start("surgery: confirming the census", len(data.train))
        dead, confirmation = confirm(Anatomy(network, example), load_census(trained.census), data.train, progress)
    source = Source(name=model.name, args=dict(model.args), num_classes=len(data.names), input_shape=data.input_shape)
    compact, worst = cut_network(section, network, data, dead, timing, progress)
    compact.certificate["confirmation"] = confirmation
    compact.certificate["max_abs_diff_fp32"] = worst
    save_compact(compact, out, source)
    progress.stop()
    counts = compact.certificate["channels"]
    return Cut(
        out / PLAN, out / WEIGHTS, out / CERTIFICATE, counts["before"], counts["dead"], counts["after"],
        0 if confirmation is None else confirmation["revived"], worst,
    )  # fmt: skip


def cut_network(
    section: config.Surgery,
    network: nn.Module,
    data: Dataset,
    dead: Mapping[str, Tensor] | None,
    timing: Timing,
    progress: Progress,
) -> tuple[Compact, float]:
    """The compact network, and its largest fp32 difference from dense-with-removed-held over the test split."""
    from pipeline.surgery.trace import trace

    traced = trace(network, example_of(data.input_shape))
    real = [(x,) for x in _few(data.test, (4, 7))]
    analysis, choice, cut, alignment = cut_aligned(
        traced, dead, section.align, section.residual, real[-1][0], timing, progress.note
    )
    compact = finish(network, analysis, choice, cut, real=real, tolerance=section.law_tolerance)
    compact.certificate["alignment"] = alignment
    names = {n.name: n for n in traced.module.graph.nodes}
    reference: Any = Held(traced.module, cut, names).run if anything_held(cut) else network
    return compact, _largest_difference(reference, compact.model, data.test)


def confirm(
    anatomy: Anatomy, dead: Mapping[str, Tensor], train: Split, progress: Progress
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A census over every training image. A channel that fires once is alive again.

    Returns the confirmed masks and, for the certificate, the images seen, the channels revived, and per output the
    largest activation of a channel that stays dead (0 for ReLU; what removing it changes at most for the others).
    """
    top = {name: torch.full((anatomy.watch[name],), -torch.inf) for name in dead}
    low = {name: torch.full((anatomy.watch[name],), torch.inf) for name in dead}
    seen = 0
    for x, _ in train.batches(BATCH):
        for name, value in anatomy.observe((x,)).items():
            if name in dead:
                lines = value.movedim(anatomy.axis[name], 0).flatten(1).cpu()
                top[name] = torch.maximum(top[name], lines.amax(1))
                low[name] = torch.minimum(low[name], lines.amin(1))
        seen += len(x)
        progress.update(seen, f"{seen} images")
    kept: dict[str, Tensor] = {}
    largest: dict[str, float] = {}
    for name, mask in dead.items():
        kept[name] = mask & (top[name] <= 0) if name in anatomy.exact else mask
        size = torch.maximum(top[name].abs(), low[name].abs())[kept[name]]
        if len(size):
            largest[name] = float(size.max())
    revived = sum(int((dead[n] & ~kept[n]).sum()) for n in dead)
    approximate = sorted(set(kept) - anatomy.exact)
    return kept, {"images": seen, "revived": revived, "largest_activation": largest, "approximate": approximate}


@torch.no_grad()
def _largest_difference(reference: Any, compact: fx.GraphModule, test: Split) -> float:
    worst = 0.0
    for x, _ in test.batches(BATCH):
        worst = max(worst, float((reference(x) - compact(x)).abs().max()))
    return worst


def _few(split: Split, sizes: tuple[int, ...]) -> Iterator[Tensor]:
    """The first images of a split in batches of these sizes."""
    images, _ = next(iter(split.batches(max(sizes))))
    for size in sizes:
        yield images[:size].cpu()
