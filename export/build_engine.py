"""The process that runs the TensorRT builder: `python -m export.build_engine REQUEST`.

It is a process of its own because the builder may crash or hang. REQUEST is a JSON file (`Request`); the answer is JSON
in the file that it names: `{"ok": true, ...}` or `{"ok": false, "found", "expected", "remedy"}`, with `"unavailable"`
instead of the three where TensorRT does not load.
"""

from __future__ import annotations

import ctypes
import json
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from export.flavours import EngineUnavailable, Flavour, load
from runtime.errors import UserError

COMPUTE = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")  # LayerType of what decides speed and size
TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
WANTED = {"fp32": "FLOAT", "fp16": "HALF"}


@dataclass(frozen=True)
class Request:
    """What to build; `target` is None for the GPU at hand. `profile` holds the batch sizes min, opt, max."""

    onnx: str
    engine: str
    answer: str
    log: str
    flavour: Flavour
    precision: str
    target: str | None
    profile: tuple[int, int, int]
    workspace_mib: int
    tf32: bool
    optimization_level: int


class Log:
    """Keeps TensorRT's messages in a file, and the errors of the step under way."""

    def __init__(self, trt: Any, file: TextIO) -> None:
        errors: list[str] = []
        bad = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc]  # the base is only known at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity != trt.ILogger.Severity.VERBOSE:
                    file.write(f"[{severity.name}] {message}\n")
                    file.flush()
                if severity in bad:
                    errors.append(message)

        self.errors = errors
        self.logger = Logger()

    def begin(self) -> None:
        """Forgets errors of earlier steps: TensorRT-RTX logs harmless ones, e.g. on reading a setting it lacks."""
        self.errors.clear()

    def reason(self) -> str:
        """The first error of this step, on one line."""
        return " ".join(self.errors[0].split())[:400] if self.errors else "TensorRT gives no reason"


