"""Runs the builder in a process of its own: its errors, its crash and its running out of time become errors here.

A process that is started by name, not by `multiprocessing`: that would run the caller's own script again, which need
not be written for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from export.engines import EngineUnavailable, Report
from export.engines.tensorrt.config import Request
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def run_builder(request: Request, output: Path, report: Report | None) -> dict[str, Any]:
    """The builder's answer; `output` takes what its process prints. `report` hears of its progress.

    `EngineUnavailable` where TensorRT does not load there, `UserError` for all else.
    """
    ours, theirs = Pipe()
    # -P and the path: the child finds this package and nothing of the current folder's, whatever that is
    command = [sys.executable, "-P", "-m", "export.engines.tensorrt.build", str(theirs.fileno()), str(os.getpid())]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with ours, output.open("wb") as stream:
        with theirs:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": paths},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        try:
            answer = _answer(request, process, ours, report)
        finally:
            _end(process)
    if answer is None:
        raise _crash(request, process.returncode, output.read_text(encoding="utf-8", errors="replace"))
    kind, *content = answer
    if kind == "unavailable":
        raise EngineUnavailable(*content)
    if kind == "refused":
        raise UserError(*content)
    built: dict[str, Any] = content[0]
    return built


def _answer(
    request: Request, process: subprocess.Popen[bytes], connection: Connection, report: Report | None
) -> tuple[Any, ...] | None:
    """The last message, None of a process that ends without one. `UserError`: the time is up."""
    until = time.monotonic() + request.options.time_limit_s
    try:
        connection.send(request)
        while time.monotonic() < until:
            if connection.poll(0.1):
                message: tuple[Any, ...] = connection.recv()
                if message[0] != "progress":
                    process.wait(max(until - time.monotonic(), 1.0))
                    return message
                if report is not None:
                    report(*message[1:])
            elif process.poll() is not None and not connection.poll():
                return None
    except (EOFError, OSError):  # its end of the pipe is closed
        process.wait(max(until - time.monotonic(), 1.0))
        return None
    raise UserError(
        f"the {request.flavour} builder was still at {request.onnx} after {request.options.time_limit_s:g} s",
        "an engine within engine.time_limit_s",
        "raise engine.time_limit_s",
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the child's whole session if it still runs, and waits for it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _crash(request: Request, code: int, output: str) -> UserError:
    """What a child that gave no answer says last, on one line; all of it goes to the end of the log."""
    log = Path(request.log)
    with log.open("a", encoding="utf-8") as file:
        file.write(output)
    lines = [line.strip() for line in output.splitlines() if line.strip()] or log.read_text().splitlines()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    said = f", its last words: {lines[-1][:300]}" if lines else ""
    return UserError(
        f"the {request.flavour} builder {how} on {request.onnx}{said}",
        "an engine",
        f"see {log.name}; free memory, or try another target or precision",
    )
