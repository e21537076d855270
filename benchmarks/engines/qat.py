"""int8 by calibration alone and after a training, on CIFAR-10: accuracy, layers in int8, latency.

    python -m benchmarks.engines.qat --out benchmarks/results/qat.cpu.json

torchvision's MobileNetV2 or MobileNetV3-small for images of 32x32 (the first convolution keeps their size), trained on
--images images with the usual recipe, exported and simplified; then its int8 graph in each of --forms
(`precision.int8_for`) with each of --weights (one scale for a weight, or one for each channel of it), calibrated, and
trained for --qat-epochs epochs (`precision.qat`). No layer may stay in fp32. fp32 and both int8 graphs are timed in
turn on each backend. Exit 1 where training wins back less than half of what calibration lost. Needs the data sets in
--data.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import real_data, results
from benchmarks.methods.finetune import cifar10
from benchmarks.results import Point
from export.onnx.from_torch import onnx_from_torch
from export.onnx.simplify import simplify
from export.precision.int8 import Calibration, Runtime, Weights
from export.precision.lower import CastGraph, Lowering, Rules
from pipeline import config
from pipeline.config.task import task_of
from pipeline.data import Dataset
from pipeline.progress import open_progress
from pipeline.stages.onnx import samples_of
from pipeline.stages.precision import images_of
from pipeline.training.quantisation.train import train_int8
from pipeline.training.train import Setting, train_dense, trained_network
from runtime.backends import open_session
from runtime.errors import EXIT_USAGE, UserError
from runtime.measure.latency import compare

NETWORKS = ("mobilenet_v2", "mobilenet_v3_small")
FORMS: tuple[Runtime, ...] = ("tensorrt", "onnxruntime")
WEIGHTS: tuple[Weights, ...] = ("channel", "tensor")
BACKENDS = ("openvino", "onnxruntime")
BATCH, THREADS = 32, 1
KINDS = ("fp32", "int8, calibrated", "int8, trained")


def small_images(
    num_classes: int, input_shape: tuple[int, int, int], network: str = NETWORKS[0], width: float = 1.0
) -> nn.Module:
    """torchvision's, whose first convolution takes each pixel: 32x32 end as 2x2, not as 1x1."""
    from torchvision import models

    built: nn.Module = getattr(models, network)(weights=None, num_classes=num_classes, width_mult=width)
    first = built.get_submodule("features.0.0")
    assert isinstance(first, nn.Conv2d)
    first.stride = (1, 1)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # MobileNetV3's 0.01 needs longer trainings
    return built


def trained(case: Point, data: Dataset, out: Path) -> tuple[Path, Setting]:
    """The network after its training, as a simplified ONNX graph."""
    model = config.Model(
        name="benchmarks.engines.qat:small_images", args={name: case[name] for name in ("network", "width")}
    )
    setting = Setting(model, data, case["seed"], torch.get_num_threads(), "cpu", out, open_progress())
    section = config.Dense(epochs=case["epochs"], lr=0.1, augment="crop_flip", channels_last=True)
    network = trained_network(model, data, train_dense(section, setting))
    samples = samples_of(data.test)
    onnx_from_torch(network, samples, out / "raw.onnx", opset="auto", max_abs_diff=1e-3, metadata={})
    path = out / "network.onnx"
    simplify(out / "raw.onnx", path, max_abs_diff=1e-3, samples=np.asarray(samples))
    return path, setting


def graphs(source: Path, setting: Setting, calibration: Calibration, qat: config.Qat) -> dict[str, CastGraph]:
    """The calibrated int8 graph and the trained one, every layer in int8."""
    section = config.PrecisionSection(evaluation_images=len(setting.data.test))
    lowering = Lowering(source, images_of(section, setting.data, task_of().judge()))
    rules = Rules(100.0, (), calibration)
    tune, name = (
        partial(train_int8, qat, source=source, setting=setting),
        f"{calibration.runtime}.{calibration.weights}",
    )
    return {
        "int8, calibrated": lowering.write(source.with_name(f"{name}.calibrated.onnx"), "int8", rules),
        "int8, trained": lowering.write(
            source.with_name(f"{name}.trained.onnx"), "int8", dataclasses.replace(rules, tune=tune)
        ),
    }


