"""Runs that several modules look at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import cli
from runtime import gpu as nvml
from runtime.measure import conditions
from tests.pipeline.tiny import CONFIG


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("line") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def cut_run(config: Path) -> Path:
    """A run that was made in one go, as far as the surgery."""
    folder = config.parent / "whole"
    assert cli.command_line(["run", str(config), "--out", str(folder), "--until", "surgery"]) == 0
    return folder


@pytest.fixture(scope="session")
def whole_run(config: Path, cut_run: Path) -> Path:
    """The same run, brought to its end."""
    assert cli.command_line(["run", str(config), "--out", str(cut_run)]) in (0, 3)
    return cut_run


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else runs on this machine, as far as `measure.conditions` sees: a gate on speed passes or fails."""
    monkeypatch.setattr(conditions, "_cpu_seconds", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(nvml, "gpu_states", list)


@pytest.fixture
def copied_run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(whole_run, tmp_path / "copy"))
