"""The little of CUDA that an engine needs, through pycuda: the primary context, a stream, pinned and device memory.

The context is the device's primary one, which torch and the CUDA runtime use too: a context of our own beside torch's
is a known way to break both (NVIDIA/TensorRT#4335, pytorch/pytorch#51105). It is current only inside `with
device.current():`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np

from runtime.backends import Array
from runtime.device import gpus
from runtime.errors import UserError


class CudaDevice:
    """A GPU by its index. Raises UserError that names what is missing: the GPU, the driver or pycuda."""

    def __init__(self, index: int = 0) -> None:
        self.driver = _driver()
        count = self.driver.Device.count()
        if index >= count:
            raise UserError(f"{count} NVIDIA GPUs are visible", f"GPU {index}", "run on a machine that has it")
        device = self.driver.Device(index)
        self.name: str = device.name()
        self._context = device.retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the context the calling thread's current one, and puts back the one before."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()


@cache
def cuda_device(index: int = 0) -> CudaDevice:
    """One CudaDevice per GPU and process: memory holds on to the context, so it is released when the process ends."""
    return CudaDevice(index)


def _driver() -> Any:
    """pycuda.driver, initialised."""
    if find_spec("pycuda") is None:
        raise UserError(
            "pycuda is not installed" + ("" if gpus() else " and no NVIDIA GPU is visible"),
            "an NVIDIA GPU, and pycuda to run TensorRT engines on it",
            "run on a machine with an NVIDIA GPU and install demport[gpu], or use the project's container image",
        )
    try:
        import pycuda.driver as driver

        driver.init()
    except ImportError as error:  # pycuda links libcuda, which comes with the driver
        raise UserError(
            f"pycuda does not load ({error})", "the NVIDIA driver's libcuda", "install the driver"
        ) from error
    except driver.Error as error:
        raise UserError(
            f"no NVIDIA GPU answers ({error})", "an NVIDIA GPU and its driver", "run on a machine that has one"
        ) from error
    return driver


class Buffer:
    """A tensor's place on the device and in pinned host memory; both grow when a larger tensor comes, and never shrink.

    Create, resize and free it only while the device's context is current.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._bytes = 0
        self._pinned: Array = np.empty(0, np.uint8)
        self._allocation: Any = None
        self.host: Array = self._pinned

    def resize(self, shape: tuple[int, ...], dtype: str) -> None:
        """Room for `shape` of `dtype` (NumPy's name); `host` becomes a view of pinned memory of that shape and type."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if size > self._bytes:
            self.free()
            self._allocation = self._driver.mem_alloc(size)
            self._pinned = self._driver.pagelocked_empty(size, np.uint8)
            self._bytes = size
        self.host = self._pinned[:size].view(dtype).reshape(shape)

    @property
    def address(self) -> int:
        """The device address."""
        return int(self._allocation)

    def upload(self, array: Array, stream: Any) -> None:
        """Copies `array` (the shape and type given to `resize`) to the device; done when the stream is synchronised."""
        np.copyto(self.host, array)
        self._driver.memcpy_htod_async(self._allocation, self.host, stream)

    def download(self, stream: Any) -> None:
        """Copies the device's values into `host`; done when the stream is synchronised."""
        self._driver.memcpy_dtoh_async(self.host, self._allocation, stream)

    def free(self) -> None:
        """Gives both memories back; views of `host` must not be used afterwards."""
        self.host = self._pinned = np.empty(0, np.uint8)
        if self._allocation is not None:
            self._allocation.free()
        self._allocation, self._bytes = None, 0
