"""Builds the project's image without a container engine: a base from this machine's own Debian mirror, and buildah."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "localhost/demport-base", "localhost/demport"
CERTIFICATES = Path("/usr/local/share/ca-certificates")
LAYER_GIB = 7
"""Of the largest layer, the libraries. A commit holds it three times: in the container, as a file, and in the image."""


def missing() -> str | None:
    """Why no image can be built here; None where one can."""
    absent = [name for name in ("buildah", "mmdebstrap") if shutil.which(name) is None]
    if absent:
        return f"no {' and no '.join(absent)} here"
    if os.geteuid() != 0:
        return "buildah with chroot isolation and mmdebstrap need root"
    return _no_room()


def _no_room() -> str | None:
    folder = tempfile.gettempdir()
    needed, free = (2 if _memory() else 3) * LAYER_GIB, shutil.disk_usage(folder).free / 2**30
    told = f"the image takes {needed} GiB under {folder} while it is built, {free:.0f} are free"
    return told if free < needed else None


def _memory() -> Path | None:
    """A file system in memory with room for a layer beside everything else; None where there is none."""
    folder = Path("/dev/shm")
    roomy = folder.is_dir() and shutil.disk_usage(folder).free > (LAYER_GIB + 1) * 2**30
    return folder if roomy and psutil.virtual_memory().available > 2 * LAYER_GIB * 2**30 else None


def demand_builder() -> None:
    """Skip where no image can be built; in CI, where one is installed, fail."""
    if reason := missing():
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)


@dataclass(frozen=True)
class Built:
    """The image, and a store of its own that goes with the test."""

    store: Path
    container: str

    def config(self) -> dict[str, Any]:
        """What the image says of itself, in Docker's format."""
        inspected = json.loads(_buildah(self.store, "inspect", "--type", "image", IMAGE).stdout)
        config: dict[str, Any] = inspected["Docker"]
        return config

    def run(
        self,
        *arguments: str,
        user: str | None = None,
        timeout_s: int = 900,
    ) -> subprocess.CompletedProcess[str]:
        """What `docker run IMAGE ARGUMENTS` does; `buildah run` leaves the entry point to us."""
        config = self.config()["config"]
        command = [*(config["Entrypoint"] or ()), *(arguments or config["Cmd"])]
        options = ["--user", user] if user else []
        return _run(self.words(self.container, command, options), check=False, timeout_s=timeout_s)

    def shell(self, script: str) -> str:
        """Standard output of a script in the image, as its user."""
        return _run(self.words(self.container, ["sh", "-c", script]), timeout_s=600).stdout

    def words(self, container: str, command: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        """The command line that runs `command` in a container."""
        return [*_at(self.store), "run", "--isolation", "chroot", *options, container, "--", *command]

    def new_base(self) -> str:
        """A container of the base that the image was built on."""
        return _buildah(self.store, "from", BASE).stdout.strip()


@contextmanager
def built(stage: str = "runtime") -> Iterator[Built]:
    """Build a stage on the local base; everything is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="demport-image.", ignore_cleanup_errors=True) as name:
        store = Path(name)
        store.chmod(0o755)
        try:
            _make_base(store)
            build = ["bud", "--isolation", "chroot", "--format", "docker", "--layers=false"]
            bases = [word for name in ("BASE_IMAGE", "CI_BASE_IMAGE") for word in ("--build-arg", f"{name}={BASE}")]
            with tempfile.TemporaryDirectory(prefix="demport-layer.", dir=_memory() or store) as scratch:
                command = [*_at(store), *build, *bases, "--target", stage, "--tag", IMAGE, str(ROOT)]
                _run(command, timeout_s=2400, env={**os.environ, "TMPDIR": scratch})
            yield Built(store, _buildah(store, "from", IMAGE).stdout.strip())
        finally:
            for command in (["rm", "--all"], ["rmi", "--all", "--force"]):
                _buildah(store, *command, check=False)


def _make_base(store: Path) -> None:
    """This machine's distribution with Python alone, trusting the certificate authorities that this machine trusts."""
    tree = store / "base.tar"
    trust = f'cp {CERTIFICATES}/*.crt "$1{CERTIFICATES}/" 2>/dev/null || true; chroot "$1" update-ca-certificates'
    packages = "python3,python3-venv,ca-certificates"
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    command = ["mmdebstrap", "--quiet", "--mode=root", "--dpkgopt=force-unsafe-io", "--variant=minbase",
               f"--include={packages}", f"--customize-hook={trust}", suite, str(tree), _mirror()]  # fmt: skip
    _run(command, timeout_s=600)
    container = _buildah(store, "from", "scratch").stdout.strip()
    _buildah(store, "add", "--quiet", container, str(tree), "/")
    _buildah(store, "commit", "--quiet", "--rm", container, BASE)
    tree.unlink()


def _mirror() -> str:
    """The first package source of this machine."""
    folder = Path("/etc/apt/sources.list.d")
    for path in (folder / "debian.sources", folder / "ubuntu.sources", Path("/etc/apt/sources.list")):
        for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
            words = line.split()
            if words and words[0] in ("URIs:", "deb"):
                return next(word for word in words[1:] if "://" in word)
    raise AssertionError("no package source of Debian or Ubuntu in /etc/apt")


def _buildah(
    store: Path, *arguments: str, check: bool = True, timeout_s: int = 600
) -> subprocess.CompletedProcess[str]:
    return _run([*_at(store), *arguments], check=check, timeout_s=timeout_s)


def _at(store: Path) -> list[str]:
    return ["buildah", "--root", str(store / "root"), "--runroot", str(store / "run")]


def _run(
    command: Sequence[str], *, check: bool = True, timeout_s: int, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout_s, env=env)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done
