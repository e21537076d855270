"""The commands, thin: each turns its arguments into one call, prints one JSON line, and answers with an exit code.

0 done or passed, 1 a gate failed, 2 bad usage, config or input (one line on stderr), 3 inconclusive, 130 interrupted,
70 a fault of demport's own, with its traceback.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from pipeline import measuring_commands, serving_commands
from pipeline.command_output import finish
from pipeline.measuring_commands import Device
from pipeline.progress import open_progress
from runtime import errors
from runtime.errors import UserError

EXIT_INTERNAL = 70
EXIT_CODES = {
    "pass": errors.EXIT_PASS,
    "updated": errors.EXIT_PASS,
    "fail": errors.EXIT_GATE_FAILED,
    "inconclusive": errors.EXIT_INCONCLUSIVE,
}
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer has its own copy of click, or click, by its version

app = typer.Typer(
    name="demport",
    help="Train with DemP, cut dead channels out exactly, export to ONNX and TensorRT, and check against dense.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class RunCommand(TyperCommand):
    """`run`, whose help ends with the keys of a config."""

    def get_help(self, ctx: Any) -> str:
        from pipeline.config_file import describe_config

        return f"{super().get_help(ctx)}\n\nKeys of a config, and of --set:\n\n{describe_config()}"


DeviceOption = Annotated[
    Device, typer.Option(help="Where torch trains and measures; auto takes a GPU if there is one.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="section.key=value", help="Override a key.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def _print_schema(asked: bool) -> None:
    if asked:
        from pipeline.config_file import config_schema

        print(json.dumps(config_schema(), indent=2))
        raise typer.Exit


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"demport {version('demport')}")
        raise typer.Exit


@app.callback()
def demport(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train with DemP, cut dead channels out exactly, export to ONNX and TensorRT, and check against dense."""


@app.command(cls=RunCommand)
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config, e.g. configs/quickstart.yaml.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/<name of CONFIG>.")] = None,
    override: SetOption = None,
    device: DeviceOption = Device.auto,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Last stage to run, e.g. 40-onnx.")] = None,
    redo: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run it although it is up to date.")] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--print-schema", callback=_print_schema, is_eager=True, help="Print the JSON schema of a config."
        ),
    ] = False,
) -> int:
    """The whole line, from data to report."""
    from pipeline import run as line
    from pipeline.config_file import load_config

    settings = load_config(config, override or ())
    order = line.Order(
        out=out or Path("runs") / config.stem,
        device=device.value,
        until=line.CHECK if until is None else line.stage_named(until, "--until"),
        redo=frozenset(line.stage_named(name, "--redo") for name in redo or ()),
        config_folder=config.parent,
    )
    outcome = line.run(settings, order, open_progress())
    if outcome is None:
        return errors.EXIT_PASS
    return _judged(outcome.document(), outcome.verdict, outcome.exit_code)


