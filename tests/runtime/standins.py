"""Stand-ins for TensorRT, so that the engine session runs without a GPU, on the stand-ins for CUDA beside them.

They stand for the library's calls, not for its results: the engine computes `nets.expected`. A test checks that the
names used here exist in the installed `tensorrt_rtx` and in the recorded versions of `tensorrt`.
"""

from __future__ import annotations

import ctypes
import functools
from enum import Enum, IntEnum, auto
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from runtime.backends import cuda
from runtime.backends import tensorrt as trt_backend
from tests.runtime.cuda_standins import DRIVER, STREAMS, Allocation, CapturedGraph, Context
from tests.runtime.nets import CLASSES, SHAPE, expected


class TensorIOMode(Enum):
    """trt.TensorIOMode."""

    NONE = auto()
    INPUT = auto()
    OUTPUT = auto()


class ILogger:
    """trt.ILogger."""

    Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)


class IProfiler:
    """trt.IProfiler."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class IExecutionContext:
    """trt.IExecutionContext: refuses what the real one refuses."""

    profiler: IProfiler | None = None

    def __init__(self, profiles: tuple[tuple[int, int, int], ...]) -> None:
        self._profiles = profiles
        self._profile = 0
        self._batch = 0
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, handle: int) -> bool:
        assert handle in STREAMS and index != self._profile
        self._profile, self._batch, self._addresses = index, 0, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._profiles[self._profile]
        self._batch = shape[0]
        return name == "input" and low <= shape[0] <= high

    def infer_shapes(self) -> list[str]:
        return [] if self._batch else ["input"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._batch, *(SHAPE if name == "input" else (CLASSES,)))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        assert Context.depth > 0
        STREAMS[handle].queue.append(self._compute)
        return True

    def _compute(self) -> None:
        size = self._batch * int(np.prod(SHAPE))
        given = np.ctypeslib.as_array((ctypes.c_float * size).from_address(self._addresses["input"]))
        wanted = expected(given.reshape(self._batch, *SHAPE))
        ctypes.memmove(self._addresses["logits"], wanted.ctypes.data, wanted.nbytes)
        if self.profiler is not None:
            self.profiler.report_layer_time("Reformatting CopyNode for Input Tensor 0", 0.002)
            self.profiler.report_layer_time("gemm + relu", 0.005)


class ICudaEngine:
    """trt.ICudaEngine of the network in `nets`."""

    num_io_tensors = 2

    def __init__(self, kind: str, profiles: tuple[tuple[int, int, int], ...]) -> None:
        self._kind, self._profiles = kind, profiles
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, index: int) -> str:
        return ("input", "logits")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "input" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self._kind)

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *(SHAPE if name == "input" else (CLASSES,)))

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(size, *SHAPE) for size in self._profiles[profile]]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self._profiles)


class Runtime:
    """trt.Runtime: takes the bytes b"plan" or b"plan <dtype>" for an engine with a profile of 1 to 8 images, b"plans"
    for one with the profiles 1 and 3 to 8, and logs an error for others."""

    _engine = ICudaEngine
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if plan.startswith(b"plan"):
            if plan == b"plans":
                return self._engine("FLOAT", ((1, 1, 1), (3, 4, 8)))
            return self._engine(plan.decode().removeprefix("plan").strip() or "FLOAT", ((1, 4, 8),))
        self._logger.log(ILogger.Severity.WARNING, "a warning before it")
        self._logger.log(ILogger.Severity.ERROR, "The serialized engine is not compatible with this device.")
        return None


class CudaGraphStrategy(Enum):
    """trt.CudaGraphStrategy, of TensorRT-RTX only."""

    DISABLED = auto()
    WHOLE_GRAPH_CAPTURE = auto()


class IRuntimeConfig:
    """trt.IRuntimeConfig of TensorRT-RTX."""

    cuda_graph_strategy = CudaGraphStrategy.DISABLED


class RtxEngine(ICudaEngine):
    """trt.ICudaEngine of TensorRT-RTX, whose contexts may capture graphs for themselves."""

    strategies: ClassVar[list[CudaGraphStrategy]] = []

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, config: IRuntimeConfig | None = None) -> IExecutionContext:
        RtxEngine.strategies.append(config.cuda_graph_strategy if config else CudaGraphStrategy.DISABLED)
        return IExecutionContext(self._profiles)


class RtxRuntime(Runtime):
    """trt.Runtime of TensorRT-RTX."""

    _engine = RtxEngine


_COMMON: dict[str, Any] = {
    "__version__": "0.0",
    "TensorIOMode": TensorIOMode,
    "ILogger": ILogger,
    "IProfiler": IProfiler,
}
LIBRARIES = {
    "tensorrt": SimpleNamespace(**_COMMON, Runtime=Runtime),
    "tensorrt_rtx": SimpleNamespace(**_COMMON, Runtime=RtxRuntime, CudaGraphStrategy=CudaGraphStrategy),
}
CLASSES_STOOD_IN_FOR = (IExecutionContext, IProfiler, ICudaEngine, Runtime, TensorIOMode)
RTX_CLASSES = {"ICudaEngine": RtxEngine, "IRuntimeConfig": IRuntimeConfig, "CudaGraphStrategy": CudaGraphStrategy}


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Puts the stand-ins in the place of pycuda, libcuda and both TensorRTs."""
    devices = functools.cache(cuda.CudaDevice)  # the real ones must not find this device after the test
    patch.setattr(cuda, "cuda_device", devices)
    patch.setattr(trt_backend, "cuda_device", devices)
    patch.setattr(cuda, "_driver", lambda: DRIVER)
    patch.setattr(trt_backend, "library", lambda flavour: LIBRARIES[flavour])
    patch.setattr(trt_backend, "CapturedGraph", CapturedGraph)


def all_given_back() -> None:
    """Fails where memory, a graph or a current context is left."""
    cuda.cuda_device.cache_clear()
    assert (Context.depth, Allocation.live, CapturedGraph.live) == (0, 0, 0)
