"""Stand-ins for pycuda and TensorRT that hold device memory in host memory, so that the engine session runs without a
GPU.

They stand for the libraries' calls, not for their results: the engine computes `nets.expected`. The test beside them
checks that the TensorRT names used here exist in the installed `tensorrt_rtx`; the pycuda names are those of its
2026.1 wrapper.
"""

from __future__ import annotations

import ctypes
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.runtime.nets import CLASSES, SHAPE, expected


class Context:
    """pycuda.driver.Context: counts how often it is current."""

    depth = 0

    def push(self) -> None:
        Context.depth += 1

    @staticmethod
    def pop() -> None:
        assert Context.depth > 0
        Context.depth -= 1


class Device:
    """pycuda.driver.Device."""

    def __init__(self, index: int) -> None:
        assert index == 0

    @staticmethod
    def count() -> int:
        return 1

    def name(self) -> str:
        return "stand-in GPU"

    def retain_primary_context(self) -> Context:
        return Context()


class Stream:
    """pycuda.driver.Stream: work is done when it is synchronised, so that a forgotten wait shows."""

    def __init__(self) -> None:
        assert Context.depth > 0
        self.handle = id(self)
        self.queue: list[Any] = []
        STREAMS[self.handle] = self

    def synchronize(self) -> None:
        assert Context.depth > 0
        for work in self.queue:
            work()
        self.queue.clear()


STREAMS: dict[int, Stream] = {}


class Allocation:
    """pycuda.driver.DeviceAllocation: poisoned with 0xFF, so that what was never written reads as NaN."""

    live = 0

    def __init__(self, size: int) -> None:
        assert Context.depth > 0
        self.memory = (ctypes.c_ubyte * size)(*([255] * size))
        Allocation.live += 1

    def __int__(self) -> int:
        return ctypes.addressof(self.memory)

    def free(self) -> None:
        assert Context.depth > 0
        Allocation.live -= 1


def upload(dest: Allocation, src: NDArray[Any], stream: Stream) -> None:
    """pycuda.driver.memcpy_htod_async."""
    assert src.flags.c_contiguous
    assert src.nbytes <= len(dest.memory)
    stream.queue.append(lambda: ctypes.memmove(int(dest), src.ctypes.data, src.nbytes))


def download(dest: NDArray[Any], src: Allocation, stream: Stream) -> None:
    """pycuda.driver.memcpy_dtoh_async."""
    assert dest.flags.c_contiguous
    assert dest.nbytes <= len(src.memory)
    stream.queue.append(lambda: ctypes.memmove(dest.ctypes.data, int(src), dest.nbytes))


DRIVER = SimpleNamespace(
    Device=Device,
    Stream=Stream,
    mem_alloc=Allocation,
    pagelocked_empty=np.empty,
    memcpy_htod_async=upload,
    memcpy_dtoh_async=download,
)


class TensorIOMode(Enum):
    """trt.TensorIOMode."""

    NONE = auto()
    INPUT = auto()
    OUTPUT = auto()


class ILogger:
    """trt.ILogger."""

    INTERNAL_ERROR, ERROR, WARNING = range(3)


class IProfiler:
    """trt.IProfiler."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class IExecutionContext:
    """trt.IExecutionContext: refuses what the real one refuses."""

    profiler: IProfiler | None = None

    def __init__(self) -> None:
        self.batch = 0
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return name == "input" and 1 <= shape[0] <= 8

    def infer_shapes(self) -> list[str]:
        return [] if self.batch else ["input"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.batch, *(SHAPE if name == "input" else (CLASSES,)))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        assert Context.depth > 0
        STREAMS[handle].queue.append(self._compute)
        return True

    def _compute(self) -> None:
        size = self.batch * int(np.prod(SHAPE))
        given = np.ctypeslib.as_array((ctypes.c_float * size).from_address(self.addresses["input"]))
        wanted = expected(given.reshape(self.batch, *SHAPE))
        ctypes.memmove(self.addresses["logits"], wanted.ctypes.data, wanted.nbytes)
        if self.profiler is not None:
            self.profiler.report_layer_time("Reformatting CopyNode for Input Tensor 0", 0.002)
            self.profiler.report_layer_time("gemm + relu", 0.005)


class ICudaEngine:
    """trt.ICudaEngine of the network in `nets`, with a profile of 1 to 8 images."""

    num_io_tensors = 2

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def get_tensor_name(self, index: int) -> str:
        return ("input", "logits")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "input" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self.kind)

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *(SHAPE if name == "input" else (CLASSES,)))

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        return [(1, *SHAPE), (4, *SHAPE), (8, *SHAPE)]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext()


class Runtime:
    """trt.Runtime: takes the bytes b"plan" or b"plan <dtype>" for an engine, and logs an error for others."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        if plan.startswith(b"plan"):
            return ICudaEngine(plan.decode().removeprefix("plan").strip() or "FLOAT")
        self.logger.log(ILogger.WARNING, "a warning before it")
        self.logger.log(ILogger.ERROR, "The serialized engine is not compatible with this device.")
        return None


TENSORRT = SimpleNamespace(
    __version__="0.0", TensorIOMode=TensorIOMode, ILogger=ILogger, IProfiler=IProfiler, Runtime=Runtime
)
CLASSES_STOOD_IN_FOR = (IExecutionContext, IProfiler, ICudaEngine, Runtime, TensorIOMode)
