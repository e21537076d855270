"""Dead channels cut out of ONNX files by demport and by onnxsim's structural pruning: exactness, share, seconds.

    python -m benchmarks.surgery.onnx_surgery --out benchmarks/results/onnx_surgery.cpu.json

Networks of torchvision with random weights, three channels in ten dead, as onnxsim simplifies torch's export: batch
norms are in the convolutions where they can be. onnxsim is asked for 29 % of each layer's channels, the least alive
first, so that it never has to take a live one. `demport, proven` holds the law too, as `demport shrink --onnx` does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks import results
from benchmarks.results import Point
from benchmarks.surgery.networks import build, kill
from export.onnx import graph
from export.onnx.from_torch import onnx_from_torch
from pipeline.models.onnx import network_from_onnx
from pipeline.models.onnx.compact import parameters_of, rewritten
from pipeline.models.onnx.compact.law import check_files
from pipeline.surgery import shrink

MODELS = ("resnet18", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_small")
SHARE = 0.29
SIDE, OPSET, REPEATS = 96, 18, 3
EXACT = 1e-5  # of the largest output: float32 adds up to that


def demport(path: Path, verify: bool) -> onnx.ModelProto:
    network = network_from_onnx(path)
    after = rewritten(network, shrink(network.module, network.example, verify=verify).model)
    if verify:
        (spec,) = graph.inputs_of(after)
        noise = np.random.default_rng(0).standard_normal((2, *spec.shape[1:]), dtype=np.float32)  # type: ignore[arg-type]
        check_files(network.model, after, {"random": {spec.name: noise}}, None)
    return after


def onnxsim(path: Path) -> onnx.ModelProto:
    from onnxsim.pruning import apply_structured_pruning

    after: onnx.ModelProto = apply_structured_pruning(onnx.load(path), sparsity=SHARE)
    return after


TOOLS: dict[str, Callable[[Path], onnx.ModelProto]] = {
    "demport": partial(demport, verify=False),
    "demport, proven": partial(demport, verify=True),
    "onnxsim": onnxsim,
}


def exported(name: str, path: Path) -> None:
    """The network with dead channels as a simplified ONNX file."""
    import onnxsim as simplifier

    network = build(name)
    kill(network)
    images = torch.randn((2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    onnx_from_torch(network, images, path, opset=OPSET, max_abs_diff=float("inf"), metadata={})
    onnx.save(simplifier.simplify(onnx.load(path))[0], path)


def answers(model: onnx.ModelProto) -> Any:
    (spec,) = graph.inputs_of(model)
    images = np.random.default_rng(1).standard_normal((2, 3, SIDE, SIDE), dtype=np.float32)
    return graph.run_graph(graph.open_graph(model), {spec.name: images})[0]


def measured(case: Point, repeats: int) -> list[Point]:
    """One network: a point for each tool, the best of `repeats` times."""
    points = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        exported(case["model"], path)
        before = onnx.load(path)
        expected = answers(before)
        for tool, cut in TOOLS.items():
            points.append({"tool": tool, **row(cut, path, before, expected, repeats)})
    return points


def row(
    cut: Callable[[Path], onnx.ModelProto], path: Path, before: onnx.ModelProto, expected: Any, repeats: int
) -> Point:
    """`removed_pct` of the parameters; `rel_diff` over the largest output, null with the reason where nothing runs."""
    seconds, after = [], before
    try:
        for _ in range(repeats):
            started = time.perf_counter()
            after = cut(path)
            seconds.append(time.perf_counter() - started)
        difference = float(np.abs(answers(after) - expected).max() / np.abs(expected).max())
    except Exception as error:  # whatever a tool raises is its result
        reason = f"{type(error).__name__}: {graph.first_line(error)}"
        return {"exact": False, "rel_diff": None, "removed_pct": None, "time_s": None, "reason": reason}
    parameters = parameters_of(before)
    removed = 100 * (parameters - parameters_of(after)) / parameters
    return {"exact": difference <= EXACT, "rel_diff": difference, "removed_pct": removed, "time_s": min(seconds),
            "reason": None}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = results.parser("surgery.onnx_surgery", __doc__, "onnx_surgery.cpu.json")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="Networks of torchvision.")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="Times each is cut; the fastest counts.")
    options = parser.parse_args(arguments)
    cases: list[Point] = [{"model": name} for name in options.models]
    line = results.command(parser, options)
    results.fill(options.out, line, cases, lambda case: measured(case, options.repeats), float("inf"))
    ours = [p for p in results.points_in(options.out) if p["tool"] != "onnxsim"]
    return results.judge([f"{p['model']}: {p['tool']} is not exact ({p})" for p in ours if not p["exact"]])


if __name__ == "__main__":
    raise SystemExit(main())
