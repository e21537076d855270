"""The commands about servers: write what one loads, and ask one."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.command_output import finish
from pipeline.progress import open_progress
from runtime import errors
from runtime.errors import UserError


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
    from pipeline import finished
    from pipeline.publishing import Target, roll_back

    if rollback:
        if replace:
            raise UserError("--rollback with --replace", "one of them", "leave one out")
        return finish(roll_back(directory or run).document(), errors.EXIT_PASS)
    if directory is None:
        raise UserError("no folder to write", "demport publish RUN DIR", "name one")
    if strange := [text for text in override or () if not text.startswith("publish.")]:
        raise UserError(f"--set {strange[0]}", "a key of the section publish", "change others with `demport run`")
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
) -> int:
    """Ask a server what it was given to answer, and compare: 0 the same, 1 not. Or let it classify an image."""
    from pipeline import asking

    if math.isnan(wait) or math.isnan(tolerance):
        raise UserError("nan for --wait or --tolerance", "a number", "give one")
    order = asking.Order(url, directory, model, wait, tolerance)
    told = asking.classify(order, image) if image is not None else asking.compare(order)
    return finish(told, errors.EXIT_GATE_FAILED if told["status"] == "fail" else errors.EXIT_PASS)
