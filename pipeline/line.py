"""The whole line, data to report, on one page: the order of the calls is the order of the stages."""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import data
from pipeline.config import Config
from pipeline.config.file import dump_config
from pipeline.models.recipe import normalised
from pipeline.progress import Progress, Silent
from pipeline.report import render as rendering
from pipeline.stages import Run, bring_up_to_date
from pipeline.stages.check import CHECK
from pipeline.stages.engine import ENGINE
from pipeline.stages.onnx import ONNX, SIMPLIFY
from pipeline.stages.pair import PAIR, PAIR_CHECK, PAIR_ENGINE, PAIR_ONNX
from pipeline.stages.precision import PRECISION
from pipeline.stages.surgery import SURGERY
from pipeline.stages.train import DENSE, SPARSE, follow, lead, uses_dense
from pipeline.workspace import fingerprint
from pipeline.workspace.folder import CONFIG, HEADER, Done, Workspace, open_workspace
from pipeline.workspace.stages import EVERY, stages_of
from runtime import device as machine
from runtime import files
from runtime.backends import DeviceName, openvino
from runtime.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, UserError
from runtime.gpu import first_gpu

EXIT_CODES = {"pass": EXIT_PASS, "fail": EXIT_GATE_FAILED, "inconclusive": EXIT_INCONCLUSIVE, "done": EXIT_PASS}
LAST = CHECK.folder


@dataclass(frozen=True)
class Order:
    """What the command line asks for beside the config."""

    out: Path
    device: DeviceName = "auto"
    until: str = LAST
    redo: frozenset[str] = frozenset()
    config_folder: Path = Path()
    """Where the config file stands; modules in it are importable."""


@dataclass(frozen=True)
class Outcome:
    """What a run did. `verdict` is None where the check was not reached."""

    run: Path
    verdict: Mapping[str, Any] | None
    done: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def status(self) -> str:
        return "done" if self.verdict is None else str(self.verdict["status"])

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]

    def document(self) -> dict[str, Any]:
        """The JSON document that ends the command's output."""
        report = str(self.run / "report.html")
        fields = {"run": str(self.run), "report": report, "verdict": self.verdict}
        return {"status": self.status, **fields, "done": list(self.done), "skipped": list(self.skipped)}


def line(run: Run, work: Workspace) -> Iterator[Done]:
    """The stages in their order, each brought up to date when it is asked for."""
    stage = partial(bring_up_to_date, run, work)

    if run.config.given is not None:
        yield (pair := stage(PAIR))
        yield (exported := stage(PAIR_ONNX, pair))
        yield (simplified := stage(SIMPLIFY, exported))
        yield (lower := stage(PRECISION, simplified))
        yield (engines := stage(PAIR_ENGINE, pair, simplified, lower))
        yield stage(PAIR_CHECK, pair, exported, simplified, lower, engines)
        return
    yield (dense := stage(DENSE))
    yield (sparse := stage(SPARSE, *([dense] if uses_dense(run.config) else [])))
    yield (cut := stage(SURGERY, sparse))
    yield (exported := stage(ONNX, dense, cut))
    yield (simplified := stage(SIMPLIFY, exported))
    yield (lower := stage(PRECISION, simplified))
    yield (engines := stage(ENGINE, cut, simplified, lower))
    yield stage(CHECK, dense, sparse, cut, exported, simplified, lower, engines)


def run(config: Config, order: Order, progress: Progress) -> Outcome | None:
    """Bring a run folder up to date, as far as the stage `order.until`, and render its report; None in a process that
    only trains beside the one that does. Raises UserError."""
    demand_device(order.device)
    demand_timing(config)
    fingerprint.make_importable(Path.cwd(), order.config_folder.resolve())
    config = normalised(config, progress.note)
    if started_beside_others():
        follow(config, data_of(config, Silent()), order.device)
        return None
    demand_stages(config, order)
    asked = run_of(config, order, progress)
    if order.until == LAST:
        fingerprint.try_check(config.check)  # an error now is better than one after the trainings
    with workspace_of(config, order, progress) as work, processes_of(order.device) as dismiss:
        write_config(config, order.out)
        stages: list[Done] = []
        for done in line(asked, work):
            stages.append(done)
            if done.stage == SPARSE.folder:
                dismiss()
            if done.stage == order.until:
                break
        return outcome_of(order.out, stages, progress)


