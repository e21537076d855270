"""All that only an NVIDIA GPU can tell: latency of dense and compact networks, engines that load, the tests marked gpu.

    python -m benchmarks.gpu

writes benchmarks/results/gpu.<name of the GPU>.json. Half of every layer's channels of torchvision's ResNet-18 and -50
are dead, as `benchmarks.surgery.deaths` has it; dense and compact are timed in turn, copies excluded. What cannot run
there is a point with its reason. A file that exists is gone on with; --limit-s ends a run between two cases.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import results
from benchmarks.results import Point, fill
from benchmarks.surgery.deaths import half, with_deaths
from export.engines import EngineUnavailable, choose, engine_from_onnx
from export.engines.options import EngineOptions, Profile
from export.onnx.from_torch import onnx_from_torch
from pipeline.surgery import shrink
from runtime.backends import Array, Session, open_session
from runtime.backends.torch import TorchSession, image_inputs
from runtime.device import gpus
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_PASS, EXIT_USAGE, UserError
from runtime.measure.latency import compare

ROOT = Path(__file__).resolve().parents[1]
MODELS, BATCHES = ("resnet18", "resnet50"), (1, 8, 64, 256)
PRECISIONS = ("fp32", "fp16", "bf16")
TORCH = {"torch eager": "eager", "torch compiled": "compiled", "torch cuda graph": "cuda_graph"}
ENGINES = {"tensorrt_rtx SM80": ("tensorrt_rtx", "SM80"), "tensorrt_rtx CURRENT": ("tensorrt_rtx", "CURRENT"),
           "tensorrt": ("tensorrt", "CURRENT")}  # fmt: skip
RUNNERS = (*TORCH, "onnxruntime", *ENGINES)
TESTS = {"runner": "pytest -m gpu"}
NETWORKS = ("dense", "compact")
WORST = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 2e-1}  # of the largest logit: beyond it, the values are not the network's


def cases(
    runners: Sequence[str], models: Sequence[str], precisions: Sequence[str], batches: Sequence[int]
) -> list[Point]:
    """In the order of what they tell: each runner on the small network first, large batches last."""
    return [
        {"runner": runner, "model": model, "precision": precision, "batch": batch}
        for model in models for batch in batches for precision in precisions for runner in runners
    ]  # fmt: skip


@cache
def networks(model: str, side: int) -> tuple[nn.Module, nn.Module]:
    """Dense with half of its channels dead, and compact."""
    dense = with_deaths(model, half).eval()
    return dense, shrink(dense, (torch.zeros(1, 3, side, side),), align=8, verify=False).model.eval()


def images(batch: int, side: int) -> Array:
    drawn: Array = np.random.default_rng(0).standard_normal((batch, 3, side, side)).astype(np.float32)
    return drawn


def measured(case: Point, side: int, device: Any, time_limit_s: float, folder: Path) -> list[Point]:
    """A point for dense and one for compact; or one with the reason why there is none."""
    batch = case["batch"]
    try:
        with ExitStack() as stack:
            sessions = [
                stack.enter_context(closing(opened(case, index, side, device, folder)))
                for index in range(len(NETWORKS))
            ]
            feeds = [{session.inputs[0].name: images(batch, side)} for session in sessions]
            wrong = [off(session, case, index, side) for index, session in enumerate(sessions)]
            seen = compare(sessions, feeds, time_limit_s=time_limit_s)
    except (UserError, EngineUnavailable) as error:
        return [{"reason": str(error)}]
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return [{"reason": str(error).splitlines()[0]}]
    rows: list[Point] = []
    for index, (network, row) in enumerate(zip(NETWORKS, seen.models, strict=True)):
        figures = {"p50_ms": row.p50_ms, "p95_ms": row.p95_ms, "launches": row.n, "largest_error": wrong[index]}
        rows.append({"network": network, **figures, "images_per_s": 1000 * batch / row.p50_ms})
    rows[1]["speedup"], (rows[1]["speedup_low"], rows[1]["speedup_high"]) = (
        seen.speedups[0].ratio,
        seen.speedups[0].ci95,
    )
    rows[1]["verdict"] = seen.speedups[0].verdict
    return rows


def opened(case: Point, index: int, side: int, device: Any, folder: Path) -> Session:
    """A session of dense (0) or compact (1). `UserError` or `EngineUnavailable` where it cannot be had."""
    runner, precision = case["runner"], case["precision"]
    network = networks(case["model"], side)[index]
    if runner in TORCH:
        mode: Any = TORCH[runner]
        return TorchSession(network, image_inputs((3, side, side)), device=device, mode=mode, precision=precision)
    onnx_file = exported(case["model"], index, precision, side, folder)
    if runner == "onnxruntime":
        return open_session(onnx_file, device=device)
    flavour, target = ENGINES[runner]
    engine = folder / f"{case['model']}.{index}.{precision}.{runner.replace(' ', '.')}.engine"
    if not engine.exists():
        choose(flavour, (target,))
        engine_from_onnx(
            onnx_file, engine, flavour=flavour, precision=precision, target=target,
            options=EngineOptions(
                profile=Profile(min=1, opt=8, max=max(BATCHES)), workspace_mib=4096, timing_cache=None
            ),
        )  # fmt: skip
    return open_session(engine, flavour)


def exported(model: str, index: int, precision: str, side: int, folder: Path) -> Path:
    """The network's graph in a precision, written once a folder."""
    path = folder / f"{model}.{index}.{precision}.onnx"
    if path.exists():
        return path
    if precision != "fp32":
        import onnx

        from export.precision.half import to_half

        source = exported(model, index, "fp32", side, folder)
        onnx.save(to_half(onnx.load(str(source)), precision, (), source), str(path))  # type: ignore[arg-type]
        return path
    example = torch.from_numpy(images(2, side))
    network = networks(model, side)[index]
    onnx_from_torch(network, example, path, opset=18, max_abs_diff=float("inf"), metadata={})
    return path


