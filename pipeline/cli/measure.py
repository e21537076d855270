"""The commands that measure and judge: bench, check, report, gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Device, DeviceOption, RunFolder, SetOption
from pipeline.cli.output import finish, judged
from pipeline.progress import open_progress
from runtime import errors
from runtime.errors import UserError, plain

_EXIT_CODES = {
    "pass": errors.EXIT_PASS,
    "updated": errors.EXIT_PASS,
    "fail": errors.EXIT_GATE_FAILED,
    "inconclusive": errors.EXIT_INCONCLUSIVE,
}


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
    time_limit: Annotated[
        float, typer.Option(min=0.1, max=86400, metavar="SECONDS", help="Longest time to measure.")
    ] = 20.0,
    precision: Annotated[
        float, typer.Option(min=0.0001, max=1, help="Half-width of a ratio's interval, as a share, at which to stop.")
    ] = 0.01,
) -> int:
    """Compare the latency of exported files, taken in turn."""
    from pipeline.commands import bench as benching

    batches, several = tuple(dict.fromkeys(batch or [32])), tuple(dict.fromkeys(streams or []))
    conditions = benching.Conditions(batches, several, threads, device.value, min_blocks, time_limit, precision)
    document = benching.bench(files, conditions)
    for line in benching.table(files, document).split("\n"):
        print(plain(line), file=sys.stderr)
    return finish(document, errors.EXIT_PASS)


def check(run: RunFolder, override: SetOption = None, device: DeviceOption = Device.auto) -> int:
    """Measure and judge a finished run again."""
    from pipeline import line
    from pipeline.commands import finished_run as finished

    order = line.Order(out=run, device=device.value, redo=frozenset({line.LAST}))
    outcome = finished.check(order, tuple(override or ()), open_progress())
    return judged(outcome.document(), outcome.verdict, outcome.exit_code)


def baselines(
    run: RunFolder,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Epochs of each training; default: as many as compact had.")
    ] = None,
    device: DeviceOption = Device.auto,
) -> int:
    """Measure what is simpler beside a run's compact network: a narrow one, a lower resolution, channels cut at random,
    int8 alone."""
    from pipeline import line
    from pipeline.commands import baselines as simpler

    order = line.Order(out=run, device=device.value)
    return finish(simpler.baselines(order, epochs, open_progress()), errors.EXIT_PASS)


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
    from pipeline.commands import finished_run as finished

    if compare and card:
        raise UserError("--compare with --card", "one of them", "leave one out")
    if compare:
        page = out or runs[0].resolve().parent / "compare.html"
        return finish(finished.compare(runs, page, open_progress()), errors.EXIT_PASS)
    if len(runs) != 1 or out is not None:
        problem = f"{len(runs)} runs" if len(runs) != 1 else "--out"
        raise UserError(f"{problem} without --compare", "one run folder", "add --compare")
    path = finished.report(runs[0], open_progress())
    document = {"status": "done", "report": str(path)}
    if card:
        document["card"] = str(finished.card(runs[0], open_progress()))
    return finish(document, errors.EXIT_PASS)


def gate(
    run: RunFolder,
    baseline: Annotated[Path, typer.Option(metavar="DIR", help="The accepted release: a folder.")],
    update: Annotated[
        bool, typer.Option("--update", help="Accept this run instead of judging it; asks first.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Answer --update's question, as where there is no terminal.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the verdict as JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the verdict as Markdown.")] = None,
) -> int:
    """Judge a run against the accepted release, timed in turn: 0 pass, 1 regressed, 3 inconclusive."""
    from pipeline.commands import gate as gating

    def accept(changes: list[str]) -> bool:
        for change in changes:
            print(plain(change), file=sys.stderr)
        if not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UserError("--update without a terminal to ask on", "a yes", "look at the figures, then add --yes")
        return yes or typer.confirm(
            f"Accept this run, which changes {len(changes)} figures, into {baseline}?", err=True
        )

    document = gating.gate(
        gating.Request(run, baseline, update, junit, summary, accept, lambda line: print(line, file=sys.stderr))
    )
    return judged(document, document, _EXIT_CODES[document["status"]])
