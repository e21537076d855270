"""The whole line, data to report, on one page: the order of the calls is the order of the stages."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from export.gpu import first_gpu
from pipeline import contents, data, files, rendering, steps
from pipeline.config import Config
from pipeline.config_file import dump_config
from pipeline.progress import Progress
from pipeline.report.reading import read_told
from pipeline.steps import Task
from pipeline.workspace import CONFIG, STAGES, Done, Workspace, open_workspace
from runtime import device as machine
from runtime.backend import DeviceName
from runtime.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, UserError

EXIT_CODES = {"pass": EXIT_PASS, "fail": EXIT_GATE_FAILED, "inconclusive": EXIT_INCONCLUSIVE, "done": EXIT_PASS}
CHECK = "70-check"
BESIDE = {"checkpoint_s", "workers"}  # keys on which nothing that a stage leaves depends
HEADER = "# The config of the last run in this folder, with every default written out.\n"


@dataclass(frozen=True)
class Order:
    """What the command line asks for beside the config."""

    out: Path
    device: DeviceName = "auto"
    until: str = CHECK
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


def line(task: Task, content: Mapping[str, str], work: Workspace) -> Iterator[Done]:
    """The stages in their order, each brought up to date when it is asked for; `content` is `contents.of_inputs`."""
    tree = task.config.model_dump(mode="json", exclude={"data": BESIDE})
    common = {key: tree[key] for key in ("data", "model", "seed", "threads")} | {"content": content}
    training = partial(steps.training_bytes, task)
    stage = partial(_stage, work, task, machine.versions())

    trained = partial(stage, libraries="torch numpy", needs_bytes=training, code=2, keeps=True)
    dense = trained("10-dense", steps.dense, inputs=common)
    yield dense
    demp = trained("20-demp", steps.demp, inputs=common | _removals(task))
    yield demp
    cut = stage("30-surgery", steps.surgery, demp, libraries="torch", inputs=_timed_in_surgery(task))
    yield cut
    exported = stage("40-onnx", steps.onnx, dense, cut, libraries="torch onnx onnxscript", code=2)
    yield exported
    simplified = stage("50-simplify", steps.simplify, exported, libraries="onnx onnxsim onnxslim")
    yield simplified
    casts = stage(
        "55-precision",
        steps.precision,
        simplified,
        libraries="onnx onnxruntime",
        inputs={**_timed_for_best(task), "serving": tree["serving"]},
        code=2,
    )
    yield casts
    engines = stage(
        "60-engine",
        steps.engine,
        *(cut, simplified, casts),
        libraries="tensorrt tensorrt-rtx-cu13",
        needs_bytes=partial(steps.engine_bytes, task, simplified),
        inputs={"gpu": _gpu()},
        code=2,
    )
    yield engines
    yield check_stage(work, task, dense, demp, cut, exported, simplified, casts, engines)


def check_stage(work: Workspace, task: Task, *made: Done) -> Done:
    """Stage 70; `made` are the stages 10 to 60."""
    return _stage(
        work,
        task,
        machine.versions(),
        CHECK,
        steps.check,
        *made,
        libraries="torch onnxruntime tensorrt tensorrt-rtx-cu13 pycuda",
        needs_bytes=lambda: 0,
        inputs={
            "machine": machine.fingerprint(),
            "device": task.device,
            "content": contents.of_check(task.config.check),
        },
        code=3,
    )


def _stage(
    work: Workspace,
    task: Task,
    installed: Mapping[str, str],
    name: str,
    step: Callable[..., object],
    *upstream: Done,
    libraries: str = "",
    needs_bytes: Callable[[], int] | None = None,
    inputs: Mapping[str, Any] | None = None,
    code: int = 1,
    keeps: bool = False,
) -> Done:
    """One stage: made from the config section of its own name, the stages before it, the `libraries` and `inputs`.

    `needs_bytes`: by default what the stages before it take. `code` is the version of what the stage does: raise it
    when the same inputs would leave other bytes than before.
    """
    key = name.partition("-")[2]
    section = getattr(task.config, key).model_dump(mode="json", exclude=BESIDE)
    return work.stage(
        name,
        partial(step, task, *upstream),
        inputs={**(inputs or {}), key: section},
        upstream=upstream,
        code=code,
        versions=contents.libraries(task.config, installed, *libraries.split()),
        needs_bytes=needs_bytes or (lambda: sum(files.bytes_in(done.folder) for done in upstream)),
        keeps=keeps,
    )


def run(config: Config, order: Order, progress: Progress) -> Outcome | None:
    """Bring a run folder up to date, as far as the stage `order.until`, and render its report; None in a process that
    only trains beside the one that does. Raises UserError."""
    demand_device(order.device)
    contents.make_importable(Path.cwd(), order.config_folder.resolve())
    task = task_of(config, order, progress)
    if started_beside_others():
        from pipeline.training.crew import follow

        follow(config, task.data, order.device)
        return None
    content = contents.of_inputs(config)
    if order.until == CHECK:
        contents.try_check(config.check)  # told now, not after the training
    with workspace_of(config, order, progress) as work, crew_of(order.device) as dismiss:
        write_config(config, order.out)
        stages: list[Done] = []
        for done in line(task, content, work):
            stages.append(done)
            if done.stage == "20-demp":
                dismiss()
            if done.stage == order.until:
                break
        return outcome_of(order.out, stages, progress)


def started_beside_others() -> bool:
    """Whether torchrun started this process to train beside the one that writes."""
    return os.environ.get("RANK", "0") != "0"


@contextmanager
def crew_of(device: DeviceName) -> Iterator[Callable[[], None]]:
    """The other processes that torchrun started, joined; yields what sends them home."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield lambda: None
        return
    from pipeline.training.crew import lead

    with lead(device) as dismiss:
        yield dismiss


