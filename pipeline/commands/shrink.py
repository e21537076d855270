"""`demport shrink`: surgery alone, on a network the user already has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import data
from pipeline.config import Config
from pipeline.config.task import task_of
from pipeline.data import Dataset
from pipeline.models import build
from pipeline.models.recipe import normalised
from pipeline.progress import Progress
from pipeline.stages.surgery import cut_network, images_of
from pipeline.surgery import Anatomy, Compact, Source, save_compact
from pipeline.surgery.align import cut_aligned, timing_of
from pipeline.surgery.cut.computed import settle
from pipeline.surgery.gather.timing import gathered_by
from pipeline.surgery.plan import example_of
from pipeline.surgery.proof.evidence import Confirmation, confirm
from pipeline.surgery.proof.inputs import fresh_inputs
from pipeline.surgery.proof.remainder import remainder
from pipeline.surgery.shrink import finish, held
from pipeline.surgery.trace import Traced, trace
from pipeline.training.census import census
from runtime import files
from runtime.errors import UserError


@dataclass(frozen=True)
class Request:
    """The network is `config.model`; with `use_data`, channels that are dead on all of `config.data` go too."""

    config: Config
    input_shape: tuple[int, int, int] | None
    """(C, H, W); None takes it from the data."""
    classes: int | None
    """None takes them from the data; without data, the network's maker decides."""
    use_data: bool
    out: Path


def image_shape(text: str | None) -> tuple[int, int, int] | None:
    """`3,224,224` -> (3, 224, 224). UserError where it is something else."""
    if text is None:
        return None
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        channels = height = width = 0
    if min(channels, height, width) < 1:
        raise UserError(f"--input-shape {text}", "three whole numbers from 1: C,H,W", "write e.g. 3,224,224")
    return channels, height, width


def shrink_network(request: Request, progress: Progress) -> dict[str, Any]:
    """Write plan, weights and certificate to a new folder; the JSON document of what was cut. Raises UserError."""
    settings = normalised(request.config, progress.note) if request.use_data else request.config
    images = data.load(settings.data) if request.use_data else None
    shape, classes = _shape(request, images), _classes(request, images)
    with files.new_folder(request.out) as folder:
        network = build(settings.model, num_classes=classes, input_shape=shape).eval()
        compact, difference = _cut(settings, network, shape, images, progress)
        source = Source(
            name=settings.model.name, args=dict(settings.model.args), num_classes=classes, input_shape=shape
        )
        save_compact(compact, folder, source)
    for line in remainder(compact.certificate, settings.surgery.align):
        progress.note(line)
    counts = compact.certificate["channels"]
    channels = {f"channels_{name}": counts[name] for name in ("before", "dead", "after")}
    removed = compact.certificate["evidence"]
    return {"status": "done", "out": str(request.out), **channels, "removed": removed, "max_abs_diff": difference}


def _cut(
    settings: Config, network: nn.Module, shape: tuple[int, int, int], images: Dataset | None, progress: Progress
) -> tuple[Compact, float | None]:
    """The compact network, and its largest fp32 difference over the test split where there is data."""
    section = settings.surgery
    timing = timing_of(settings.check, "auto", settings.engine.flavour)
    if images is None:
        example = example_of(shape)
        samples = fresh_inputs(example, 8, settings.seed)[0]

        def attempt(traced: Traced) -> Compact:
            analysis, choice, cut, alignment = cut_aligned(
                traced, None, section.align, section.residual, samples, timing, progress.note
            )
            compact = finish(network, analysis, choice, cut, tolerance=section.law_tolerance)
            compact.certificate["alignment"] = alignment
            return gathered_by(section.gather, compact, samples, timing, section.law_tolerance, progress.note)

        return held(settle(replace(trace(network, example), probes=True)), attempt), None
    dead, answer = _dead(network, shape, images, progress), task_of(settings.task).answer
    return cut_network(settings.surgery, network, images, dead, timing, progress, answer)


def _dead(network: nn.Module, shape: tuple[int, int, int], images: Dataset, progress: Progress) -> Confirmation:
    """Channels that are dead on the whole training split."""
    units = Anatomy(network, example_of(shape))
    try:
        progress.start("census", len(images.train))
        dead = census(units, ((x,) for x in images_of(images.train, progress)))
        progress.start("confirming the census", len(images.train))
        return confirm(units, dead, images_of(images.train, progress))
    finally:
        progress.stop()


def _shape(request: Request, images: Dataset | None) -> tuple[int, int, int]:
    if images is None:
        if request.input_shape is None:
            raise UserError("no --input-shape and no --data", "the size of an image", "add --input-shape C,H,W")
        return request.input_shape
    if request.input_shape is not None and request.input_shape != images.input_shape:
        requested, actual = (",".join(map(str, shape)) for shape in (request.input_shape, images.input_shape))
        raise UserError(
            f"--input-shape {requested}", f"{actual}, as the images of --data are", "leave --input-shape out"
        )
    return images.input_shape


def _classes(request: Request, images: Dataset | None) -> int | None:
    if images is None:
        return request.classes
    if request.classes not in (None, len(images.names)):
        raise UserError(
            f"--classes {request.classes}", f"{len(images.names)}, the classes of --data", "leave --classes out"
        )
    return len(images.names)
