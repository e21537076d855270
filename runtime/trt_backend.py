"""Sessions of TensorRT engines, built by `tensorrt` or `tensorrt_rtx`: same names, so one code for both."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.backend import Array, DeviceName, Guard, Setting, TensorSpec
from runtime.cuda import Buffer, cuda_device
from runtime.errors import UserError
from runtime.feeds import check_feeds

_NUMPY_NAMES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
_PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}
_PROFILE = 0


def open_tensorrt(path: Path, *, device: DeviceName = "auto", threads: int | None = None) -> TrtSession:
    """An engine built by `tensorrt`."""
    return TrtSession(path, "tensorrt", device=device, threads=threads)


def open_tensorrt_rtx(path: Path, *, device: DeviceName = "auto", threads: int | None = None) -> TrtSession:
    """An engine built by `tensorrt_rtx`."""
    return TrtSession(path, "tensorrt_rtx", device=device, threads=threads)


class TrtSession:
    """An engine on the first GPU, with its first optimisation profile and a stream of its own.

    Buffers are kept between calls and grow with the batch. `threads` has no meaning here and is only recorded as such.
    """

    def __init__(self, path: Path, flavour: str, *, device: DeviceName = "auto", threads: int | None = None) -> None:
        if device == "cpu":
            raise UserError(
                f"device cpu for the engine {path}", "device auto or cuda", "engines run on NVIDIA GPUs only"
            )
        trt = _library(flavour)
        self.name, self.backend, self.device = path.name, flavour, "cuda"
        self._device = cuda_device()
        self._logger = _logger(trt)
        with self._device.current():
            self._runtime = trt.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            self._check(self._engine, path, "was not accepted by the runtime")
            self._context = self._engine.create_execution_context()
            self._check(self._context, path, "got no execution context")
            self._stream = self._device.driver.Stream()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(_spec(self._engine, name, is_input=True) for name in names if is_input[name])
        self.outputs = tuple(_spec(self._engine, name, is_input=False) for name in names if not is_input[name])
        self._buffers = {name: Buffer(self._device.driver) for name in names}
        self.settings: dict[str, Setting] = {"gpu": self._device.name, "version": trt.__version__, "threads": None}
        self._guard = Guard(self.name)

    def bind(self, feeds: Mapping[str, Array]) -> None:
        """See Session. A shape outside the optimisation profile is a UserError."""
        with self._guard("bind"):
            checked = check_feeds(self.name, self.inputs, feeds)
            with self._device.current():
                for name, array in checked.items():
                    if not self._context.set_input_shape(name, array.shape):
                        raise self._failed(f"refused the shape {array.shape} of {name}")
                    self._place(name, array.shape, str(array.dtype))
                    self._buffers[name].upload(array, self._stream)
                unknown = self._context.infer_shapes()
                if unknown:
                    raise self._failed(f"left the shapes of {list(unknown)} open")
                for spec in self.outputs:
                    self._place(spec.name, tuple(self._context.get_tensor_shape(spec.name)), spec.dtype)
                self._stream.synchronize()

    def launch(self) -> None:
        """See Session. Returns when the work is queued on the stream."""
        with self._guard("launch"), self._device.current():
            if not self._context.execute_async_v3(self._stream.handle):
                raise self._failed("did not start")

    def wait(self) -> None:
        """See Session."""
        with self._guard("wait"), self._device.current():
            self._stream.synchronize()

    def fetch(self) -> dict[str, Array]:
        """See Session."""
        with self._guard("fetch"), self._device.current():
            for spec in self.outputs:
                self._buffers[spec.name].download(self._stream)
            self._stream.synchronize()
            return {spec.name: self._buffers[spec.name].host.copy() for spec in self.outputs}

    def layer_times(self, runs: int) -> dict[str, list[float]]:
        """Microseconds of each layer in each of `runs` launches on the bound inputs, by TensorRT's profiler. It stays
        on afterwards: time nothing else with this session."""
        profiler = _profiler(_library(self.backend))
        with self._device.current():
            self._context.profiler = profiler
        for _ in range(runs):
            self.launch()
            self.wait()
        times: dict[str, list[float]] = profiler.times
        return times

    def close(self) -> None:
        """See Session. Memory goes back while the context is current, the context before its engine and runtime."""
        with self._guard("close"):
            if "_context" not in self.__dict__:
                return
            with self._device.current():
                self._stream.synchronize()
                for buffer in self._buffers.values():
                    buffer.free()
                for attribute in ("_context", "_engine", "_runtime", "_stream"):
                    del self.__dict__[attribute]

    def _place(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self._buffers[name].resize(shape, dtype)
        if not self._context.set_tensor_address(name, self._buffers[name].address):
            raise self._failed(f"refused the address of {name}")

    def _check(self, made: object, path: Path, what: str) -> None:
        if made is None:
            raise UserError(
                f"{path} {what}: {self._logger.first()}",
                f"an engine built for {self._device.name} by this version of {self.backend}",
                "run `demport preflight` on it, and build it again for this device",
            )

    def _failed(self, what: str) -> UserError:
        return UserError(
            f"engine {self.name} {what}: {self._logger.first()}", "an engine that runs", "build the engine again"
        )


def _library(flavour: str) -> Any:
    if find_spec(flavour) is None:
        raise UserError(
            f"{flavour} is not installed", f"{flavour}, which built the engine", f"install {_PACKAGES[flavour]}"
        )
    return importlib.import_module(flavour)


def _logger(trt: Any) -> Any:
    """A TensorRT logger that keeps errors instead of printing them; `first()` is the first one since the last call."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base comes from a library without types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

        def first(self) -> str:
            text = self.errors[0].strip().rstrip(".;") if self.errors else "the library gave no reason"
            self.errors.clear()
            return text

    return Logger()


def _profiler(trt: Any) -> Any:
    """A TensorRT profiler whose `times` hold microseconds by layer, in the order of the engine."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the base comes from a library without types
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(1000 * ms)

    return Profiler()


def _spec(engine: Any, name: str, *, is_input: bool) -> TensorSpec:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _NUMPY_NAMES or engine.is_shape_inference_io(name):
        raise UserError(
            f"tensor {name} of the engine is {kind}{' and sets a shape' if kind in _NUMPY_NAMES else ''}",
            f"a plain tensor of {', '.join(_NUMPY_NAMES)}",
            "export the network with such inputs and outputs",
        )
    shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
    if not is_input:
        return TensorSpec(name, shape, _NUMPY_NAMES[kind])
    smallest, _, largest = (tuple(int(n) for n in s) for s in engine.get_tensor_profile_shape(name, _PROFILE))
    return TensorSpec(name, shape, _NUMPY_NAMES[kind], smallest, largest)