def build(request: Request, trt: Any, log: Log) -> dict[str, Any]:
    """Builds the engine and writes it; what the manifest needs to know. `UserError` with the first logged error."""
    started = time.perf_counter()
    builder = trt.Builder(log.logger)
    network = _network(request, trt, builder, log)
    layers = _layers(network)
    _check_precision(request, layers)
    config, profiles = _config(request, trt, builder, network)
    log.begin()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refusal(request, log.reason())
    try:
        Path(request.engine).write_bytes(plan)
    except OSError as error:
        raise UserError(
            f"{request.engine} cannot be written ({error.strerror})", f"{plan.nbytes} bytes of space", "free some space"
        ) from error
    return {
        "ok": True,
        "version": trt.__version__,
        "inputs": [_tensor(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "profiles": profiles,
        "layers": {kind: dict(counts) for kind, counts in sorted(layers.items())},
        "versions": {"onnx_parser": str(trt.get_nv_onnx_parser_version()), "python": sys.version.split()[0]},
        "seconds": round(time.perf_counter() - started, 3),
    }


def _refusal(request: Request, reason: str) -> UserError:
    """Why there is no engine, and what to change: a workspace too small is told from a layer that is refused."""
    found = f"{request.flavour} cannot build {request.onnx} for {request.target or 'this GPU'}: {reason}"
    if not re.search("OutOfMemory|workspace", reason):
        remedy = "leave the target out, or change the layer that the reason names"
        return UserError(found, "a network that this target supports", remedy)
    remedy = f"double engine.workspace_mib ({request.workspace_mib}) or lower engine.profile.max ({request.profile[2]})"
    return UserError(found, "more workspace", remedy)


def _network(request: Request, trt: Any, builder: Any, log: Log) -> Any:
    """The parsed network, strongly typed (a flag on 10.x, the only kind from 11 on)."""
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log.logger)
    log.begin()
    if not parser.parse_from_file(request.onnx):
        first = parser.get_error(0) if parser.num_errors else None
        where = f"node {first.node_name()!r} ({first.node_operator()}): {first.desc()}" if first else log.reason()
        raise UserError(
            f"{request.flavour} cannot read {request.onnx}: {where}",
            "operators that its ONNX parser knows",
            "replace that operator in the network",
        )
    return network


def _layers(network: Any) -> dict[str, Counter[str]]:
    """Layers by kind and by the type of their first output, as the strongly typed network fixes them."""
    table: dict[str, Counter[str]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs:
            table.setdefault(layer.type.name, Counter())[layer.get_output(0).dtype.name] += 1
    return table


def _check_precision(request: Request, layers: dict[str, Counter[str]]) -> None:
    wanted = WANTED[request.precision]
    wrong = Counter[str]()
    for kind in COMPUTE:
        wrong.update({name: n for name, n in layers.get(kind, {}).items() if name != wanted})
    if wrong:
        found = " and ".join(f"{count} in {TYPES.get(name, name)}" for name, count in sorted(wrong.items()))
        raise UserError(
            f"{request.onnx} has convolutions or matrix products of another type: {found}",
            f"all of them in {TYPES[wanted]} for an engine in {request.precision}",
            "give the graph that was written for this precision",
        )


def _config(request: Request, trt: Any, builder: Any, network: Any) -> tuple[Any, list[dict[str, Any]]]:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
    if request.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    if config.builder_optimization_level != request.optimization_level:
        config.builder_optimization_level = request.optimization_level
    if hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.__members__[request.target or "CURRENT"], 0)
    else:
        assert request.target is None, "only tensorrt_rtx builds for another GPU"
    shapes = {spec["name"]: spec["shape"] for spec in map(_tensor, map(network.get_input, range(network.num_inputs)))}
    ranges = {name: _range(request, name, shape) for name, shape in shapes.items()}
    if all(None not in shape for shape in shapes.values()):
        return config, []
    profile = builder.create_optimization_profile()
    for name, limits in ranges.items():
        profile.set_shape(name, limits["min"], limits["opt"], limits["max"])
    config.add_optimization_profile(profile)
    return config, [ranges]


def _range(request: Request, name: str, shape: list[int | None]) -> dict[str, list[int]]:
    """Shapes at the profile's batch sizes. `UserError`: another dimension varies, or the batch is fixed elsewhere."""
    rest = shape[1:]
    if any(dim is None for dim in rest):
        raise UserError(
            f"input {name!r} of {request.onnx} has the shape {shape}",
            "only the batch dynamic",
            "fix the other dimensions",
        )
    if shape and shape[0] is not None and request.profile != (shape[0],) * 3:
        raise UserError(
            f"the batch of {name!r} in {request.onnx} is fixed at {shape[0]}",
            f"a dynamic batch for the profile {list(request.profile)}",
            f"export it with a dynamic batch, or ask for the profile {[shape[0]] * 3}",
        )
    sizes = zip(("min", "opt", "max"), request.profile, strict=True)
    return {key: [size, *(dim for dim in rest if dim is not None)] if shape else [] for key, size in sizes}


def _tensor(tensor: Any) -> dict[str, Any]:
    shape = [None if dim < 0 else int(dim) for dim in tensor.shape]
    return {"name": tensor.name, "dtype": TYPES[tensor.dtype.name], "shape": shape}


def _die_with_parent() -> None:
    """On Linux the kernel ends this process when its parent is killed; nothing is left building."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main(path: str) -> None:
    _die_with_parent()
    fields = json.loads(Path(path).read_text(encoding="utf-8"))
    request = Request(**{**fields, "profile": tuple(fields["profile"])})
    answer: dict[str, Any]
    try:
        trt = load(request.flavour)
        with Path(request.log).open("w", encoding="utf-8") as file:
            answer = build(request, trt, Log(trt, file))
    except EngineUnavailable as error:
        answer = {"ok": False, "unavailable": str(error)}
    except UserError as error:
        answer = {"ok": False, "found": error.found, "expected": error.expected, "remedy": error.remedy}
    Path(request.answer).write_text(json.dumps(answer, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
