"""The first NVIDIA GPU of this machine, asked of the driver itself: no CUDA package and no context needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """`target` is the compute capability as TensorRT names it, e.g. SM86; `driver_cuda` the CUDA version it serves."""

    name: str
    target: str
    driver_cuda: str


def first_gpu() -> Gpu | None:
    """The GPU with index 0, None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor, version = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    calls: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        lambda: driver.cuDriverGetVersion(ctypes.byref(version)),
    )
    if any(call() != 0 for call in calls):  # 0 is CUDA_SUCCESS; the first failure ends the sequence
        return None
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), f"SM{major.value}{minor.value}", cuda)
