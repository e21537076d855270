"""The builder's process crashes, hangs, or loses its parent or its library."""

from __future__ import annotations

import importlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from export.engines import EngineUnavailable
from runtime.backends.trt_library import Log
from runtime.errors import UserError
from tests.conftest import REPOSITORY
from tests.export.graphs import conv_net
from tests.export.small_engines import build, needs_rtx

pytestmark = needs_rtx


def test_the_reason_is_the_first_error_of_the_step() -> None:
    trt = importlib.import_module("tensorrt_rtx")
    file = io.StringIO()
    log = Log(trt, file)
    severity = trt.ILogger.Severity
    log.logger.log(severity.INTERNAL_ERROR, "harmless, of an earlier step")
    log.begin()
    assert log.reason() == "TensorRT gives no reason"
    for level, message in ((severity.WARNING, "careful"), (severity.ERROR, "the\ncause"), (severity.ERROR, "a result")):
        log.logger.log(level, message)
    log.logger.log(severity.VERBOSE, "detail")
    assert log.reason() == "the cause"
    assert file.getvalue().splitlines()[:2] == ["[INTERNAL_ERROR] harmless, of an earlier step", "[WARNING] careful"]
    assert "detail" not in file.getvalue()


def ends(pid: int) -> bool:
    """Whether the process is gone, or dead and unreaped, within five seconds."""
    try:
        psutil.Process(pid).wait(5)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def fake_python(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_crash_becomes_an_error(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = conv_net(tmp_path / "net.onnx")
    script = "echo building >&2; echo 'terminate: out of luck' >&2; kill -SEGV $$"
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path / "python", script))
    with pytest.raises(UserError, match=r"builder was ended by SIGSEGV on .*its last words: terminate: out of luck"):
        build(source, folder / "x.engine")
    assert "terminate: out of luck" in (folder / "x.engine.log").read_text()
    assert [item.name for item in folder.iterdir()] == ["x.engine.log"]


def test_a_hang_ends_at_the_time_limit_and_leaves_no_process(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = conv_net(tmp_path / "net.onnx")
    script = f"sleep 100 & echo $! > {tmp_path}/pid; wait"
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path / "python", script))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"was still at .*net\.onnx after 0\.5 s"):
        build(source, folder / "x.engine", time_limit_s=0.5)
    assert time.monotonic() - started < 10
    assert ends(int((tmp_path / "pid").read_text()))
    assert list(folder.iterdir()) == []


def test_a_flavour_that_does_not_load_in_the_builder_is_no_user_error(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt_rtx  # so that the parent has it, and only the child finds the broken one

    assert tensorrt_rtx.__version__
    broken = tmp_path / "path"
    broken.mkdir()
    (broken / "tensorrt_rtx.py").write_text("raise ImportError('libnvinfer is missing')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    with pytest.raises(EngineUnavailable, match="libnvinfer is missing"):
        build(conv_net(tmp_path / "net.onnx"), folder / "x.engine")
    assert list(folder.iterdir()) == []


def test_without_any_flavour_the_command_ends_with_3(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    code = (
        "import sys; sys.modules['tensorrt'] = sys.modules['tensorrt_rtx'] = None\n"
        "from export.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "x.engine"), "--target", "SM86"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 3
    assert ran.stderr.startswith("no engine: tensorrt cannot be imported")
    assert "tensorrt_rtx cannot be imported" in ran.stderr
    assert not (tmp_path / "x.engine").exists()


def test_the_command_reports_errors_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export", str(tmp_path / "gone.onnx"), str(tmp_path / "x.engine")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run([*command, "--target", "SM86"], env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_builder_dies_with_its_parent(tmp_path: Path) -> None:
    child = (
        "import os, time; from export.engines.tensorrt.build import _die_with_parent\n"
        "_die_with_parent(os.getppid()); print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
        process.kill()
    assert ends(pid)


def test_a_builder_whose_parent_is_gone_already_does_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "export.engines.tensorrt.build",
        "0",
        "1",
    ]  # init is not its parent
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", "")  # it never looked for its request
    own = [*command[:-1], str(os.getpid())]
    nothing = subprocess.DEVNULL
    ran = subprocess.run(own, stdin=nothing, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and ran.stderr.endswith("EOFError\n")  # it read where its request would be


STUCK = """
import sys
from pathlib import Path
from tests.export.small_engines import build
sys.executable = sys.argv[1]
build(Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_leaves_nothing_behind_the_next_one(tmp_path: Path, folder: Path, end: signal.Signals) -> None:
    source, engine = conv_net(tmp_path / "net.onnx"), folder / "x.engine"
    hang = fake_python(tmp_path / "python", f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; sleep 100")
    command = [sys.executable, "-c", STUCK, hang, str(source), str(engine)]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        until = time.monotonic() + 20
        while not (tmp_path / "pid").exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert len(list(folder.glob(".x.engine.*.tmp"))) == 1
        process.send_signal(end)
    os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # a shell, which does not ask to die with its parent
    assert not engine.exists()
    build(source, engine)
    assert sorted(item.name for item in folder.iterdir()) == ["x.engine", "x.engine.json", "x.engine.log"]


def test_terminated_the_command_ends_its_builder_and_clears_up(tmp_path: Path, folder: Path) -> None:
    source = conv_net(tmp_path / "net.onnx")
    hang = fake_python(tmp_path / "python", f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; sleep 100")
    code = (
        "import runpy, sys; sys.executable = sys.argv.pop(1)\n"
        "runpy.run_module('export', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, hang, str(source), str(folder / "x.engine"), "--target", "SM86"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 20
        while not (tmp_path / "pid").exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "interrupted\n")
    assert ends(int((tmp_path / "pid").read_text()))
    assert list(folder.iterdir()) == []
