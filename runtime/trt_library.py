"""TensorRT's module, its logger and its layer profiler, for `tensorrt` and `tensorrt_rtx` alike."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from runtime.errors import UserError

_PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}


def library(flavour: str) -> Any:
    """The module; `UserError` where it is not installed or does not load."""
    if find_spec(flavour) is None:
        raise UserError(
            f"{flavour} is not installed", f"{flavour}, which built the engine", f"install {_PACKAGES[flavour]}"
        )
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"{flavour} does not load ({' '.join(str(error).split())[:200]})",
            f"{flavour}, which built the engine, with its library",
            f"install {_PACKAGES[flavour]} anew",
        ) from error


def logger(trt: Any) -> Any:
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


def profiler(trt: Any) -> Any:
    """A TensorRT profiler whose `times` hold microseconds by layer, in the order of the engine."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the base comes from a library without types
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(1000 * ms)

    return Profiler()
