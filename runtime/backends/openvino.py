"""Sessions of OpenVINO on a CPU: an .onnx file, or the IR that `export.engines.openvino` writes.

OpenVINO computes in bfloat16 where the CPU has it unless INFERENCE_PRECISION_HINT says otherwise, so the hint is always
set: f32, or the precision that the manifest beside an engine names. Threads, streams, pinning and cache are fixed too,
and recorded in `settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np

from runtime.backends import Array, DeviceName, Guard, Setting, TensorSpec, sidecar
from runtime.backends.denormals import Denormals
from runtime.backends.feeds import check_feeds
from runtime.device import usable_cores
from runtime.errors import UserError

DEVICE = "CPU"
HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""Precision of an engine -> INFERENCE_PRECISION_HINT: what is not quantized in an int8 graph stays in float32."""
CAPABILITIES = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16", "int8": "INT8"}
COUNTERS = {"PERF_COUNT": True}
_DTYPES = {
    "f32": "float32", "f16": "float16", "f64": "float64", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64",
    "boolean": "bool",
}  # fmt: skip


@cache
def core() -> Any:
    """OpenVINO's core, one a process. UserError: the library is not installed or does not load."""
    if find_spec("openvino") is None:
        raise UserError("openvino is not installed", "OpenVINO 2025.0 or later", "install openvino")
    try:
        return import_module("openvino").Core()
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"openvino does not load ({reason})", "OpenVINO", "install openvino anew") from error


def precisions() -> tuple[str, ...]:
    """What this CPU computes in, of fp32, fp16, bf16 and int8."""
    can = core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, word in CAPABILITIES.items() if word in can)


def properties(precision: str, threads: int) -> dict[str, Any]:
    """What a network is compiled with: everything that decides its speed or its values."""
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "ENABLE_CPU_PINNING": False,  # in a container the cores that it pins to may be somebody else's
        "CPU_DENORMALS_OPTIMIZATION": True,
        "CACHE_DIR": "",  # a cached blob skips what compiling decides here
    }


def server_properties(threads: int | None, precision: str = "fp32") -> dict[str, str]:
    """The part of `properties` that OpenVINO Model Server takes: float32 stays float32, and where the precision was
    measured here, with as many threads and streams."""
    hint = {"INFERENCE_PRECISION_HINT": HINTS[precision]}
    return hint if threads is None else {**hint, "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}


class OpenVinoSession:
    """One network, compiled for this CPU with one stream of `threads` threads. `compiled` is OpenVINO's own object."""

    backend, device = "openvino", "cpu"

    def __init__(
        self, path: Path, *, device: DeviceName = "auto", threads: int | None = None, precision: str | None = None
    ) -> None:
        """`precision` None: that of the manifest beside the file, else fp32."""
        if device == "cuda":
            raise UserError("device cuda for openvino", "device auto or cpu", "use the CPU")
        self.name, self._path = path.name, path
        described = sidecar(path) or {}
        precision = precision or str(described.get("precision", "fp32"))
        if precision not in precisions():
            raise UserError(
                f"{path.name} is for {precision}, and this CPU computes in {', '.join(precisions())}",
                "a precision that the CPU has",
                "open it on a CPU that has it, or build an engine in fp32",
            )
        self._properties = properties(precision, threads or usable_cores())
        try:
            with Denormals(flush=False):  # compiling changes the calling thread for good
                self.compiled = core().compile_model(core().read_model(path), DEVICE, self._properties)
            self._request = self.compiled.create_infer_request()
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO cannot load {path}: {reason(error)}", "an .onnx file or OpenVINO's IR", "build it again"
            ) from error
        self.inputs = tuple(_spec(port) for port in self.compiled.inputs)
        self.outputs = tuple(_spec(port) for port in self.compiled.outputs)
        self.settings: dict[str, Setting] = {
            "threads": int(self.compiled.get_property("INFERENCE_NUM_THREADS")),
            "streams": int(self.compiled.get_property("NUM_STREAMS")),
            "precision hint": str(self.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()),
            "pinning": bool(self.compiled.get_property("ENABLE_CPU_PINNING")),
            "denormals": "flushed to zero",
            "cache": "none",
        }
        self._flushed = Denormals(flush=True)
        self._guard = Guard(self.name)
        self._bound: list[Any] = []

    def bind(self, feeds: Mapping[str, Array]) -> None:
        """See Session. The request reads copies of the arrays in place."""
        with self._guard("bind"):
            from openvino import Tensor

            arrays = check_feeds(self.name, self.inputs, feeds)
            self._bound = [Tensor(np.array(arrays[spec.name], order="C"), shared_memory=True) for spec in self.inputs]
            for number, tensor in enumerate(self._bound):
                self._request.set_input_tensor(number, tensor)

    def launch(self) -> None:
        """See Session. Returns when the run is done: one that is started apart takes 10 us longer."""
        with self._guard("launch"), self._flushed:
            try:
                self._request.infer(share_outputs=True)
            except RuntimeError as error:
                raise UserError(
                    f"OpenVINO failed on {self.name}: {reason(error)}", "a graph that runs", "export the graph again"
                ) from error

    def wait(self) -> None:
        """See Session."""
        with self._guard("wait"):
            return

    def fetch(self) -> dict[str, Array]:
        """See Session."""
        with self._guard("fetch"):
            values = [self._request.get_output_tensor(number).data for number in range(len(self.outputs))]
            return {spec.name: np.array(value) for spec, value in zip(self.outputs, values, strict=True)}

    def layer_times(self, runs: int) -> dict[str, list[float]]:
        """Microseconds of each executed layer in each of `runs` runs on the bound inputs, by OpenVINO's counters in a
        network compiled anew with them. A layer's name lists its type and the nodes fused into it."""
        self.launch()  # refuses what is not bound
        with Denormals(flush=False):
            compiled = core().compile_model(core().read_model(self._path), DEVICE, {**self._properties, **COUNTERS})
            request = compiled.create_infer_request()
        origins = {
            one.get_friendly_name(): one.get_rt_info()["originalLayersNames"].astype(str)
            for one in compiled.get_runtime_model().get_ordered_ops()
        }
        for number, tensor in enumerate(self._bound):
            request.set_input_tensor(number, tensor)
        times: dict[str, list[float]] = {}
        with self._flushed:
            request.infer(share_outputs=True)  # the first run prepares the kernels
            for _ in range(runs):
                request.infer(share_outputs=True)
                for row in request.profiling_info:
                    if row.status == row.Status.EXECUTED:
                        name = f"{row.node_type} {row.node_name} {origins.get(row.node_name, '')}"
                        times.setdefault(name, []).append(row.real_time.total_seconds() * 1e6)
        return times

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See Session."""
        with self._guard("close"):
            self._bound = []
            for name in ("_request", "compiled"):
                self.__dict__.pop(name, None)


def reason(error: Exception) -> str:
    """The line that says what is wrong: OpenVINO's first lines name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (said or lines or [type(error).__name__])[0][:300].rstrip(".; ")


def _spec(port: Any) -> TensorSpec:
    kind = port.get_element_type().get_type_name()
    if kind not in _DTYPES:
        raise UserError(
            f"{port.get_any_name()} is of the type {kind}", f"one of {', '.join(_DTYPES.values())}", "cast it"
        )
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), shape, _DTYPES[kind])
