"""Runs the builder in a process of its own: its errors, its crash and its running out of time become errors here."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from export.build_config import Request
from export.build_progress import Report, parse
from export.flavours import EngineUnavailable
from runtime.errors import UserError

HOUSE = Path(__file__).resolve().parent.parent


def run_builder(request: Request, file: Path, time_limit_s: float, report: Report | None) -> dict[str, Any]:
    """The builder process's answer; `file` is where the request is written, in a folder for this build alone.

    `report` hears of its progress. `EngineUnavailable` where TensorRT does not load there, `UserError` for all else.
    """
    read, write = os.pipe()
    file.write_text(json.dumps({**dataclasses.asdict(request), "progress": write}), encoding="utf-8")
    output = file.with_name("output")
    # -P and the path: the child finds this package and nothing of the current folder's, whatever that is
    command = [sys.executable, "-P", "-m", "export.build_engine", str(file), str(os.getpid())]
    paths = os.pathsep.join(filter(None, (str(HOUSE), os.environ.get("PYTHONPATH"))))
    with os.fdopen(read, "rb", buffering=0) as lines, output.open("wb") as stream:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": paths},
                pass_fds=(write,),
                start_new_session=True,
            )
        finally:
            os.close(write)
        try:
            if not _ended(process, lines.fileno(), time.monotonic() + time_limit_s, report):
                raise UserError(
                    f"the {request.flavour} builder was still at {request.onnx} after {time_limit_s:g} s",
                    "an engine within engine.time_limit_s",
                    "raise engine.time_limit_s",
                )
        finally:
            _end(process)
    return _answer(request, process.returncode, output)


def _ended(process: subprocess.Popen[bytes], lines: int, until: float, report: Report | None) -> bool:
    """Passes progress on until the process ends (True) or the time is up (False)."""
    os.set_blocking(lines, False)
    rest = b""
    while process.poll() is None:
        if time.monotonic() > until:
            return False
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(0.1, max(until - time.monotonic(), 0.0)))
        rest = _heard(lines, rest, report)
    return True


def _heard(lines: int, rest: bytes, report: Report | None) -> bytes:
    """Passes the newest whole line on; what came of the next one."""
    with suppress(BlockingIOError):
        while data := os.read(lines, 65536):
            rest += data
    *whole, rest = rest.split(b"\n")
    told = parse(whole[-1].decode(errors="replace")) if whole else None
    if told is not None and report is not None:
        report(*told)
    return rest


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the child's whole session if it still runs, and waits for it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answer(request: Request, code: int, output: Path) -> dict[str, Any]:
    answer = Path(request.answer)
    if code != 0 or not answer.exists():
        raise _crash(request, code, output.read_text(encoding="utf-8", errors="replace"))
    result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "unavailable" in result:
        raise EngineUnavailable(result["unavailable"])
    if not result["ok"]:
        raise UserError(result["found"], result["expected"], result["remedy"])
    return result


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
