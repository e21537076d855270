"""The whole line, data to report, on one page: the order of the calls is the order of the stages."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from export.gpu import first_gpu
from pipeline import contents, data, files, rendering, steps
from pipeline.config import Config
from pipeline.config_file import dump_config
from pipeline.progress import Progress
from pipeline.workspace import CONFIG, STAGES, Done, Workspace, open_workspace
from runtime import device as machine
from runtime.backend import DeviceName
from runtime.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, UserError

EXIT_CODES = {"pass": EXIT_PASS, "fail": EXIT_GATE_FAILED, "inconclusive": EXIT_INCONCLUSIVE, "done": EXIT_PASS}
CHECK = "70-check"
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


def line(
    config: Config, content: Mapping[str, str], order: Order, work: Workspace, progress: Progress
) -> Iterator[Done]:
    """The stages in their order, each brought up to date when it is asked for.

    `code` is the version of what a stage does: raise it when the same inputs would leave other bytes than before.
    """
    tree = config.model_dump(mode="json")
    images = functools.cache(partial(data.load, config.data))
    libraries = partial(contents.libraries, config, machine.versions())
    common = {key: tree[key] for key in ("data", "model", "seed", "threads")} | {"content": content}

    dense = work.stage(
        "10-dense",
        partial(steps.dense, config, images, order.device, progress),
        inputs=common | {"dense": tree["dense"]},
        code=1,
        versions=libraries("torch", "numpy"),
        needs_bytes=partial(steps.training_bytes, config, images),
    )
    yield dense
    demp = work.stage(
        "20-demp",
        partial(steps.demp, config, images, order.device, progress),
        inputs=common | {"demp": tree["demp"]},
        code=1,
        versions=libraries("torch", "numpy"),
        needs_bytes=partial(steps.training_bytes, config, images),
    )
    yield demp
    cut = work.stage(
        "30-surgery",
        partial(steps.surgery, config, images, demp, order.device, progress),
        inputs={"surgery": tree["surgery"]} | _timed_in_surgery(config, order),
        upstream=[demp],
        code=1,
        versions=libraries("torch"),
        needs_bytes=partial(files.bytes_in, demp.folder),
    )
    yield cut
    exported = work.stage(
        "40-onnx",
        partial(steps.onnx, config, images, dense, cut),
        inputs={"onnx": tree["onnx"]},
        upstream=[dense, cut],
        code=1,
        versions=libraries("torch", "onnx", "onnxscript"),
        needs_bytes=lambda: files.bytes_in(dense.folder) + files.bytes_in(cut.folder),
    )
    yield exported
    simplified = work.stage(
        "50-simplify",
        partial(steps.simplify, config, images, exported),
        inputs={"simplify": tree["simplify"]},
        upstream=[exported],
        code=1,
        versions=libraries("onnx", "onnxsim"),
        needs_bytes=partial(files.bytes_in, exported.folder),
    )
    yield simplified
    casts = work.stage(
        "55-precision",
        partial(steps.precision, config, images, simplified),
        inputs={"precision": tree["precision"]},
        upstream=[simplified],
        code=1,
        versions=libraries("onnx"),
        needs_bytes=lambda: len(config.precision.graphs) * files.bytes_in(simplified.folder),
    )
    yield casts
    engines = work.stage(
        "60-engine",
        partial(steps.engine, config, cut, simplified, casts, progress),
        inputs={"engine": tree["engine"], "gpu": _gpu()},
        upstream=[cut, simplified, casts],
        code=1,
        versions=libraries("tensorrt", "tensorrt-rtx-cu13"),
        needs_bytes=partial(steps.engine_bytes, config, simplified),
    )
    yield engines
    yield check_stage(config, images, order, work, progress, (dense, cut, exported, simplified, casts, engines))


def check_stage(
    config: Config, images: steps.Data, order: Order, work: Workspace, progress: Progress, made: tuple[Done, ...]
) -> Done:
    return work.stage(
        CHECK,
        partial(steps.check, config, images, order.device, made, progress),
        inputs={
            "check": config.check.model_dump(mode="json"),
            "machine": machine.fingerprint(),
            "device": order.device,
        },
        upstream=made,
        code=1,
        versions=contents.libraries(
            config, machine.versions(), "torch", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13", "pycuda"
        ),
    )


def run(config: Config, order: Order, progress: Progress) -> Outcome:
    """Bring a run folder up to date, as far as the stage `order.until`, and render its report. Raises UserError."""
    demand_device(order.device)
    contents.make_importable(Path.cwd(), order.config_folder.resolve())
    content = contents.of_inputs(config)
    with workspace_of(config, order, progress) as work:
        write_config(config, order.out)
        stages: list[Done] = []
        for done in line(config, content, order, work, progress):
            stages.append(done)
            if done.stage == order.until:
                break
        return outcome_of(order.out, stages, progress)


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
        verdict = json.loads((stages[-1].folder / "check.json").read_text("utf-8"))["verdict"]
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


def _timed_in_surgery(config: Config, order: Order) -> dict[str, Any]:
    """What `align: auto` depends on beside the network."""
    if config.surgery.align != "auto":
        return {}
    timing = config.check.model_dump(mode="json", include={"gate_batch", "threads", "time_limit_s"})
    return {"timing": timing, "machine": machine.fingerprint(), "device": order.device}


def _gpu() -> str | None:
    gpu = first_gpu()
    return None if gpu is None else f"{gpu.name} {gpu.target}"


def demand_device(device: DeviceName) -> None:
    """UserError before any work where `cuda` is asked for and there is no GPU."""
    if device == "cuda" and first_gpu() is None:
        raise UserError("--device cuda, and no NVIDIA GPU or driver is here", "a GPU", "use --device cpu or auto")
