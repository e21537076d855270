"""TensorRT's messages while an engine is built: all in the log file, the first error for the user."""

from __future__ import annotations

from typing import Any, TextIO


class Log:
    """Keeps TensorRT's messages in a file, and the errors of the step under way. VERBOSE ones, thousands, are left."""

    def __init__(self, trt: Any, file: TextIO) -> None:
        errors: list[str] = []
        bad = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc]  # the base is only known at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity != trt.ILogger.Severity.VERBOSE:
                    file.write(f"[{severity.name}] {message}\n")
                    file.flush()
                if severity in bad:
                    errors.append(message)

        self._file = file
        self.errors = errors
        self.notes: list[str] = []
        self.logger = Logger()

    def begin(self) -> None:
        """Forgets errors of earlier steps: TensorRT-RTX logs harmless ones, e.g. on reading a setting it lacks."""
        self.errors.clear()

    def note(self, text: str) -> None:
        """Something of ours that the user should know; it goes into the log and into the answer."""
        self.notes.append(text)
        self._file.write(f"[NOTE] {text}\n")
        self._file.flush()

    def reason(self) -> str:
        """The first error of this step, on one line."""
        return " ".join(self.errors[0].split())[:400] if self.errors else "TensorRT gives no reason"
