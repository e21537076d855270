"""The engines of a run are opened for what they are: built by that very run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.check.forms import Form, Results, _open_engine, gated_pair, hops_of, pairs_of
from pipeline.commands import finished_run
from pipeline.config import Config
from pipeline.line import Order, run_of
from pipeline.progress import Silent
from pipeline.results import EngineResult, Role
from pipeline.stages import Run
from pipeline.workspace.folder import HEADER
from runtime.errors import UserError
from runtime.measure.accuracy import Accuracy
from tests.export.small_engines import OPTIONS, stand_in
from tests.pipeline.check.test_measured_engines import result
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
    session = _open_engine(made, None, True)
    batch = images(2)
    session.bind({"input": batch})
    session.launch()
    assert abs(session.fetch()["logits"] - expected(batch)).max() < 1e-5
    session.close()
    standins.all_given_back()


def test_an_engine_that_was_not_built_says_why(tmp_path: Path) -> None:
    missing = result(tmp_path).__class__("dense", "fp16", "SM86", None, "no TensorRT here")
    with pytest.raises(UserError, match="no TensorRT here; an engine; install TensorRT"):
        _open_engine(missing, None, False)
    assert Form("engine.fp16.SM86", "simplified", missing) in hops_of({}, [missing])["dense"]


def test_the_engines_that_run_here_decide_the_speedup(tmp_path: Path) -> None:
    """fp32 where it is among them, else their first precision; ONNX Runtime where none runs, which is said."""
    one = result(tmp_path)
    assert one.engine is not None

    def built(precision: str) -> list[EngineResult]:
        own = replace(one.engine, flavour="openvino")  # type: ignore[type-var]
        roles: tuple[Role, Role] = ("dense", "compact")
        return [EngineResult(role, precision, "CPU", own, None) for role in roles]  # type: ignore[arg-type]

    def place(engines: list[EngineResult], *ran: str) -> tuple[tuple[str, str], str]:
        score = Accuracy(1.0, 3, np.ones(3), None, np.ones(3))
        results: dict[Role, Results] = {role: dict.fromkeys(ran, score) for role in ("dense", "compact")}
        return gated_pair(pairs_of({"simplified": {}}, engines, results), engines, results)

    names = ("openvino.int8.CPU", "openvino.fp32.CPU")
    both = built("int8") + built("fp32")
    assert place(both, *names) == (("openvino", "fp32"), "")
    assert place(built("int8"), *names) == (("openvino", "int8"), "")
    assert place(both, "openvino.int8.CPU") == (("openvino", "int8"), "")
    assert place(both) == (("onnxruntime", "fp32"), "no engine ran here")
    assert place([]) == (("onnxruntime", "fp32"), "")


@pytest.mark.parametrize("allowed", [False, True])
def test_host_code_runs_only_where_the_caller_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr("pipeline.check.forms.open_session", lambda *_, **options: asked.append(options))
    _open_engine(result(tmp_path), None, allowed)
    assert asked == [{"allow_host_code": allowed}]


def test_a_run_folder_does_not_vouch_for_its_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both its config and its engines may be anybody's: `demport check` runs no code of theirs."""
    runs: list[Run] = []

    class StoppedError(Exception):
        pass

    def stage(run: Run, *_: object) -> None:
        runs.append(run)
        raise StoppedError

    monkeypatch.setattr(finished_run, "bring_up_to_date", stage)
    monkeypatch.setattr(finished_run, "finished", lambda *_: None)
    monkeypatch.setattr(finished_run, "demand_same_data", lambda *_: None)
    (tmp_path / "10-dense").mkdir()
    (tmp_path / "config.yaml").write_text(HEADER + "seed: 1\n")
    with pytest.raises(StoppedError):
        finished_run.check(Order(tmp_path), (), Silent())
    assert [run.own_engines for run in runs] == [False]
    assert run_of(Config(), Order(tmp_path), Silent()).own_engines
