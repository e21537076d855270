"""Stage 60: every engine that the config asks for, or the reason why it is not built."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.stages import Run, Stage
from runtime.gpu import first_gpu

if TYPE_CHECKING:
    from pipeline import config
    from pipeline.config.engine import Precision
    from pipeline.progress import Progress
    from pipeline.results import CastGraphs, Cut, Engines, Role, SimplifiedGraphs


def gpu_at_hand(run: Run) -> Mapping[str, Any]:
    gpu = first_gpu()
    return {"gpu": None if gpu is None else f"{gpu.name} {gpu.target}"}


def engine_bytes(run: Run, cut: Cut, simplified: SimplifiedGraphs, casts: CastGraphs) -> int:
    """What the engines take: each about as much as its graph in fp32."""
    section = run.config.engine
    if section.flavour == "none":
        return 0
    graphs = sum(graph.path.stat().st_size for graph in (simplified.dense, simplified.compact))
    return graphs * (len(section.targets) + (section.flavour == "all")) * len(section.precisions)


def engine(run: Run, cut: Cut, simplified: SimplifiedGraphs, casts: CastGraphs, out: Path) -> Engines:
    """Build the engines. Raises UserError where the library is there and refuses."""
    from runtime.files import sha256

    return build_engines(run.config.engine, simplified, casts, sha256(cut.plan), out, run.progress)


ENGINE = Stage(
    "60-engine",
    engine,
    "engine",
    libraries="tensorrt tensorrt-rtx-cu13 openvino",
    version=3,
    also=gpu_at_hand,
    needs_bytes=engine_bytes,
)


def build_engines(
    section: config.Engine,
    graphs: SimplifiedGraphs,
    casts: CastGraphs,
    plan_sha256: str | None,
    out: Path,
    progress: Progress,
) -> Engines:
    """Build every engine the section asks for, none with the flavour "none"; where no library can build one here, its
    entry says why. Raises UserError where the library is there and refuses.
    """
    from export.engines import EngineUnavailable, engine_from_onnx, engine_name
    from pipeline.results import ROLES, EngineResult, Engines

    if section.flavour == "none":
        return Engines(())
    sources: dict[tuple[Role, str], Path] = {
        ("dense", "fp32"): graphs.dense.path,
        ("compact", "fp32"): graphs.compact.path,
    }
    sources |= {("dense", precision): graph.path for precision, graph in casts.dense.items()}
    sources |= {("compact", precision): graph.path for precision, graph in casts.compact.items()}
    choices, unavailable = _choices(section)
    orders = [(p, flavour, target) for flavour, target in choices for p in section.precisions]
    if section.flavour == "all":
        orders += _for_this_cpu(section, progress)
    requested = [(role, *order) for order in orders for role in ROLES]
    results = [
        EngineResult(role, precision, target, None, reason)
        for target, reason in unavailable.items()
        for precision in section.precisions
        for role in ROLES
    ]
    if requested:
        progress.start("engines", len(requested))
    try:
        for number, (role, precision, flavour, target) in enumerate(requested):
            name = engine_name(role, precision, target, flavour)
            progress.update(number, name)
            try:
                engine = engine_from_onnx(
                    sources[role, precision],
                    out / name,
                    flavour=flavour,
                    precision=precision,
                    target=target,
                    options=section.options_of(flavour),
                    plan_sha256=plan_sha256 if role == "compact" else None,
                    report=partial(_report, progress, number, name),
                )
            except EngineUnavailable as error:
                results.append(EngineResult(role, precision, target, None, str(error)))
            else:
                results.append(EngineResult(role, precision, target, engine, None))
                for note in engine.notes:
                    progress.note(f"{name}: {note}")
            progress.update(number + 1, name)
    finally:
        progress.stop()
    return Engines(tuple(results))


def _report(progress: Progress, number: int, name: str, fraction: float, phase: str) -> None:
    """Engine `number` of the stage is `fraction` done."""
    progress.update(number + min(fraction, 0.99), f"{name}: {phase}")


def _choices(section: config.Engine) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(flavour, target) of the engines that can be built here, each once, and why none can for the other targets."""
    from export.engines import EngineUnavailable, choose

    choices: list[tuple[str, str]] = []
    unavailable: dict[str, str] = {}
    for asked in section.targets:
        try:
            choice = choose("auto" if section.flavour == "all" else section.flavour, (asked,))
        except EngineUnavailable as error:
            unavailable[asked] = str(error)
        else:
            several = [(choice.flavour, target) for target in choice.targets]
            choices += [one for one in several if one not in choices]
    return choices, unavailable


def _for_this_cpu(section: config.Engine, progress: Progress) -> list[tuple[Precision, str, str]]:
    """(precision, flavour, target) of OpenVINO's engines, in the precisions that this CPU has; none, with a note, where
    it is not installed."""
    from export.engines import EngineUnavailable, choose
    from runtime.backends.openvino import precisions

    try:
        choice = choose("openvino", section.targets)
    except EngineUnavailable as error:
        progress.note(f"no engine for this CPU: {error}")
        return []
    here = [precision for precision in section.precisions if precision in precisions()]
    return [(precision, choice.flavour, target) for target in choice.targets for precision in here]
