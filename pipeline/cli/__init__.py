"""The commands, thin: each turns its arguments into one call, prints one JSON line, and answers with an exit code.

0 done or passed, 1 a gate failed, 2 bad usage, config or input (one line on stderr), 3 inconclusive, 130 interrupted,
70 a fault of demport's own, with its traceback.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

from pipeline.cli import measure, serve, work
from runtime import errors
from runtime.errors import UserError, one_line
from runtime.faults import machine_fault

EXIT_INTERNAL = 70
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer has its own copy of click, or click, by its version

app = typer.Typer(
    name="demport",
    help="Train with DemP, cut dead channels out exactly, export to ONNX and TensorRT, and check against dense.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


app.command(cls=work.RunCommand)(work.run)
app.command()(work.prune)
app.command()(work.shrink)
app.command()(measure.bench)
app.command()(measure.check)
app.command()(measure.report)
app.command()(measure.baselines)
app.command()(measure.gate)
app.command()(serve.publish)
app.command()(serve.ask)
app.command()(serve.preflight)
app.command()(serve.doctor)


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
        problem = str(error.format_message())  # type: ignore[attr-defined]  # every ClickException has it
        usage = " ".join(context.get_usage().split()[1:]) if context else "demport COMMAND"
        return _complain(f"{problem.rstrip('.')}; expected {usage}; `{path} --help` tells more")
    except SystemExit as error:  # typer's own exits come back as codes
        return _complain(_ended(error))
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        return errors.EXIT_INTERRUPTED
    except (MemoryError, OSError, RuntimeError) as error:
        if (fault := machine_fault(error)) is not None:
            return _complain(str(fault))
        return _own_fault()
    except Exception:
        return _own_fault()


def _ended(error: SystemExit) -> str:
    """Of an exit that somebody else's code asked for: a script that is imported, or a constructor."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}, line {frames[-1].lineno}," if frames else "code of the config"
    text = f"{where} ended the program ({one_line(str(error.code))[:200]}) before the command was done"
    return f"{text}; modules that import and functions that return; take the exit out of it"


def _own_fault() -> int:
    traceback.print_exc()
    print("error: a fault of demport's own; please report it with the lines above", file=sys.stderr)
    return EXIT_INTERNAL


def _complain(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return errors.EXIT_USAGE


def main() -> None:
    """Entry point of the command `demport`."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(command_line(sys.argv[1:]))
