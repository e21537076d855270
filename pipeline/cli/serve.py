"""The commands about other machines: publish, ask, preflight; and doctor about this one."""

from __future__ import annotations

import math
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.output import finish
from pipeline.progress import open_progress
from runtime import errors
from runtime.errors import UserError, plain


class Format(str, Enum):  # noqa: UP042  (typer of 2025 takes no StrEnum)
    triton = "triton"
    bundle = "bundle"


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; with --rollback it may be left out.")],
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", help="The folder to write.")] = None,
    format: Annotated[
        Format, typer.Option(help="A Triton repository, or a bundle for KServe and OpenVINO Model Server.")
    ] = Format.triton,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what demport published there before.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Put back what --replace replaced.")] = False,
    allow_rtx: Annotated[
        bool,
        typer.Option("--allow-rtx", help="Also engines of tensorrt_rtx, which Triton's own backend does not load."),
    ] = False,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="publish.key=value", help="Override a key.")
    ] = None,
) -> int:
    """Write what a server loads from a run, replace it, or take it back."""
    from pipeline.commands import finished_run as finished
    from pipeline.stages.publish import Target, roll_back

    if rollback:
        if replace:
            raise UserError("--rollback with --replace", "one of them", "leave one out")
        return finish(roll_back(directory or run).document(), errors.EXIT_PASS)
    if directory is None:
        raise UserError("no folder to write", "demport publish RUN DIR", "name one")
    target = Target(directory, format.value, replace, allow_rtx)
    published = finished.publish(run, target, tuple(override or ()), open_progress())
    return finish(published.document(), errors.EXIT_PASS)


def ask(
    url: Annotated[str, typer.Argument(metavar="URL", help="A server of the V2 protocol, e.g. http://localhost:8000.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that demport published to it.")],
    model: Annotated[str | None, typer.Option(metavar="NAME", help="One model of it; default: all of them.")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An image to classify, instead of the recorded requests.")
    ] = None,
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for the server.")] = 0.0,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of an output, relative to the largest recorded one.")
    ] = 1e-4,
    during_publish: Annotated[
        bool, typer.Option("--during-publish", help="16 clients ask without a pause until another release answers.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long they ask before and after it.")
    ] = 10.0,
) -> int:
    """Ask a server what it was given to answer, and compare: 0 the same, 1 not. Or let it classify an image. Or watch
    it take a release: nothing lost, nothing wrong, and the latency before, during and after."""
    from pipeline.commands import ask as asking
    from pipeline.commands.swap import ask_during_publish

    if image is not None and during_publish:
        raise UserError("--image with --during-publish", "one of them", "leave one out")
    if math.isnan(wait) or math.isnan(tolerance):
        raise UserError("nan for --wait or --tolerance", "a number", "give one")
    order = asking.Order(url, directory, model, wait, tolerance)
    if during_publish:
        document = ask_during_publish(order, seconds, lambda text: typer.echo(text, err=True))
    else:
        document = asking.classify(order, image) if image is not None else asking.compare(order)
    return finish(document, errors.EXIT_GATE_FAILED if document["status"] == "fail" else errors.EXIT_PASS)


def preflight(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine file.")],
    triton_image: Annotated[
        str | None, typer.Option(metavar="TAG", help="Ask for this image of Triton, e.g. 26.08-py3, not this machine.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="SMxx", help="Ask for a GPU of this compute capability, e.g. SM86.")
    ] = None,
) -> int:
    """Say whether a machine can load an engine, and what to build if not."""
    from export.engines.preflight import examine

    answer = examine(engine, triton_image, gpu)
    for text in (f"{answer.status}: {answer.engine.name} on {answer.machine}", *answer.reasons):
        print(plain(text), file=sys.stderr)
    if answer.rebuild:
        print(plain(f"rebuild: {answer.rebuild}"), file=sys.stderr)
    return finish(answer.document(), answer.exit_code)


def doctor() -> int:
    """Say what is installed here and what it can do."""
    from pipeline.commands.doctor import diagnose

    print(diagnose())
    return errors.EXIT_PASS
