"""The Dockerfile as text: clean under hadolint, and without what a rootless builder does not know."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.container.builder import ROOT

TEXT = (ROOT / "Dockerfile").read_text("utf-8")


def test_hadolint_has_nothing_to_say() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


def test_it_builds_with_any_builder() -> None:
    assert "# syntax=" not in TEXT and "<<" not in TEXT
    assert re.search(
        r"^ARG BASE_IMAGE=nvcr\.io/nvidia/tensorrt:\d\d\.\d\d-py3\nFROM \$\{BASE_IMAGE\}$", TEXT, re.MULTILINE
    )


def test_everything_that_is_copied_passes_dockerignore() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", TEXT, re.MULTILINE) for word in line.split()}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
