"""Networks of torchvision with dead channels in known patterns, and the latency of what is left of them.

Weights are random, of variance 2 / fan-in; a channel dies by a scale and shift of zero in its batch normalisation.
Latency depends on widths, not on values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.results import Point
from benchmarks.surgery.networks import build
from export.onnx.from_torch import onnx_from_torch
from runtime.backends import open_session
from runtime.measure.latency import Comparison, compare_openings

SIDE = 128
BACKENDS = ("onnxruntime", "openvino")
OPSET = 18
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


def compared(
    paths: Sequence[Path], batch: int, threads: int, time_limit_s: float, backend: str = BACKENDS[0]
) -> Comparison:
    """The exported networks on the CPU, in turn and over many openings; speedups are over the first."""
    feed = images(batch).numpy()
    feeds = [{onnx.load(path).graph.input[0].name: feed} for path in paths]
    openers = [partial(open_session, path, backend, device="cpu", threads=threads) for path in paths]
    return compare_openings(openers, feeds, time_limit_s=time_limit_s)


def filled(
    name: str,
    document: str,
    arguments: Sequence[str] | None,
    limit_s: float,
    cases: Sequence[Point],
    measured: Measured,
    backends: Sequence[str] = BACKENDS[:1],
) -> Path | None:
    """The command line of a benchmark of cases: its results file, None where its time was over before the last case.

    `limit_s`: default time limit of one comparison. What differs from the defaults stands in the recorded command. With
    several `backends` cases name theirs, unless it is the first.
    """
    parser = results.parser(name, document)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-limit-s", type=float, default=limit_s, help="of one comparison")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="no new case after so many seconds (exit 3)")
    if len(backends) > 1:
        parser.add_argument("--backend", choices=backends, default=backends[0])
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    line = results.command(parser, options, ("limit_s",))
    if getattr(options, "backend", BACKENDS[0]) != BACKENDS[0]:
        cases = [{"backend": options.backend, **case} for case in cases]

    def measure(case: Point) -> list[Point]:
        return measured(case, options.threads, options.time_limit_s)

    return options.out if results.fill(options.out, line, cases, measure, options.limit_s) else None
