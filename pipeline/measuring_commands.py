"""The commands that time files and write reports."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.command_output import finish
from pipeline.progress import open_progress
from runtime import errors
from runtime.errors import UserError


class Device(str, Enum):  # noqa: UP042  (typer of 2025 takes no StrEnum)
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def bench(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=".onnx and .engine files.")],
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Images a launch, where a file leaves it open; again for a sweep. Default: 32."),
    ] = None,
    streams: Annotated[
        list[int] | None, typer.Option(min=1, help="Also the throughput of so many sessions at once; may be repeated.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime; default: every core.")] = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU if there is one.")] = Device.auto,
    min_blocks: Annotated[int, typer.Option(min=1, help="Fewest ABBA blocks.")] = 30,
    time_limit: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Longest time to measure.")] = 20.0,
    precision: Annotated[
        float, typer.Option(min=0.0001, help="Half-width of a ratio's interval, as a share, at which to stop.")
    ] = 0.01,
) -> int:
    """Compare the latency of exported files, taken in turn."""
    from pipeline import benching

    batches, several = tuple(dict.fromkeys(batch or [32])), tuple(dict.fromkeys(streams or []))
    conditions = benching.Conditions(batches, several, threads, device.value, min_blocks, time_limit, precision)
    told = benching.bench(files, conditions)
    print(benching.table(files, told), file=sys.stderr)
    return finish(told, errors.EXIT_PASS)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run folder; with --compare several.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Put several runs on one plot of accuracy over latency.")
    ] = False,
    card: Annotated[bool, typer.Option("--card", help="Write a README for the exported model.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Page of --compare; default: compare.html beside the first run.")
    ] = None,
) -> int:
    """Write the report of a run again, its model card, or a comparison of runs."""
    from pipeline import finished

    if compare and card:
        raise UserError("--compare with --card", "one of them", "leave one out")
    if compare:
        page = out or runs[0].resolve().parent / "compare.html"
        return finish(finished.compare(runs, page, open_progress()), errors.EXIT_PASS)
    if len(runs) != 1 or out is not None:
        found = f"{len(runs)} runs" if len(runs) != 1 else "--out"
        raise UserError(f"{found} without --compare", "one run folder", "add --compare")
    path = finished.report(runs[0], open_progress())
    document = {"status": "done", "report": str(path)}
    if card:
        document["card"] = str(finished.card(runs[0], open_progress()))
    return finish(document, errors.EXIT_PASS)