@app.command()
def shrink(
    model: Annotated[str, typer.Option(metavar="SPEC", help="As model.name of a config.")],
    weights: Annotated[Path, typer.Option(metavar="FILE", help="safetensors of that network.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for plan, weights and certificate.")],
    input_shape: Annotated[str | None, typer.Option(metavar="C,H,W", help="Size of an image, e.g. 3,224,224.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="As data.source: cut what is dead on it, not only by proof.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Default: the data's, else what the network's maker gives.")
    ] = None,
    override: SetOption = None,
) -> int:
    """Cut the dead channels out of a network of your own."""
    from pipeline import shrinking
    from pipeline.config_file import config_from_overrides
    from pipeline.contents import make_importable

    given = {"model.name": model, "model.weights": str(weights)} | ({"data.source": data} if data else {})
    settings = config_from_overrides([f"{key}={json.dumps(value)}" for key, value in given.items()] + (override or []))
    make_importable(Path.cwd())
    request = shrinking.Request(settings, shrinking.image_shape(input_shape), classes, data is not None, out)
    return finish(shrinking.shrink_network(request, open_progress()), errors.EXIT_PASS)


app.command()(measuring_commands.bench)


@app.command()
def check(run: RunFolder, override: SetOption = None, device: DeviceOption = Device.auto) -> int:
    """Measure and judge a finished run again."""
    from pipeline import finished
    from pipeline import run as line

    order = line.Order(out=run, device=device.value, redo=frozenset({line.CHECK}))
    outcome = finished.check(order, tuple(override or ()), open_progress())
    return _judged(outcome.document(), outcome.verdict, outcome.exit_code)


app.command()(measuring_commands.report)


@app.command()
def gate(
    run: RunFolder,
    baseline: Annotated[Path, typer.Option(metavar="FILE", help="Figures accepted before.")],
    update: Annotated[
        bool, typer.Option("--update", help="Accept this run's figures instead of judging them; asks first.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Answer --update's question, as where there is no terminal.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the verdict as JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the verdict as Markdown.")] = None,
) -> int:
    """Judge a run against a baseline: 0 pass, 1 regressed, 3 inconclusive."""
    from pipeline import gating

    def accept(changes: list[str]) -> bool:
        for change in changes:
            print(change, file=sys.stderr)
        if not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UserError("--update without a terminal to ask on", "a yes", "look at the figures, then add --yes")
        return yes or typer.confirm(f"Accept these {len(changes)} figures into {baseline}?", err=True)

    told = gating.gate(gating.Request(run, baseline, update, junit, summary, accept))
    return _judged(told, told, EXIT_CODES[told["status"]])


app.command()(serving_commands.publish)
app.command()(serving_commands.ask)


@app.command()
def preflight(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine file.")],
    triton_image: Annotated[
        str | None, typer.Option(metavar="TAG", help="Ask for this image of Triton, e.g. 25.09-py3, not this machine.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="SMxx", help="Ask for a GPU of this compute capability, e.g. SM86.")
    ] = None,
) -> int:
    """Say whether a machine can load an engine, and what to build if not."""
    from export.preflight import examine

    told = examine(engine, triton_image, gpu)
    print("\n".join((f"{told.status}: {told.engine.name} on {told.machine}", *told.reasons)), file=sys.stderr)
    if told.rebuild:
        print(f"rebuild: {told.rebuild}", file=sys.stderr)
    return finish(told.document(), told.exit_code)


@app.command()
def doctor() -> int:
    """Say what is installed here and what it can do."""
    from pipeline.doctor import diagnose

    print(diagnose())
    return errors.EXIT_PASS


def _judged(document: Mapping[str, Any], verdict: Mapping[str, Any] | None, code: int) -> int:
    """Tell people the verdict's gates and the report before the JSON document."""
    for gate in verdict["gates"] if verdict else ():
        print(f"{gate['status']:12}  {gate['name']}: {gate['reason']}", file=sys.stderr)
    if "report" in document:
        print(f"report: {document['report']}", file=sys.stderr)
    return finish(document, code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def command_line(arguments: Sequence[str]) -> int:
    """Run one command; the exit code. Everything a user can cause ends in one line on stderr."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=list(arguments), prog_name="demport", standalone_mode=False)
        if code == errors.EXIT_INTERRUPTED:  # typer turns a KeyboardInterrupt into this
            raise KeyboardInterrupt
        return errors.EXIT_PASS if code is None else int(code)
    except UserError as error:
        return _complain(str(error))
    except UsageError as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "demport"
        found = str(error.format_message())  # type: ignore[attr-defined]  # every ClickException has it
        usage = " ".join(context.get_usage().split()[1:]) if context else "demport COMMAND"
        return _complain(f"{found.rstrip('.')}; expected {usage}; `{path} --help` tells more")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        return errors.EXIT_INTERRUPTED
    except Exception:
        traceback.print_exc()
        print("error: a fault of demport's own; please report it with the lines above", file=sys.stderr)
        return EXIT_INTERNAL


def _complain(message: str) -> int:
    line = " ".join(message.split())  # what a file or a server put into it must not steer the terminal
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print(f"error: {plain}", file=sys.stderr)
    return errors.EXIT_USAGE


def main() -> None:
    """Entry point of the command `demport`."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
