"""The small run whose folders the servers get."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import cli
from tests.pipeline.tiny import CONFIG


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "tiny.yaml").write_text(CONFIG)
    assert cli.command_line(["run", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) in (0, 3)
    return folder / "run"
