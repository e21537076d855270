"""Where a network's time goes, layer by layer: what the runtime's own profiler tells, matched with the layers of the
ONNX graph."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from runtime.backends import Array
from runtime.errors import UserError

REFORMATS = (
    "ReorderInput",
    "ReorderOutput",
    "Transpose",
    "Cast",
    "Reformat",
    "Memcpy",
    "MemcpyToHost",
    "MemcpyFromHost",
)
"""Operators that compute nothing: they change a layout, a type or a place."""
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WARM_UP = 5  # runs


@dataclass(frozen=True)
class Weighted:
    """A layer with a weight in an ONNX graph: `layer` is the name of the weight without `.weight`."""

    layer: str
    operator: str
    weight_shape: tuple[int, ...]
    channels: int


@dataclass(frozen=True)
class Kernel:
    """One thing that the runtime runs, in microseconds a run (see `_quiet`).

    `layer` is None where it belongs to no weighted layer. `channels` is what the layer puts out, `width` what a kernel
    computes: wider where the runtime pads channels to its vectors; None where not known. `macs` of one run; `moved`:
    bytes of inputs, weights and outputs.
    """

    name: str
    operator: str
    layer: str | None
    us: float
    macs: int
    moved: int
    channels: int | None
    width: int | None

    @property
    def reformats(self) -> bool:
        return self.operator in REFORMATS


@dataclass(frozen=True)
class Profile:
    """The kernels in the order they run, and a whole run with what lies between them, in microseconds."""

    kernels: tuple[Kernel, ...]
    run_us: float

    @property
    def between_us(self) -> float:
        """Time of a run that no kernel took."""
        return max(self.run_us - sum(kernel.us for kernel in self.kernels), 0.0)


def weighted_layers(path: Path) -> dict[str, Weighted]:
    """Node name and every output's name -> the weighted layer that it is, or is the activation or sum of."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    layers: dict[str, Weighted] = {}
    for node in graph.node:
        weight = next((name for name in node.input[1:2] if node.op_type in _WEIGHTED and name in shapes), None)
        if weight is not None:
            shape = shapes[weight]
            transposed = any(one.name == "transB" and one.i for one in node.attribute)
            last = node.op_type == "MatMul" or (node.op_type == "Gemm" and not transposed)
            channels = shape[-1] if last else shape[1] if node.op_type == "ConvTranspose" else shape[0]
            layer = Weighted(re.sub(r"\.weight$", "", weight), node.op_type, shape, channels)
        elif (before := next((name for name in node.input if name in layers), None)) and _fuses(node.op_type):
            layer = layers[before]
        else:
            continue
        layers |= {name: layer for name in (node.name, *node.output) if name}
    return layers


def _fuses(operator: str) -> bool:
    """Operators that runtimes run inside the layer before them."""
    return operator in ("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Add", "Mul")


def ort_profile(path: Path, feed: Mapping[str, Array], *, threads: int, runs: int = 40) -> Profile:
    """Of an .onnx file on the CPU, by ONNX Runtime's profiler, which costs some microseconds a kernel. UserError where
    it does not load."""
    import onnxruntime as ort

    from runtime.backends.onnxruntime import session_options

    options = session_options(threads)
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception types share no base but Exception
            raise UserError(f"ONNX Runtime cannot load {path}", "a valid .onnx file", "export it again") from error
        for _ in range(_WARM_UP + runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return profile_of(events, weighted_layers(path), runs)


def profile_of(events: list[Mapping[str, Any]], layers: Mapping[str, Weighted], runs: int) -> Profile:
    """ONNX Runtime's events (microseconds, in order of time), the last `runs` runs of them."""
    taken: dict[str, list[float]] = {}
    arguments: dict[str, Mapping[str, Any]] = {}
    whole: list[float] = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            taken.setdefault(name, []).append(float(event["dur"]))
            arguments[name] = event["args"]
        elif event.get("cat") == "Session" and event["name"] == "model_run":
            whole.append(float(event["dur"]))
    kernels = [
        _kernel(name, arguments[name], _quiet(times[-runs:]), _layer_of(name, arguments[name], layers))
        for name, times in taken.items()
    ]
    return Profile(tuple(kernels), _quiet(whole[-runs:]))


def _quiet(times: Sequence[float]) -> float:
    """The fastest fifth's slowest: what it takes when nothing interrupts it, on a busy machine too."""
    return sorted(times)[(len(times) - 1) // 5]


def _layer_of(name: str, arguments: Mapping[str, Any], layers: Mapping[str, Weighted]) -> Weighted | None:
    """A fused kernel is called after its output; one in blocked layout ends in `_nchwc`."""
    operator = arguments.get("op_name", "")
    if not any(kind in operator for kind in _WEIGHTED):
        return None
    return layers.get(name.removesuffix("_nchwc")) or layers.get(name)


def _kernel(name: str, arguments: Mapping[str, Any], us: float, layer: Weighted | None) -> Kernel:
    inputs, outputs = (_shapes(arguments.get(f"{way}_type_shape", ())) for way in ("input", "output"))
    operator = str(arguments.get("op_name", ""))
    out = outputs[0] if outputs else ()
    macs, width = 0, None
    if layer is not None:
        per_output = prod(layer.weight_shape) // max(layer.channels, 1)
        spread = out[2:] if "Conv" in operator else out[1:-1]
        if operator == "ConvTranspose":  # each input pixel is multiplied with the whole kernel
            spread = inputs[0][2:]
        macs = out[0] * prod(spread) * per_output * layer.channels if out else 0
        width = (out[1] if "Conv" in operator else out[-1]) if out else None
    elif operator in ("MatMul", "FusedMatMul", "Gemm", "FusedGemm") and inputs and out:
        macs = prod(out) * inputs[0][-1]
    moved = sum(int(arguments.get(key, 0)) for key in ("activation_size", "parameter_size", "output_size"))
    return Kernel(
        name, operator, layer.layer if layer else None, us, macs, moved, layer.channels if layer else None, width
    )  # fmt: skip


def _shapes(entries: Any) -> list[tuple[int, ...]]:
    """[{"float": [32, 16, 8, 8]}, ...] -> shapes."""
    return [tuple(int(size) for size in shape) for entry in entries for shape in entry.values()]


def engine_profile(session: Any, layers: Mapping[str, Weighted], *, runs: int = 40) -> Profile:
    """Of a bound session of backends.tensorrt or backends.openvino, by the library's own layer profiler.

    A layer's name lists the ONNX nodes fused into it; TensorRT's where the engine was built with detailed profiling.
    Work and bytes are not reported: `macs` and `moved` are 0.
    """
    for _ in range(_WARM_UP):
        session.launch()
        session.wait()
    times = session.layer_times(runs)
    kernels = []
    for name, taken in times.items():
        layer = next((layers[word] for word in _words(name) if word in layers), None)
        reformats = layer is None and re.search(r"reformat|Cast|Reorder|Convert\b", name, re.IGNORECASE)
        operator = "Reformat" if reformats else "layer"
        channels = layer.channels if layer else None
        kernels.append(Kernel(name, operator, layer.layer if layer else None, _quiet(taken), 0, 0, channels, None))
    return Profile(tuple(kernels), sum(kernel.us for kernel in kernels))


def _words(name: str) -> Iterator[str]:
    with suppress(re.error):
        yield from re.findall(r"[\w./:-]+", name)
