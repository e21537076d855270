"""ONNX Runtime's TensorRT-RTX provider, a plug-in that a package of its own brings."""

from __future__ import annotations

from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from sys import stderr
from typing import Any

from runtime.errors import UserError

PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
_MODULE, _EXPECTED = "onnxruntime_ep_nv_tensorrt_rtx", "ONNX Runtime's TensorRT-RTX provider on an NVIDIA GPU"


@cache
def provider_devices() -> tuple[Any, ...]:
    """The devices that the plug-in offers to ONNX Runtime, at least one. UserError: it is not installed, does not load
    (without a driver it cannot), or finds no GPU."""
    import onnxruntime as ort

    if find_spec(_MODULE) is None:
        raise UserError(f"{PACKAGE} is not installed", _EXPECTED, f"install {PACKAGE}, or use the backend onnxruntime")
    if not hasattr(ort, "register_execution_provider_library"):
        raise UserError(f"onnxruntime {ort.__version__} takes no plug-ins", "1.23 or later", "install a later one")
    try:
        with redirect_stdout(stderr):
            plugin = import_module(_MODULE)
            ort.register_execution_provider_library(_MODULE, plugin.get_library_path())
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        reason = " ".join(str(error).split())
        problem = "there is no NVIDIA driver" if "libcuda.so" in reason else f"it does not load: {reason[-200:]}"
        raise UserError(
            f"{PACKAGE} is installed, and {problem}", _EXPECTED, "use a machine with a GPU, or the backend onnxruntime"
        ) from error
    devices = tuple(device for device in ort.get_ep_devices() if device.ep_name == plugin.get_ep_name())
    if not devices:
        raise UserError(
            f"{PACKAGE} is installed, and finds no GPU", _EXPECTED, "use a machine with a GPU, or another backend"
        )
    return devices
