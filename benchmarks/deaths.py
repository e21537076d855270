"""Networks of torchvision with dead channels in known patterns, and the latency of what is left of them.

Weights are random, of variance 2 / fan-in; a channel dies by a scale and shift of zero in its batch normalisation.
Latency depends on widths, not on values.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from benchmarks.networks import build
from export.files import write_json
from export.onnx_from_torch import onnx_from_torch
from runtime.backend import open_session
from runtime.device import environment
from runtime.latency import Comparison
from runtime.openings import compare_openings

SIDE = 128
OPSET = 18
Point = dict[str, Any]
Share = Callable[[float, bool, torch.Generator], float]
"""Of a layer's depth (0 first, 1 last), whether it writes to a residual stream, and a generator: what share dies."""
Measured = Callable[[Point, int, float], list[Point]]
"""Of a case, threads, and the seconds that one comparison may take: its points."""


def half(depth: float, in_stream: bool, generator: torch.Generator) -> float:
    return 0.5


def deeper(depth: float, in_stream: bool, generator: torch.Generator) -> float:
    return 0.1 + 0.8 * depth


def ragged(depth: float, in_stream: bool, generator: torch.Generator) -> float:
    return 0.2 + 0.6 * float(torch.rand((), generator=generator))


def inner(depth: float, in_stream: bool, generator: torch.Generator) -> float:
    return 0.2 if in_stream else 0.7


@torch.no_grad()
def with_deaths(model: str, share: Share, *, agree: bool = False, seed: int = 0) -> nn.Module:
    """The network with `share` of each layer's channels dead, drawn at random; with `agree` the same channels die in
    all layers of one width. A layer keeps at least one."""
    network, generator = build(model), torch.Generator().manual_seed(seed)
    norms = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    last = ".bn3" if any(n.endswith(".bn3") for n, _ in norms) else ".bn2"  # of a block of a ResNet
    for i, (name, norm) in enumerate(norms):
        stream = name == "bn1" or "downsample" in name or name.endswith(last)
        count = int(share(i / (len(norms) - 1), stream, generator) * norm.num_features)
        order = torch.Generator().manual_seed(seed + norm.num_features) if agree else generator
        dead = torch.randperm(norm.num_features, generator=order)[: min(count, norm.num_features - 1)]
        norm.weight[dead] = 0.0
        norm.bias[dead] = 0.0
    return network


def images(batch: int) -> Tensor:
    return torch.randn((batch, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))


def exported(models: Sequence[nn.Module], folder: Path) -> list[Path]:
    """The networks as ONNX files in `folder`."""
    paths = [folder / f"{i}.onnx" for i in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        onnx_from_torch(model.eval(), images(2), path, opset=OPSET, max_abs_diff=float("inf"), metadata={})
    return paths


def compared(paths: Sequence[Path], batch: int, threads: int, time_limit_s: float) -> Comparison:
    """The exported networks in ONNX Runtime on the CPU, in turn and over many openings; speedups are over the first."""
    feed = images(batch).numpy()
    feeds = [{onnx.load(path).graph.input[0].name: feed} for path in paths]
    openers = [partial(open_session, path, device="cpu", threads=threads) for path in paths]
    return compare_openings(openers, feeds, time_limit_s=time_limit_s)


def fill(
    out: Path, command: str, cases: Sequence[Point], measure: Callable[[Point], list[Point]], limit_s: float
) -> bool:
    """Measure the cases that `out` has no point of, until `limit_s` seconds are over; whether all are there.

    A case is the text and numbers that its points begin with. Written after each case.
    """
    end = time.monotonic() + limit_s
    points: list[Point] = json.loads(out.read_text("utf-8"))["points"] if out.is_file() else []
    for case in cases:
        if any(case.items() <= point.items() for point in points):
            continue
        if time.monotonic() > end:
            return False
        points += [{**case, **point} for point in measure(case)]
        write_json(
            out, {"schema": 1, "command": command, "environment": environment(), "n": len(points), "points": points}
        )
    return True


def filled(
    name: str,
    document: str,
    arguments: Sequence[str] | None,
    limit_s: float,
    cases: Sequence[Point],
    measured: Measured,
) -> Path | None:
    """The command line of a benchmark of cases: its results file, None where its time was over before the last case.

    `limit_s`: default time limit of one comparison. What differs from the defaults stands in the recorded command.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=document.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="results file; added to where it exists")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-limit-s", type=float, default=limit_s, help="of one comparison")
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), help="no new case after so many seconds (then exit 3)"
    )
    given = parser.parse_args(arguments)
    command = f"{parser.prog} --out benchmarks/results/{given.out.name}"
    for option in ("threads", "time_limit_s"):
        if (value := getattr(given, option)) != parser.get_default(option):
            command += f" --{option.replace('_', '-')} {value:g}"
    torch.set_num_threads(given.threads)

    def measure(case: Point) -> list[Point]:
        return measured(case, given.threads, given.time_limit_s)

    return given.out if fill(given.out, command, cases, measure, given.limit_s) else None
