"""compose's `triton` without NVIDIA's image: the tritonserver of the server tier, in a container of the local base."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.container.services import Project, service, words_of
from tests.server.environment import server_environment
from tests.server.tritonserver import backends, free_ports, variables, wait

PORT = 8000
"""Of HTTP, in compose.yaml."""
PATIENCE_S = 60.0


def demand_server() -> Path:
    """The environment with the server; skip where it cannot be installed, in CI fail."""
    try:
        return server_environment()
    except (AssertionError, subprocess.TimeoutExpired) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no tritonserver can be installed here: {str(error).strip().splitlines()[-1]}")


@contextmanager
def triton(project: Project, venv: Path) -> Iterator[int]:
    """The service from the moment its health check's address answers; the port of HTTP.

    Its command is compose's. What the stand-in adds: where its backends are, and the loopback address with free ports,
    because the container shares the network of the host. Environment and Python are those of the host, read-only.
    """
    told, (http, grpc) = service("triton"), free_ports(2)
    with tempfile.TemporaryDirectory(prefix="demport-triton.") as name:
        log = Path(name, "log")
        own = ["--backend-directory=/backends", f"--http-port={http}", f"--grpc-port={grpc}"]
        own += [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc")]
        mounts = [f"{backends(Path(name, 'backends'), venv)}:/backends:ro"]
        mounts += [f"{path}:{path}:ro" for path in (venv, *_python())]
        options = [word for mount in mounts for word in ("--volume", mount)]
        for variable, value in variables(venv, "/usr/sbin:/usr/bin:/sbin:/bin").items():
            options += ["--env", f"{variable}={value}"]
        command = project.words("triton", [*words_of(told), *own], options)
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            address = str(told["healthcheck"]["test"][-1])
            assert f":{PORT}/" in address
            wait(address.replace(f":{PORT}/", f":{http}/"), process, log, 120)
            yield http
        finally:
            _stop(process)


def _python() -> list[Path]:
    """What the base lacks of the Python that the environment was made with: all of it, but for the distribution's its
    library alone, which the server's stub loads."""
    if sys.base_prefix != "/usr":
        return [Path(sys.base_prefix)]
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
    return [library] if library.is_file() else []


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server alone, as `docker stop` does, so that buildah takes down the container after it; what is
    left after a minute is killed."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() == "tritonserver":
                child.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
