"""What several test modules need: the real data sets, demport as a child process, a small disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# The same examples every time, so that luck fails no build; the slow tier's fuzzing draws new ones.
hypothesis.settings.register_profile("steady", derandomize=True)
hypothesis.settings.load_profile("steady")

REPOSITORY = Path(__file__).parents[1]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, from DEMPORT_DATA; skips where it is absent."""
    folder = Path(os.environ.get("DEMPORT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}; set DEMPORT_DATA")
    return folder


@pytest.fixture
def start_demport() -> Iterator[Start]:
    """Start `demport ARGUMENTS` in a child process; what still runs at the end of the test is killed."""
    children: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, cwd: Path = REPOSITORY) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "demport", *map(str, arguments)]
        paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": paths},
        )
        children.append(child)
        return child

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root and mount(8)")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "demport-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
