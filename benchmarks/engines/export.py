"""From surgery to engines: what each step takes for ResNet-50, and what other tools take for the steps they have.

    python -m benchmarks.engines.export --out benchmarks/results/export.cpu.json [--peers PYTHON]

torchvision's ResNet-50 with random weights, three channels in ten of every inner layer dead, is cut, exported,
simplified, written in fp16, bf16 and int8, and built as two TensorRT-RTX engines. Images are noise, labels the
network's own answers: times do not depend on them. Then each precision is timed on ONNX Runtime. PYTHON is an
interpreter that has polygraphy, olive-ai and nvidia-modelopt[onnx]; a tool that it lacks, or that fails, gets its
reason. Peak memory is that of the largest process. Exit 1 where 90 s or 6 GiB are exceeded. Run it again with --add for
more than one measurement.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.results import Point
from runtime.errors import EXIT_GATE_FAILED, EXIT_PASS, UserError
from runtime.files import write_json

LIMIT_S, LIMIT_GIB = 90.0, 6.0
SHAPE = (3, 224, 224)
BATCHES = (1, 8)
PEERS: dict[str, tuple[str, str]] = {
    "simplify": ("polygraphy surgeon sanitize", "{polygraphy} surgeon sanitize {onnx} --fold-constants -o {out}"),
    "fp16": ("polygraphy convert --fp-to-fp16", "{polygraphy} convert {onnx} --convert-to onnx --fp-to-fp16 -o {out}"),
    "fp16 ": ("olive OnnxFloatToFloat16", "-m olive run --config {olive}"),
    "int8": (
        "modelopt.onnx.quantization",
        "-m modelopt.onnx.quantization --onnx_path {onnx} --output_path {out} --quantize_mode int8"
        " --calibration_data_path {images} --calibration_eps cpu",
    ),
}


def ours(folder: Path, images: int) -> list[Point]:
    """Every step on the compact network, in this process and the builder's children."""
    import numpy as np
    import torch

    from export.engines import engine_from_onnx
    from export.engines.options import EngineOptions, Profile
    from export.onnx.from_torch import onnx_from_torch
    from export.onnx.simplify import simplify
    from export.precision.int8 import Calibration
    from export.precision.lower import Images, Lowering, Precision, Rules
    from pipeline.config.task import task_of
    from pipeline.surgery import shrink

    points: list[Point] = []

    def timed(step: str, action: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = action()
        points.append({"tool": "demport", "step": step, "time_s": time.perf_counter() - started, "reason": None})
        return result

    network = dying_resnet50()
    example = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    compact = timed("surgery", lambda: shrink(network, (example[:2],))).model
    exported, simple = folder / "exported.onnx", folder / "compact.onnx"
    limits: dict[str, Any] = {"max_abs_diff": 1e-2}
    timed("export", lambda: onnx_from_torch(compact, example, exported, opset="auto", metadata={}, **limits))
    timed("simplify", lambda: simplify(exported, simple, samples=example.numpy(), **limits))
    noise = torch.randn(images, *SHAPE, generator=torch.Generator().manual_seed(2)).numpy()
    np.save(folder / "images.npy", noise)
    batches = [noise[start : start + 16] for start in range(0, images, 16)]
    with torch.no_grad():
        labels = [compact(torch.from_numpy(batch)).argmax(1).numpy() for batch in batches]
    score = task_of().judge()
    images_of = Images(example.numpy(), lambda: batches, lambda: list(zip(batches, labels, strict=True)), score)
    lowering = Lowering(simple, images_of)
    timed("accuracy in fp32", lambda: lowering.full)
    rules = Rules(100.0, calibration=Calibration("minmax"))
    lowered: tuple[Precision, ...] = ("fp16", "bf16", "int8")
    for precision in lowered:
        timed(precision, partial(lowering.write, folder / f"compact.{precision}.onnx", precision, rules))
    settled = EngineOptions(profile=Profile(min=1, opt=8, max=32), workspace_mib=2048, timing_cache=None)
    options: dict[str, Any] = {"flavour": "tensorrt_rtx", "target": "SM86", "options": settled}
    for precision in (lowered[0], lowered[2]):
        paths = folder / f"compact.{precision}.onnx", folder / f"compact.{precision}.SM86.engine"
        timed(f"engine {precision}", partial(engine_from_onnx, *paths, precision=precision, **options))
    return points


def latencies(folder: Path) -> list[Point]:
    """The compact network in each precision on ONNX Runtime, timed in turn."""
    import numpy as np

    from export.precision.fastest import fastest

    files = {"fp32": folder / "compact.onnx"}
    files |= {name: folder / f"compact.{name}.onnx" for name in ("fp16", "bf16", "int8")}
    noise = np.load(folder / "images.npy")
    files["int8 for ONNX Runtime"] = for_onnxruntime(folder, noise)
    points: list[Point] = []
    for batch in BATCHES:
        images = np.resize(noise, (batch, *noise.shape[1:]))
        result = fastest(files, {}, images, device="auto", threads=len(os.sched_getaffinity(0)), time_limit_s=15.0)
        points += [
            {"tool": f"ONNX Runtime, {result.device}", "step": f"run {item.precision}, batch {batch}", "time_s": None}
            | {"p50_ms": item.p50_ms, "speedup": item.speedup, "reason": item.reason}
            for item in result.candidates
        ]
    return points


def for_onnxruntime(folder: Path, images: Any) -> Path:
    """int8 in the form that ONNX Runtime's kernels for CPUs compute in int8."""
    import numpy as np

    from export.precision.int8 import Calibration
    from export.precision.lower import Images, Lowering, Rules
    from pipeline.config.task import task_of

    few = images[:8]
    images_of = Images(few, lambda: [images], lambda: [(few, np.zeros(len(few), np.int64))], task_of().judge())
    rules = Rules(100.0, calibration=Calibration("minmax", runtime="onnxruntime"))
    return Lowering(folder / "compact.onnx", images_of).write(folder / "compact.int8.ort.onnx", "int8", rules).path


def dying_resnet50() -> Any:
    """Seeded weights; scale and shift of three channels in ten are zero after each block's two inner convolutions."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None).eval()
    for name, module in network.named_modules():
        if name.endswith((".bn1", ".bn2")):
            dead = torch.arange(len(module.weight)) % 10 < 3
            with torch.no_grad():
                module.weight[dead] = 0.0
                module.bias[dead] = 0.0
    return network


def peers(python: Path | None, folder: Path) -> list[Point]:
    """The steps that other tools have, each in a process of its own, on the same graph."""
    points = []
    files = {"onnx": folder / "exported.onnx", "images": folder / "images.npy", "olive": folder / "olive.json"}
    write_json(files["olive"], olive_config(files["onnx"], folder / "olive"))
    for step, (tool, arguments) in PEERS.items():
        point: Point = {"tool": tool, "step": step.strip(), "time_s": None, "reason": "no --peers given"}
        if python is not None:
            out = folder / f"peer.{step.strip()}.onnx"
            script = python.with_name("polygraphy")  # it is no module that runs
            words = arguments.format(out=out, polygraphy=script, **files).split()
            started = time.perf_counter()
            done = subprocess.run([python, *words], capture_output=True, text=True, check=False, cwd=folder)
            point["time_s"] = time.perf_counter() - started
            point["reason"] = None
            if done.returncode:
                said = (done.stderr.strip() or done.stdout.strip()).splitlines()
                point |= {"time_s": None, "reason": (said[-1] if said else f"exit {done.returncode}")[:200]}
        points.append(point)
    return points


def olive_config(onnx: Path, out: Path) -> dict[str, Any]:
    return {
        "input_model": {"type": "OnnxModel", "model_path": str(onnx)},
        "passes": {"fp16": {"type": "OnnxFloatToFloat16"}},
        "output_dir": str(out),
        "cache_dir": str(out.with_name("olive_cache")),
    }


def measured_before(path: Path, line: str) -> list[Point]:
    """The points in the file; `UserError` where they were measured otherwise than these will be."""
    document, here = json.loads(path.read_text("utf-8")), results.machine()
    if document["command"] != line or any(document["environment"][k] != here[k] for k in ("fingerprint", "versions")):
        raise UserError(f"{path} was measured otherwise", "the same command, machine and versions", "leave --add out")
    return results.points_in(path)


def peak_gib() -> float:
    """Of this process or its largest child, resident."""
    kib = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(kib) / 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = results.parser("engines.export", __doc__, "export.cpu.json")
    parser.add_argument("--images", type=int, default=64, help="Images to calibrate on, and as many to judge by.")
    parser.add_argument("--peers", type=Path, help="An interpreter that has the other tools.")
    parser.add_argument("--add", action="store_true", help="Keep the points in the file and add to them.")
    options = parser.parse_args(arguments)
    line = results.command(parser, options, ("add", "peers")) + " --peers PYTHON" * bool(options.peers)
    points = measured_before(options.out, line) if options.add else []
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        points += ours(Path(name), options.images)
        whole: Point = {"tool": "demport", "step": "all", "time_s": time.perf_counter() - started, "reason": None}
        whole["peak_gib"] = peak_gib()
        points += [whole, *latencies(Path(name)), *peers(options.peers, Path(name))]
    runs = sum(point["step"] == "all" for point in points)
    results.write(options.out, line, points, runs, threads=len(os.sched_getaffinity(0)))
    print(json.dumps(whole), file=sys.stderr)
    return EXIT_PASS if whole["time_s"] <= LIMIT_S and whole["peak_gib"] <= LIMIT_GIB else EXIT_GATE_FAILED


if __name__ == "__main__":
    sys.exit(main())