def task_of(config: Config, order: Order, progress: Progress) -> Task:
    """What the stages use; the data is read when a stage first asks for it."""
    return Task(config, functools.cache(partial(data.load, config.data)), order.device, progress, order.until)


def stage_named(name: str, option: str) -> str:
    """`surgery` or `30-surgery` -> `30-surgery`. Raises UserError naming the option."""
    known = [stage for stage in STAGES if stage <= CHECK]
    matches = [stage for stage in known if name in (stage, stage.partition("-")[2])]
    if not matches:
        raise UserError(f"{option} {name}", f"one of {', '.join(known)}", "name a stage of the line")
    return matches[0]


def outcome_of(folder: Path, stages: list[Done], progress: Progress) -> Outcome:
    """Render the report where it is not that of the folder, and tell what happened."""
    if not rendering.is_current(folder):
        progress.note("report: written")
        rendering.render(folder)
    elif not any(done.ran for done in stages):
        progress.note(f"nothing to do: {folder} is up to date")
    verdict = None
    if stages[-1].stage == CHECK:
        verdict = read_told(stages[-1].folder / "check.json")["verdict"]
    done = tuple(done.stage for done in stages if done.ran)
    return Outcome(folder, verdict, done, tuple(done.stage for done in stages if not done.ran))


def workspace_of(config: Config, order: Order, progress: Progress) -> AbstractContextManager[Workspace]:
    """The run folder, locked for as long as it is open."""

    @functools.cache
    def facts() -> dict[str, Any]:
        from pipeline.training.repeatable import torch_device

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
    return f"PYTHONPATH={path} {shlex.join(words)}" if contents.has_own_code(config) else shlex.join(words)


def write_config(config: Config, folder: Path) -> None:
    """Keep the config in the run folder, for the commands that work on it later."""
    text, path = HEADER + dump_config(config), folder / CONFIG
    if not path.is_file() or path.read_bytes() != text.encode():
        files.write_text(path, text)


def _removals(task: Task) -> dict[str, Any]:
    """What a DemP training depends on beside its section: channels that surgery may want to keep stay until then."""
    section = task.config.demp
    if section.prune_every == "end" and section.target is None:
        return {}
    timed = section.cost == "latency" or (section.target is not None and section.target.latency_ms is not None)
    return {"align": task.config.surgery.align, **({"machine": machine.fingerprint()} if timed else {})}


def _timed_in_surgery(task: Task) -> dict[str, Any]:
    """What `align: auto` depends on beside the network."""
    if task.config.surgery.align != "auto":
        return {}
    timing = task.config.check.model_dump(mode="json", include={"gate_batch", "threads", "time_limit_s"})
    return {"timing": timing, "machine": machine.fingerprint(), "device": task.device}


def _timed_for_best(task: Task) -> dict[str, Any]:
    """What `best` depends on beside the graphs."""
    if "best" not in task.config.precision.graphs:
        return {}
    return {"machine": machine.fingerprint(), "device": task.device}


def _gpu() -> str | None:
    gpu = first_gpu()
    return None if gpu is None else f"{gpu.name} {gpu.target}"


def demand_device(device: DeviceName) -> None:
    """UserError before any work where `cuda` is asked for and there is no GPU."""
    if device == "cuda" and first_gpu() is None:
        raise UserError("--device cuda, and no NVIDIA GPU or driver is here", "a GPU", "use --device cpu or auto")
