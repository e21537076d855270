"""fp16 and int8 by several converters and calibrations: what accuracy is left on a trained network, and what it takes.

    python -m benchmarks.engines.converters --out benchmarks/results/converters.cpu.json [--peers PYTHON]

ResNet-20 trained on CIFAR-10, on images that were stored as JPEG (see --data), calibrated on training images and judged
on the first test images. Every graph is judged alike: int8 in ONNX Runtime, fp16 with every value rounded. PYTHON is an
interpreter that has onnxconverter-common and nvidia-modelopt[onnx]. Needs the data sets in --data.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import real_data, results
from benchmarks.results import Point
from export.onnx import graph
from export.onnx.from_torch import onnx_from_torch
from export.onnx.rounded import rounded
from export.onnx.simplify import simplify
from export.precision.int8 import Calibration
from export.precision.lower import Images, Lowering, Precision, Rules
from pipeline.config.task import task_of
from runtime.errors import EXIT_PASS

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
OURS: dict[str, tuple[Precision, Calibration]] = {
    "ONNX Runtime": ("fp16", Calibration()),
    "ONNX Runtime, minmax": ("int8", Calibration("minmax")),
    "ONNX Runtime, percentile 99.99": ("int8", Calibration("percentile", 99.99)),
    "ONNX Runtime, percentile 99.9": ("int8", Calibration("percentile", 99.9)),
    "ONNX Runtime, entropy": ("int8", Calibration("entropy")),
    "ONNX Runtime, uint8 for its own kernels, minmax": ("int8", Calibration("minmax", runtime="onnxruntime")),
}
FP16 = "import onnx, onnxconverter_common as c; onnx.save(c.float16.convert_float_to_float16({load}, {how}), '{out}')"
PEERS: dict[str, tuple[Precision, list[str]]] = {
    "onnxconverter-common": (
        "fp16",
        ["-c", FP16.format(load="onnx.load('{onnx}')", how="keep_io_types=True", out="{out}")],
    ),
    "ModelOpt AutoCast": ("fp16", ["-m", "modelopt.onnx.autocast", "--onnx_path", "{onnx}", "--output_path", "{out}"]),
    **{
        f"ModelOpt, {method}": (
            "int8",
            [
                *("-m", "modelopt.onnx.quantization", "--onnx_path", "{onnx}", "--output_path", "{out}"),
                *("--quantize_mode", "int8", "--calibration_data_path", "{images}", "--calibration_eps", "cpu"),
                *("--calibration_method", method, "--high_precision_dtype", "fp32"),
            ],
        )
        for method in ("max", "entropy")
    },
}


def trained(data: Path, path: Path, samples: graph.Array) -> Path:
    """ResNet-20 with its weights, exported and simplified."""
    import torch
    from safetensors.torch import save_file

    from pipeline import config
    from pipeline.models import build

    weights = path.with_name("weights.safetensors")
    with np.load(data / "weights" / "cifar10_resnet20-12fca82f.npz", allow_pickle=False) as arrays:
        save_file({name: torch.from_numpy(arrays[name]) for name in arrays.files}, weights)
    section = config.Model(name="cifar:resnet20", weights=str(weights))
    network = build(section, num_classes=10, input_shape=(3, 32, 32))
    limits: dict[str, Any] = {"max_abs_diff": 1e-3}
    raw = path.with_name("raw.onnx")
    onnx_from_torch(network.eval(), torch.from_numpy(samples), raw, opset="auto", metadata={}, **limits)
    simplify(raw, path, samples=samples, **limits)
    return path


def images_of(data: Path, calibration: int, evaluation: int) -> tuple[Images, graph.Array]:
    """Normalised training and test images, and the former as one array."""
    load = real_data.loader(data)

    def prepared(x: graph.Array) -> graph.Array:
        return np.ascontiguousarray(((x / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2), np.float32)

    x, _, _ = load.cifar10("train", calibration)
    u, v, _ = load.cifar10("test", evaluation)
    train, test = prepared(x), prepared(u)
    pieces = [(test[at : at + 250], v[at : at + 250].astype(np.int64)) for at in range(0, len(test), 250)]
    calibrating = [train[at : at + 64] for at in range(0, len(train), 64)]
    return Images(test[:8], lambda: calibrating, lambda: pieces, task_of().judge()), train


def judged(model: onnx.ModelProto, images: Images) -> float:
    """Share of the test images that the graph classifies rightly."""
    session = graph.open_graph(rounded(model))
    right = [graph.run_graph(session, x)[0].argmax(1) == y for x, y in images.evaluation()]
    return float(np.concatenate(right).mean())


def point(name: str, precision: Precision, base: float, images: Images, make: Callable[[], Path]) -> Point:
    """One converter: its accuracy, or why there is none."""
    figures: Point = {"precision": precision, "converter": name, "accuracy_pct": None, "drop_pp": None, "time_s": None}
    started = time.perf_counter()
    try:
        model = onnx.load(str(make()))
        figures["time_s"] = time.perf_counter() - started
        accuracy = judged(model, images)
    except (RuntimeError, graph.GraphError, OSError) as error:
        return {**figures, "time_s": None, "reason": " ".join(str(error).split())[:200]}
    kinds = [node.op_type for node in model.graph.node]
    conversions = kinds.count("QuantizeLinear" if precision == "int8" else "Cast")
    figures |= {"accuracy_pct": 100 * accuracy, "drop_pp": 100 * (base - accuracy), "conversions": conversions}
    return {**figures, "reason": None}


def lowered(lowering: Lowering, path: Path, precision: Precision, rules: Rules) -> Path:
    return lowering.write(path, precision, rules).path


def by_peer(python: Path, arguments: Sequence[str], onnx_file: Path, images: Path, out: Path) -> Path:
    words = [word.format(onnx=onnx_file, images=images, out=out) for word in arguments]
    done = subprocess.run([python, *words], capture_output=True, text=True, check=False, cwd=out.parent)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip() or "no reason").splitlines()[-1])
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = results.parser("engines.converters", __doc__, "converters.cpu.json")
    parser.add_argument("--data", type=Path, default=real_data.DEFAULT, help="Folder of the data sets.")
    parser.add_argument("--peers", type=Path, help="An interpreter that has the other converters.")
    parser.add_argument("--calibration", type=int, default=256, help="Training images.")
    parser.add_argument("--evaluation", type=int, default=2000, help="Test images.")
    options = parser.parse_args(arguments)
    images, train = images_of(options.data, options.calibration, options.evaluation)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = trained(options.data, folder / "net.onnx", images.samples)
        np.save(folder / "images.npy", train)
        lowering = Lowering(source, images)
        base = float(lowering.full.value)
        points: list[Point] = [{"precision": "fp32", "converter": "none", "accuracy_pct": 100 * base, "drop_pp": 0.0}]
        for title, (precision, calibration) in OURS.items():
            rules = Rules(100.0, (), calibration)
            ours = partial(lowered, lowering, folder / "ours.onnx", precision, rules)
            points.append(point(title, precision, base, images, ours))
        for title, (precision, words) in PEERS.items() if options.peers else ():
            out = folder / f"{title.replace(' ', '_').replace(',', '')}.onnx"
            theirs = partial(by_peer, options.peers, words, source, folder / "images.npy", out)
            points.append(point(title, precision, base, images, theirs))
    line = results.command(parser, options, ("data", "peers")) + " --peers PYTHON" * bool(options.peers)
    results.write(options.out, line, points, options.evaluation)
    return EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
