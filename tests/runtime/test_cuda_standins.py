"""The stand-ins for pycuda have no name that pycuda lacks."""

from __future__ import annotations

import pytest

from runtime.backends import cuda
from runtime.backends import tensorrt as trt_backend
from tests.runtime import cuda_standins as standins
from tests.runtime.standins import all_given_back, stand_in

# What src/wrapper/wrap_cudadrv.cpp and pycuda/driver.py of pycuda 2026.1 define, as far as the project touches it.
PYCUDA = {
    "Context": {"attach", "detach", "push", "pop", "get_device", "synchronize", "get_current", "handle"},
    "Device": {"count", "name", "make_context", "can_access_peer", "retain_primary_context"},
    "Stream": {"synchronize", "is_done", "wait_for_event", "handle"},
    "Event": {"record", "synchronize", "query", "time_since", "time_till"},
}
FUNCTIONS = {"mem_alloc", "pagelocked_empty", "memcpy_htod_async", "memcpy_dtoh_async", "init"}
OWN = {"depth", "live", "queue", "behind", "stream"}  # of the stand-ins, to look into


@pytest.mark.parametrize("name", PYCUDA)
def test_names_of_the_classes(name: str) -> None:
    used = {attribute for attribute in vars(getattr(standins, name)) if not attribute.startswith("_")} - OWN
    assert used
    assert used <= PYCUDA[name]


def test_names_of_the_module() -> None:
    given = set(vars(standins.DRIVER))
    assert {"Device", "Stream", "Event"} <= given
    assert given - {"Device", "Stream", "Event"} <= FUNCTIONS


def test_the_real_devices_never_meet_the_stand_in() -> None:
    """Tests on a GPU run in the same process."""
    real = cuda.cuda_device
    held = real.cache_info().currsize
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        assert vars(trt_backend)["cuda_device"]().driver is standins.DRIVER
        all_given_back()
    assert (cuda.cuda_device, vars(trt_backend)["cuda_device"]) == (real, real)
    assert real.cache_info().currsize == held
