"""The engines of a run are opened for what they are: built by that very run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.measuring import Hop, _open_engine, hops_of
from runtime.errors import UserError
from tests.export.engines import OPTIONS, stand_in
from tests.pipeline.test_measured_engines import result
from tests.runtime import standins
from tests.runtime.nets import expected, images


def test_a_version_compatible_engine_of_the_run_may_run_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others open it only with the caller's word (runtime.open_session)."""
    made = result(tmp_path)
    assert made.engine is not None
    stand_in(made.engine.path, b"plan", options={**OPTIONS, "version_compatible": True})
    standins.stand_in(monkeypatch)
    session = _open_engine(made)
    batch = images(2)
    session.bind({"input": batch})
    session.launch()
    assert abs(session.fetch()["logits"] - expected(batch)).max() < 1e-5
    session.close()
    standins.all_given_back()


def test_an_engine_that_was_not_built_says_why(tmp_path: Path) -> None:
    missing = result(tmp_path).__class__("dense", "fp16", "SM86", None, "no TensorRT here")
    with pytest.raises(UserError, match="no TensorRT here; an engine; install TensorRT"):
        _open_engine(missing)
    assert Hop("engine.fp16.SM86", "simplified", missing) in hops_of({}, [missing])["dense"]
