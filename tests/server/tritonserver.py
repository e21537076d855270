"""A running tritonserver on the loopback address, with backends of ours in place of NVIDIA's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.server.environment import server_environment

BACKENDS = Path(__file__).parent / "backends"


@dataclass(frozen=True)
class Running:
    """Ports of HTTP and gRPC, and the file the server logs into."""

    http: int
    grpc: int
    log: Path
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def get(self, path: str) -> Any:
        with urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)

    def states(self) -> dict[str, tuple[str, str]]:
        """Model -> (state, reason); of the last version listed."""
        request = Request(f"{self.url}/v2/repository/index", data=b"{}", method="POST")
        with urlopen(request, timeout=10) as answer:
            return {one["name"]: (one.get("state", ""), one.get("reason", "")) for one in json.load(answer)}

    def infer(self, model: str, body: dict[str, Any], version: int | None = None) -> dict[str, Any]:
        path = f"/v2/models/{model}{'' if version is None else f'/versions/{version}'}/infer"
        with urlopen(Request(f"{self.url}{path}", data=json.dumps(body).encode()), timeout=30) as answer:
            return {output["name"]: output for output in json.load(answer)["outputs"]}


@contextmanager
def tritonserver(repository: Path, *options: str, wait_s: float = 90) -> Iterator[Running]:
    """The server with `repository`, once it answers; models that fail to load do not stop it."""
    venv = server_environment()
    with tempfile.TemporaryDirectory(prefix="demport-server.") as name:
        folder = Path(name)
        ports = free_ports(3)
        command = [str(package(venv) / "bin" / "tritonserver"), f"--model-repository={repository}"]
        command += [f"--backend-directory={backends(folder / 'backends', venv)}", "--exit-on-error=false"]
        command += ["--exit-timeout-secs=3", *options]
        for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True):
            command += [f"--{kind}-address=127.0.0.1", f"--{kind}-port={port}"]
        env = {**os.environ, **variables(venv, os.environ["PATH"])}
        log = folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            running = Running(ports[0], ports[1], log, process.pid)
            wait(f"{running.url}/v2/health/live", process, log, wait_s)
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait(url: str, process: subprocess.Popen[bytes], log: Path, wait_s: float) -> None:
    """Until `url` answers 200; fails with the end of the log where the process ends before, or never answers."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with urlopen(url, timeout=2) as answer:
                assert answer.status == 200
            return
        except OSError:
            told = log.read_text(errors="replace")[-4000:]
            assert process.poll() is None and time.monotonic() < deadline, f"tritonserver is not up:\n{told}"
            time.sleep(0.1)


def backends(folder: Path, venv: Path) -> Path:
    """The python backend with its stub for this Python, as plain files (Triton follows no links), and ours."""
    shutil.copytree(package(venv) / "backends" / "python", folder / "python")
    version = sysconfig.get_python_version()
    shutil.copy2(package(venv) / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "python")
    for backend in ("onnxruntime", "tensorrt"):
        (folder / backend).mkdir()
        shutil.copy(BACKENDS / backend / "model.py", folder / backend / "model.py")
    return folder


def variables(venv: Path, path: str) -> dict[str, str]:
    """What the server's environment needs: the first python3 on PATH is the one that the stub runs."""
    libraries = f"{_site(venv) / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    return {"PATH": f"{package(venv) / 'bin'}:{venv / 'bin'}:{path}", "LD_LIBRARY_PATH": libraries}


def _site(venv: Path) -> Path:
    return Path(sysconfig.get_paths(vars={"base": str(venv), "platbase": str(venv)})["purelib"])


def package(venv: Path) -> Path:
    return _site(venv) / "pytriton" / "tritonserver"


def free_ports(count: int) -> Sequence[int]:
    """All taken at once, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
