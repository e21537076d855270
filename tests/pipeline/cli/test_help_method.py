"""`demport run --help-method`: the keys of a training method, without running anything."""

from __future__ import annotations

import pytest

from pipeline import cli
from pipeline.training.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_sentence_for_each_key(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.command_line(["run", "--help-method", method]) == 0
    first, *keys = capsys.readouterr().out.splitlines()
    assert f"{{method: {method}}}" in first
    assert keys
    assert all(key.partition(": ")[2].count(" ") > 3 for key in keys)


def test_a_method_that_is_not_there_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.command_line(["run", "--help-method", "rgl"]) == 2
    assert "try rigl" in capsys.readouterr().err
