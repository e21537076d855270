"""TensorRT's module, its loggers and its layer profiler, for `tensorrt` and `tensorrt_rtx`, building and running."""

from __future__ import annotations

import importlib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, TextIO

from runtime.errors import UserError

_PACKAGES = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx"),
}
"""Flavour -> the packages that bring it, the one to install first."""


def load_library(flavour: str) -> Any:
    """The module. ImportError, its text one line: not installed, an empty placeholder, or its library does not load."""
    empty = _placeholder(flavour)
    if find_spec(flavour) is None:
        raise ImportError(empty or f"No module named {flavour!r}")
    try:
        module = importlib.import_module(flavour)
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: the wheel's stub where the library is absent
        raise ImportError(" ".join(str(error).split())) from error
    if not hasattr(module, "Runtime"):
        raise ImportError(empty or f"the module {flavour} holds nothing of TensorRT")
    return module


def _placeholder(flavour: str) -> str | None:
    """What to say of a package that is installed and brings no module: the index also holds wheels that only reserve a
    name. None where no package of this flavour is installed."""
    for package in _PACKAGES[flavour]:
        with suppress(PackageNotFoundError):
            return f"the installed {package} {version(package)} is an empty placeholder"
    return None


def library(flavour: str) -> Any:
    """`load_library`, with `UserError` for whoever opens an engine."""
    package = _PACKAGES[flavour][0]
    if find_spec(flavour) is None and _placeholder(flavour) is None:
        raise UserError(f"{flavour} is not installed", f"{flavour}, which built the engine", f"install {package}")
    try:
        return load_library(flavour)
    except ImportError as error:
        raise UserError(
            f"{flavour} does not load ({str(error)[:200]})",
            f"{flavour}, which built the engine, with its library",
            f"install {package} anew",
        ) from error


class Log:
    """Keeps the errors of the step under way, and writes all messages but VERBOSE ones, which are thousands, to `file`;
    `logger` is TensorRT's own object."""

    def __init__(self, trt: Any, file: TextIO | None = None) -> None:
        severity = trt.ILogger.Severity
        errors: list[str] = []

        class Logger(trt.ILogger):  # type: ignore[misc]  # the base comes from a library without types
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, level: Any, message: str) -> None:
                if file is not None and level != severity.VERBOSE:
                    file.write(f"[{level.name}] {message}\n")
                    file.flush()
                if level in (severity.ERROR, severity.INTERNAL_ERROR):
                    errors.append(message)

        self.errors, self._file = errors, file
        self.notes: list[str] = []
        self.logger = Logger()

    def begin(self) -> None:
        """Forgets errors of earlier steps: TensorRT-RTX logs harmless ones, e.g. on reading a setting it lacks."""
        self.errors.clear()

    def note(self, text: str) -> None:
        """Something of ours that the user should know; it goes into the file and into the answer."""
        self.notes.append(text)
        if self._file is not None:
            self._file.write(f"[NOTE] {text}\n")
            self._file.flush()

    def reason(self) -> str:
        """The first error of this step, on one line without a final stop."""
        return " ".join(self.errors[0].split())[:400].rstrip(".;") if self.errors else "TensorRT gives no reason"


def profiler(trt: Any) -> Any:
    """A TensorRT profiler whose `times` hold microseconds by layer, in the order of the engine."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the base comes from a library without types
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(1000 * ms)

    return Profiler()
