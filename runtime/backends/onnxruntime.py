"""Sessions of ONNX Runtime: the CPU provider, and the CUDA and TensorRT providers where its build has them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime as ort

from runtime.backends import Array, DeviceName, Guard, Setting, TensorSpec
from runtime.backends.denormals import Denormals
from runtime.backends.feeds import check_feeds
from runtime.backends.rtx_provider import provider_devices
from runtime.device import usable_cores
from runtime.errors import UserError

_NUMPY_NAMES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool",
}  # fmt: skip
_CUDA, _TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_OPTIONS = {_CUDA: {"use_tf32": "0"}, _TENSORRT: {}}  # float32 means float32
_ERROR = 3  # ONNX Runtime's severity: its warnings on standard error would break our output


class OrtSession:
    """An .onnx file, run with a fixed number of threads inside operators, one operator after another.

    Denormals are flushed to zero in the worker threads and, while it runs, in the calling thread. Worker threads spin
    during a run only (`session.force_spinning_stop`): spinning on between runs they would take the cores of the
    session timed next. With `tensorrt` ONNX Runtime builds an engine of the whole graph or of parts of it when it is
    opened and at the first run of each shape, and leaves what TensorRT does not take to CUDA.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: DeviceName = "auto",
        threads: int | None = None,
        tensorrt: bool = False,
        plugin: Sequence[Any] = (),
    ) -> None:
        """`plugin` are the devices of a provider that is a plug-in: inputs and outputs then lie in the host's memory,
        and a run copies them."""
        self.name = path.name
        self.backend = "onnxruntime_tensorrt_rtx" if plugin else "onnxruntime_tensorrt" if tensorrt else "onnxruntime"
        threads = threads or usable_cores()
        with Denormals(flush=False):  # opening the first session changes the calling thread for good
            self._session = _inference_session(path, [] if plugin else _providers(device, tensorrt), threads, plugin)
        started = self._session.get_providers()[0]
        self.device = "cpu" if started == "CPUExecutionProvider" else "cuda"
        if (device == "cuda" and self.device != "cuda") or (tensorrt and started != _TENSORRT):
            raise UserError(
                f"ONNX Runtime could not start its {'TensorRT' if tensorrt else 'CUDA'} provider for {path}",
                f"a working GPU and driver{', and the TensorRT it was built for' if tensorrt else ''}",
                "use device cpu",
            )
        self._memory = "cpu" if plugin else self.device
        self.inputs = tuple(_spec(argument) for argument in self._session.get_inputs())
        self.outputs = tuple(_spec(argument) for argument in self._session.get_outputs())
        self._flushed = Denormals(flush=True)
        self.settings: dict[str, Setting] = {
            "threads": threads,
            "provider": self._session.get_providers()[0],
            "denormals": "flushed to zero" if self._flushed.available else "flushed to zero in worker threads only",
            "spinning": "within a run",
            "execution": "sequential",
            **({"copies": "within a run"} if plugin else {}),
        }
        self._guard = Guard(self.name)
        self._binding: ort.IOBinding | None = None

    def bind(self, feeds: Mapping[str, Array]) -> None:
        """See Session. The copies live on the session's device; outputs are allocated there by each run."""
        with self._guard("bind"):
            binding = self._session.io_binding()
            for name, array in check_feeds(self.name, self.inputs, feeds).items():
                # On the CPU an OrtValue shares the array's memory, so it gets one of its own.
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array.copy(), self._memory, 0))
            for spec in self.outputs:
                binding.bind_output(spec.name, self._memory)
            self._binding = binding

    def launch(self) -> None:
        """See Session. Returns when the run is done: ONNX Runtime synchronises its stream at the end of a run."""
        with self._guard("launch"), self._flushed:
            assert self._binding is not None
            try:
                self._session.run_with_iobinding(self._binding)
            except Exception as error:  # its exception types share no base but Exception
                raise UserError(
                    f"ONNX Runtime failed on {self.name}: {_first_line(error)}",
                    "a graph that runs",
                    "export the graph again",
                ) from error

    def wait(self) -> None:
        """See Session."""
        with self._guard("wait"):
            assert self._binding is not None
            self._binding.synchronize_outputs()

    def fetch(self) -> dict[str, Array]:
        """See Session."""
        with self._guard("fetch"):
            assert self._binding is not None
            values = self._binding.get_outputs()
            return {spec.name: np.array(value.numpy()) for spec, value in zip(self.outputs, values, strict=True)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See Session."""
        with self._guard("close"):
            self._binding = None
            self.__dict__.pop("_session", None)


def open_tensorrt_provider(path: Path, *, device: DeviceName = "auto", threads: int | None = None) -> OrtSession:
    """An .onnx file on ONNX Runtime's TensorRT provider."""
    return OrtSession(path, device=device, threads=threads, tensorrt=True)


def open_rtx_provider(path: Path, *, device: DeviceName = "auto", threads: int | None = None) -> OrtSession:
    """An .onnx file on ONNX Runtime's TensorRT-RTX plug-in."""
    if device == "cpu":
        raise UserError(
            "device cpu for the TensorRT-RTX provider", "device auto or cuda", "use the backend onnxruntime"
        )
    return OrtSession(path, threads=threads, plugin=provider_devices())


def _providers(device: DeviceName, tensorrt: bool) -> list[str | tuple[str, dict[str, str]]]:
    """Providers in the order they are asked. `UserError` where the installed build lacks one that is asked for."""
    available = ort.get_available_providers()
    if tensorrt and device == "cpu":
        raise UserError("device cpu for the TensorRT provider", "device auto or cuda", "use the backend onnxruntime")
    for provider, name, asked in ((_TENSORRT, "TensorRT", tensorrt), (_CUDA, "CUDA", device == "cuda")):
        if asked and provider not in available:
            raise UserError(
                f"the installed ONNX Runtime has no {name} provider",
                "onnxruntime-gpu",
                "install onnxruntime-gpu, or use device cpu",
            )
    accelerators = [_TENSORRT] * tensorrt + [_CUDA] * (device != "cpu" and _CUDA in available)
    if accelerators and hasattr(ort, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it prints what it does not find
            ort.preload_dlls()  # CUDA and cuDNN of the Python packages that torch brings
    return [*((provider, _OPTIONS[provider]) for provider in accelerators), "CPUExecutionProvider"]


def session_options(threads: int) -> ort.SessionOptions:
    """Of every session: `threads` for an operator, only errors are logged, and int8 products are exact: a processor
    without VNNI would add pairs of them in 16 bits, which saturates."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _inference_session(
    path: Path, providers: list[str | tuple[str, dict[str, str]]], threads: int, plugin: Sequence[Any] = ()
) -> ort.InferenceSession:
    options = session_options(threads)
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if plugin:
        options.add_provider_for_devices(list(plugin), {})
    try:
        return ort.InferenceSession(path, options, **({} if plugin else {"providers": providers}))
    except Exception as error:  # its exception types share no base but Exception
        raise UserError(
            f"ONNX Runtime cannot load {path}: {_first_line(error)}", "a valid .onnx file", "export the network again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".; ")


def _spec(argument: ort.NodeArg) -> TensorSpec:
    if argument.type not in _NUMPY_NAMES:
        raise UserError(
            f"{argument.name} is a {argument.type}",
            f"one of {', '.join(_NUMPY_NAMES)}",
            "export the network with one of these types",
        )
    shape = tuple(size if isinstance(size, int) else None for size in argument.shape)
    return TensorSpec(argument.name, shape, _NUMPY_NAMES[argument.type])
