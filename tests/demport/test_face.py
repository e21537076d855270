"""The public face: light to import, whole, and sure that what it finds is its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import demport
from tests.conftest import REPOSITORY

PACKAGES = ("demport", "pipeline", "export", "runtime")


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


def test_importing_loads_nothing_heavy_and_every_name_is_there() -> None:
    code = "import demport, sys; assert not {'torch', 'numpy', 'onnx'} & sys.modules.keys(); print(len(dir(demport)))"
    done = python(code, REPOSITORY)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(demport.NAMES) + 1)), done.stderr
    assert all(getattr(demport, name).__name__ == name for name in demport.NAMES)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` puts into an environment, without what demport depends on."""
    folder = tmp_path_factory.mktemp("installed")
    source, home = folder / "source", folder / "site"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", home, source], check=True, capture_output=True, timeout=120)
    return home


def test_an_installation_has_every_file_that_is_no_module(home: Path) -> None:
    files = [p for package in PACKAGES for p in (REPOSITORY / package).rglob("*") if p.is_file()]
    data = {str(p.relative_to(REPOSITORY)) for p in files if p.suffix not in (".py", ".pyc")}
    assert data and {name for name in data if not (home / name).is_file()} == set()
    assert (home / "bin" / "demport").is_file()


def test_files_of_other_names_do_not_disturb_and_a_stranger_s_package_is_named(home: Path, tmp_path: Path) -> None:
    """From a folder that holds files named as modules inside of ours, over an installation of its own."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("data.py", "files.py"):
        (work / name).write_text("raise SystemExit('not ours')\n")
    done = python("import demport; print(demport.UserError.__module__, demport.__file__)", work, PYTHONPATH=str(home))
    assert done.returncode == 0 and str(home) in done.stdout, done.stderr
    (work / "runtime.py").write_text("")
    done = python("import demport", work, PYTHONPATH=str(home))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: demport: `runtime` is ") and "runtime.py" in last and "rename it" in last