def off(session: Session, case: Point, index: int, side: int) -> float:
    """The largest difference from torch's float32 logits on the CPU for two images, as a share of the largest logit.
    `UserError` where it is too large for the precision: a latency of other values is none."""
    inputs = images(2, side)
    session.bind({session.inputs[0].name: inputs})
    session.launch()
    logits = session.fetch()[session.outputs[0].name]
    with torch.inference_mode():
        expected = networks(case["model"], side)[index](torch.from_numpy(inputs)).numpy()
    error = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not error <= WORST[case["precision"]]:
        raise UserError(
            f"{case['runner']} computes other values in {case['precision']}: off by {error:.3g} of the largest logit",
            f"at most {WORST[case['precision']]}",
            "report this",
        )
    return error


def gpu_tests() -> list[Point]:
    """What `pytest -m gpu` says: counts, and the reasons of what was skipped or failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False, stdout=sys.stderr)
        return [counts(report.read_text("utf-8"))] if report.exists() else [{"reason": "pytest left no report"}]


def counts(junit: str) -> Point:
    """Of a JUnit file: passed, failed, skipped, and up to 50 reasons by test."""
    counted: Point = {"passed": 0, "failed": 0, "skipped": 0, "reasons": {}}
    for case in ET.fromstring(junit).iter("testcase"):
        outcome = next((tag for tag in ("failure", "error", "skipped") if case.find(tag) is not None), None)
        counted["passed" if outcome is None else "skipped" if outcome == "skipped" else "failed"] += 1
        if outcome is not None and len(counted["reasons"]) < 50:
            message = case.find(outcome).get("message", "")  # type: ignore[union-attr]  # it was just found
            counted["reasons"][f"{case.get('classname')}.{case.get('name')}"] = message[:300]
    return counted


def results_file(device: str) -> Path:
    """gpu.nvidia_h100_80gb_hbm3.json for "NVIDIA H100 80GB HBM3"."""
    return ROOT / "benchmarks" / "results" / f"gpu.{re.sub('[^a-z0-9]+', '_', device.lower()).strip('_')}.json"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = results.parser("gpu", __doc__, required=False)
    add = parser.add_argument
    add("--runners", nargs="+", choices=RUNNERS, default=list(RUNNERS))
    add("--models", nargs="+", default=list(MODELS))
    add("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    add("--batches", nargs="+", type=int, default=list(BATCHES))
    add("--side", type=int, default=224, help="of an image, in pixels")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script, not to publish")
    add("--no-tests", action="store_true", help="leave `pytest -m gpu` out")
    add("--time-limit-s", type=float, default=10.0, help="of one comparison")
    add("--limit-s", type=float, default=float("inf"), help="no new case after so many seconds (exit 3)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 all measured or told why not, 2 no GPU, 3 the time was up before the last case."""
    options = _options(arguments)
    names = gpus()
    if options.device == "cuda" and not (names and torch.cuda.is_available()):
        print("error: no NVIDIA GPU that torch can use; one; run this on a machine that has one", file=sys.stderr)
        return EXIT_USAGE
    out = options.out or results_file(names[0] if options.device == "cuda" else "cpu")
    with tempfile.TemporaryDirectory() as folder:

        def measure(case: Point) -> list[Point]:
            print(f"{' '.join(map(str, case.values()))}", file=sys.stderr, flush=True)
            if case == TESTS:
                return gpu_tests()
            return measured(case, options.side, options.device, options.time_limit_s, Path(folder))

        queue = [] if options.no_tests else [TESTS]
        queue += cases(options.runners, options.models, options.precisions, options.batches)
        done = fill(out, "python -m benchmarks.gpu", queue, measure, options.limit_s)
    print(out, file=sys.stderr)
    return EXIT_PASS if done else EXIT_INCONCLUSIVE


if __name__ == "__main__":
    sys.exit(main())
