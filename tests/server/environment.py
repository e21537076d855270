"""The environment of the real tritonserver: the one in the nvidia-pytriton wheel, in a venv of its own.

The wheel brings tritonserver with the python backend only. NumPy 1 is needed: with NumPy 2 that server says READY and
answers with empty or wrong data.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("numpy<2", "onnxruntime>=1.22,<1.24")
SERVER = "nvidia-pytriton==0.7.0"  # its own dependencies are for its Python API, which is not used


def server_environment() -> Path:
    """The folder of the venv, made where it is missing or of other packages; about 200 MB."""
    folder = Path(os.environ.get("DEMPORT_SERVER_VENV", ROOT / ".venv-server"))
    wanted = hashlib.sha256(repr((PACKAGES, SERVER, sys.version)).encode()).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mark = folder / "installed"
        if not mark.is_file() or mark.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            python = folder / "bin" / "python"
            _run(sys.executable, "-m", "venv", folder)
            pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            _run(*pip, *PACKAGES)
            _run(*pip, "--no-deps", SERVER)
            mark.write_text(wanted)
    return folder


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
