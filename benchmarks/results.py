"""What every benchmark writes: its points with the command, the machine and the versions; and how one goes on."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.device import environment
from runtime.errors import EXIT_GATE_FAILED, EXIT_PASS
from runtime.files import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Point = dict[str, Any]


def parser(name: str, document: str | None, out: str | None = None, required: bool = True) -> argparse.ArgumentParser:
    """Of `python -m benchmarks.NAME`, with --out, by default the results file `out`."""
    command_line = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(document or "").splitlines()[0]
    )
    default = RESULTS / out if out else None
    text = "results file; what it holds is not measured again"
    command_line.add_argument("--out", type=Path, default=default, required=required and not out, help=text)
    return command_line


def command(parser: argparse.ArgumentParser, options: argparse.Namespace, leave_out: Iterable[str] = ()) -> str:
    """The line that measures the same again: where it writes, and every option that is not as it is by default.

    `leave_out`: options that decide no figure, and paths of one machine.
    """
    words = [parser.prog, "--out", f"benchmarks/results/{options.out.name}"]
    for name, value in vars(options).items():
        if name in ("out", *leave_out) or value == parser.get_default(name):
            continue
        several = value if isinstance(value, (list, tuple)) else [] if value is True else [value]
        texts = (f"{one:g}" if isinstance(one, float) else str(one) for one in several)
        words += [f"--{name.replace('_', '-')}", *map(shlex.quote, texts)]
    return " ".join(words)


def points_in(out: Path) -> list[Point]:
    """Those that the file holds; none where there is no file."""
    points: list[Point] = json.loads(out.read_text("utf-8"))["points"] if out.is_file() else []
    return points


def write(out: Path, line: str, points: Sequence[Point], n: int | None = None, **more: Any) -> None:
    """The results file; `n` is the number of points unless something else was counted."""
    count = len(points) if n is None else n
    document = {"schema": 1, "command": line, **more, "environment": machine(), "n": count, "points": list(points)}
    write_json(out, document)


def machine() -> dict[str, Any]:
    """This machine and the versions that figures depend on, torch-pruning's among them where it is installed."""
    here = environment()
    with contextlib.suppress(PackageNotFoundError):
        here["versions"]["torch-pruning"] = version("torch-pruning")
    return here


def fill(out: Path, line: str, cases: Sequence[Point], measure: Callable[[Point], list[Point]], limit_s: float) -> bool:
    """Measure the cases that `out` has no point of, until `limit_s` seconds are over; whether all are there.

    A case is the text and numbers that its points begin with. Written after each case.
    """
    end = time.monotonic() + limit_s
    points = points_in(out)
    for case in cases:
        if any(case.items() <= point.items() for point in points):
            continue
        if time.monotonic() > end:
            return False
        points += [{**case, **point} for point in measure(case)]
        write(out, line, points)
    return True


def judge(broken: Sequence[str]) -> int:
    """The exit code, after a line for every promise that is broken."""
    for text in broken:
        print(f"missed: {text}", file=sys.stderr)
    return EXIT_GATE_FAILED if broken else EXIT_PASS