def timed(files: Sequence[Path], backend: str, images: Any, limit_s: float = 30.0) -> list[tuple[float, float | None]]:
    """p50 in ms of each file, and its speedup over the first; None for the first."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(_session(path, backend, path != files[0])) for path in files]
        feeds = [{session.inputs[0].name: images} for session in sessions]
        compared = compare(sessions, feeds, time_limit_s=limit_s, precision=0.02)
    ratios = [None, *(round(one.ratio, 3) for one in compared.speedups)]
    return [(round(model.p50_ms, 3), ratio) for model, ratio in zip(compared.models, ratios, strict=True)]


def _session(path: Path, backend: str, int8: bool) -> Any:
    if backend == "openvino":
        from runtime.backends.openvino import OpenVinoSession

        return OpenVinoSession(path, device="cpu", threads=THREADS, precision="int8" if int8 else "fp32")
    return open_session(path, backend, "cpu", THREADS)


def measured(case: Point, data: Dataset, calibrations: Sequence[Calibration]) -> list[Point]:
    """A point for each calibration and kind."""
    recipe = {"epochs": case["qat_epochs"], "lr": case["qat_lr"], "augment": "crop_flip", "channels_last": True}
    qat, points = config.Qat.model_validate(recipe), list[Point]()
    with tempfile.TemporaryDirectory() as folder:
        source, setting = trained(case, data, Path(folder))
        batch = np.resize(np.asarray(samples_of(data.test, BATCH), np.float32), (BATCH, *data.input_shape))
        for calibration in calibrations:
            lowered = graphs(source, setting, calibration, qat)
            first = next(iter(lowered.values()))
            files = [source, *(graph.path for graph in lowered.values())]
            times = {backend: timed(files, backend, batch) for backend in BACKENDS}
            for place, kind in enumerate(KINDS):
                graph = lowered.get(kind)
                accuracy = first.accuracy_fp32 if graph is None else graph.accuracy
                points.append({
                    "form": calibration.runtime, "weights": calibration.weights, "graph": kind,
                    "accuracy_pct": round(100 * accuracy, 2),
                    "drop_pp": round(100 * (first.accuracy_fp32 - accuracy), 2),
                    "layers_in_int8": 0 if graph is None else graph.layers,
                    "layers": first.layers + len(first.kept),
                    **{f"{name}_ms": times[name][place][0] for name in BACKENDS},
                    **{f"{name}_speedup": times[name][place][1] for name in BACKENDS},
                    "training_s": round(graph.tuning.seconds, 1) if graph and graph.tuning else None,
                })  # fmt: skip
    return points


def broken(points: Sequence[Point]) -> list[str]:
    """Where training wins back less than half of what calibration lost."""
    lost = {(p["network"], p["form"], p["weights"], p["seed"], p["graph"]): p["drop_pp"] for p in points}
    return [
        f"{', '.join(map(str, case))}: trained int8 loses {drop:g} points, calibrated {lost[*case, KINDS[1]]:g}"
        for (*case, kind), drop in lost.items()
        if kind == KINDS[2] and drop > max(0.0, lost[*case, KINDS[1]]) / 2
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = results.parser("engines.qat", __doc__, "qat.cpu.json", required=False)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), choices=WEIGHTS)
    parser.add_argument("--width", type=float, default=1.0, help="of the network, as a share of all channels")
    parser.add_argument("--epochs", type=int, default=10, help="of the fp32 training")
    parser.add_argument("--qat-epochs", type=int, default=3, help="of the training in int8")
    parser.add_argument("--qat-lr", type=float, default=1e-4, help="its peak learning rate")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=10000, help="for training")
    parser.add_argument("--tests", type=int, default=10000, help="test images")
    parser.add_argument("--data", type=Path, default=real_data.DEFAULT, help="folder with load.py")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="no case begins after so many seconds")
    options = parser.parse_args(arguments)
    line = results.command(parser, options, leave_out=("data", "limit_s"))
    try:
        data = cifar10(options.data, options.images, options.tests)
        cases: list[Point] = [
            {"network": network, "width": options.width, "images": options.images, "tests": options.tests,
             "epochs": options.epochs, "qat_epochs": options.qat_epochs, "qat_lr": options.qat_lr, "batch": BATCH,
             "threads": THREADS, "seed": seed}
            for network in options.networks for seed in options.seeds
        ]  # fmt: skip
        calibrations = [
            Calibration(runtime=form, weights=weights) for form in options.forms for weights in options.weights
        ]
        measure = partial(measured, data=data, calibrations=calibrations)
        results.fill(options.out, line, cases, measure, options.limit_s)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    return results.judge(broken(results.points_in(options.out)))


if __name__ == "__main__":
    sys.exit(main())