def demand_stages(config: Config, order: Order) -> None:
    """UserError before any work where a stage is asked for that this line does not have."""
    stages = stages_of(config)
    if absent := sorted({order.until, *order.redo} - set(stages)):
        raise UserError(
            f"stage {absent[0]} is asked for", f"one of {', '.join(stages)}, the stages of this config", "name one"
        )


def started_beside_others() -> bool:
    """Whether torchrun started this process to train beside the one that writes."""
    return os.environ.get("RANK", "0") != "0"


@contextmanager
def processes_of(device: DeviceName) -> Iterator[Callable[[], None]]:
    """The other processes that torchrun started, joined; yields what sends them home."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield lambda: None
        return
    with lead(device) as dismiss:
        yield dismiss


def data_of(config: Config, progress: Progress) -> Callable[[], data.Dataset]:
    """Reads the data set at the first call."""

    @functools.cache
    def read() -> data.Dataset:
        dataset = data.load(config.data)
        for note in dataset.notes:
            progress.note(f"data: {note}")
        return dataset

    return read


def run_of(config: Config, order: Order, progress: Progress) -> Run:
    """What the stages use. UserError where the data, the starting weights or the user's code are not there."""
    content = fingerprint.of_inputs(config)
    return Run(config, data_of(config, progress), order.device, progress, order.until, content)


def stage_named(name: str, option: str) -> str:
    """`surgery` or `30-surgery` -> `30-surgery`. Raises UserError naming the option."""
    stages = [stage for stage in EVERY if stage <= LAST]
    matches = [stage for stage in stages if name in (stage, stage.partition("-")[2])]
    if not matches:
        raise UserError(f"{option} {name}", f"one of {', '.join(stages)}", "name a stage of the line")
    return matches[0]


def outcome_of(folder: Path, stages: list[Done], progress: Progress) -> Outcome:
    """Render the report where it is not that of the folder, and tell what happened."""
    if not rendering.is_current(folder):
        progress.note("report: written")
        rendering.render(folder)
    elif not any(done.ran for done in stages):
        progress.note(f"nothing to do: {folder} is up to date")
    verdict = None
    if stages[-1].stage == LAST:
        from pipeline.check import results

        judged = results.read(stages[-1].folder / "check.json").verdict
        verdict = {"status": judged.status, "gates": [dataclasses.asdict(gate) for gate in judged.gates]}
    done = tuple(done.stage for done in stages if done.ran)
    return Outcome(folder, verdict, done, tuple(done.stage for done in stages if not done.ran))


def workspace_of(config: Config, order: Order, progress: Progress) -> AbstractContextManager[Workspace]:
    """The run folder, locked for as long as it is open."""

    @functools.cache
    def facts() -> dict[str, Any]:
        from pipeline.training.compute.device import torch_device

        device = str(torch_device(order.device))
        return {"device": device, "seed": config.seed, "environment": machine.environment()}

    return open_workspace(
        order.out, say=progress.note, facts=facts, command=partial(_command, config, order), redo=order.redo
    )


def _command(config: Config, order: Order, stage: str) -> str:
    """Repeats one stage alone, from the folder the run was started in."""
    words = ["demport", "run", str(order.out / CONFIG), "--out", str(order.out), "--until", stage, "--redo", stage]
    if order.device != "auto":
        words += ["--device", order.device]
    path = shlex.quote(str(order.config_folder))
    return f"PYTHONPATH={path} {shlex.join(words)}" if fingerprint.has_own_code(config) else shlex.join(words)


def write_config(config: Config, folder: Path) -> None:
    """Keep the config in the run folder, for the commands that work on it later."""
    text, path = HEADER + dump_config(config), folder / CONFIG
    if not path.is_file() or path.read_bytes() != text.encode():
        files.write_text(path, text)


def demand_timing(config: Config) -> None:
    """UserError before any work where `align: auto` or `best` is to time on OpenVINO and it is not here."""
    timed = config.surgery.align == "auto" or "best" in config.precision.graphs
    if timed and config.engine.flavour == "openvino":
        openvino.core()


def demand_device(device: DeviceName) -> None:
    """UserError before any work where `cuda` is asked for and there is no GPU."""
    if device == "cuda" and first_gpu() is None:
        raise UserError("--device cuda, and no NVIDIA GPU or driver is here", "a GPU", "use --device cpu or auto")
