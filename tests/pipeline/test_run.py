"""The order of the line: which stages run after which change, with stand-ins that write one small file each."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import line as run
from pipeline.config import Config
from pipeline.config.file import config_from_overrides, load_config
from pipeline.line import Order, Outcome, stage_named
from pipeline.progress import Silent
from pipeline.report import render as rendering
from runtime import device
from runtime.errors import UserError
from runtime.gpu import first_gpu
from tests.conftest import REPOSITORY
from tests.pipeline.stand_ins import CHECK, DEMP, DENSE, ENGINE, LINE, ONNX, PRECISION, SIMPLIFY, SURGERY, Small, Stage

Line = Callable[..., Outcome]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    """The stand-ins, in the records of the line; the report is a stand-in too."""
    made = {}
    for name in LINE:
        made[name] = Stage(name)
        record = name.partition("-")[2].upper()
        small = dataclasses.replace(getattr(run, record), function=made[name], needs_bytes=None)
        monkeypatch.setattr(run, record, small)
    monkeypatch.setattr("pipeline.results.RESULTS", dict.fromkeys(LINE, Small))
    report = made["report"] = Stage("report")

    def render(folder: Path) -> None:
        report.calls += 1
        for name in ("report.json", "report.md", "report.html"):
            (folder / name).write_text("x")

    monkeypatch.setattr("pipeline.report.render.write", render)
    return made


@pytest.fixture
def line(stages: dict[str, Stage], tmp_path: Path) -> Line:
    def go(*overrides: str, **order: Any) -> Outcome:
        outcome = run.run(config_from_overrides(overrides), Order(tmp_path / "run", **order), Silent())
        assert outcome is not None
        return outcome

    return go


def test_the_first_run_does_every_stage_once_in_order(line: Line, stages: dict[str, Stage]) -> None:
    outcome = line()
    assert outcome.done == LINE and outcome.skipped == ()
    assert [stages[name].calls for name in (*LINE, "report")] == [1] * 9


def test_the_second_run_does_nothing(line: Line, stages: dict[str, Stage]) -> None:
    line()
    outcome = line()
    assert outcome.done == () and outcome.skipped == LINE
    assert [stages[name].calls for name in (*LINE, "report")] == [1] * 9


AFTER_DENSE = {DENSE, ONNX, SIMPLIFY, PRECISION, ENGINE, CHECK}
AFTER_DEMP = {DEMP, SURGERY, ONNX, SIMPLIFY, PRECISION, ENGINE, CHECK}
CHANGES: dict[str, set[str]] = {
    "name=other": set(),
    "seed=1": set(LINE),
    "threads=1": set(LINE),
    "model.args={width: 16}": set(LINE),
    "data.root=elsewhere": set(LINE),
    "dense.lr=0.2": AFTER_DENSE,
    "dense.checkpoint_s=5.0": set(),  # what a training leaves does not depend on it
    "sparse.checkpoint_s=5.0": set(),
    "data.workers=1": set(),
    "sparse.lambda_peak=0.04": AFTER_DEMP,
    "surgery.align=8": AFTER_DEMP,  # removals on the way mind the alignment
    "surgery.law_tolerance=1e-8": AFTER_DEMP - {DEMP},
    "onnx.opset=19": {ONNX, SIMPLIFY, PRECISION, ENGINE, CHECK},
    "simplify.enabled=false": {SIMPLIFY, PRECISION, ENGINE, CHECK},
    "engine.tf32=true": {ENGINE, CHECK},
    "engine.profile.opt=16": {ENGINE, CHECK},
    "check.gates.min_speedup=1.1": {CHECK},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_runs_its_stage_and_what_depends_on_it_and_nothing_else(
    change: str, line: Line, stages: dict[str, Stage]
) -> None:
    line()
    outcome = line(change)
    assert set(outcome.done) == CHANGES[change]
    assert {name for name in LINE if stages[name].calls == 2} == CHANGES[change]
    assert stages["report"].calls == 2, "a change of the config shows in the report"
    assert line(change).done == ()


def test_precision_depends_on_its_own_section(line: Line) -> None:
    off = ("engine.flavour=none", "engine.precisions=[fp32]")
    line(*off)
    assert set(line(*off, "precision.graphs=[]").done) == {PRECISION, ENGINE, CHECK}
    assert line(*off, "precision.graphs=[]").done == ()


def test_a_cut_chosen_by_timing_depends_on_how_and_where_it_was_timed(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line("surgery.align=auto")
    assert set(line("surgery.align=auto", "check.threads=1").done) == AFTER_DEMP - {DEMP}
    monkeypatch.setattr(device, "fingerprint", lambda: "other")
    assert set(line("surgery.align=auto", "check.threads=1").done) == AFTER_DEMP - {DEMP}


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        (("pipeline.data.fingerprint", lambda section: "other"), set(LINE)),
        (("runtime.device.fingerprint", lambda: "other"), {CHECK}),
        (("pipeline.stages.engine.first_gpu", lambda: None), set()),
    ],
)
def test_what_is_not_in_the_config_counts_too(
    patch: tuple[str, Any], expected: set[str], line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line()
    monkeypatch.setattr(*patch)
    assert set(line().done) == expected
    assert line().done == ()


LIBRARIES: dict[str, set[str]] = {
    "torch": set(LINE),
    "onnxscript": {ONNX, SIMPLIFY, PRECISION, ENGINE, CHECK},
    "onnxsim": {SIMPLIFY, PRECISION, ENGINE, CHECK},
    "tensorrt-rtx-cu13": {ENGINE, CHECK},
    "onnxruntime": {SIMPLIFY, PRECISION, ENGINE, CHECK},
    "timm": set(),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_another_version_of_a_library_repeats_what_it_decides(
    library: str, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line()
    changed = {**device.versions(), library: "999"}
    monkeypatch.setattr(device, "versions", lambda: changed)
    assert set(line().done) == LIBRARIES[library]
    assert line().done == ()


def test_another_device_measures_again_but_trains_not(line: Line) -> None:
    """A network that was trained stays trained when the folder moves to another machine."""
    line()
    assert line(device="cpu").done == (CHECK,)
    assert line(device="cpu").done == ()


def test_until_stops_after_a_stage_and_gives_no_verdict(line: Line, stages: dict[str, Stage]) -> None:
    outcome = line(until=SURGERY)
    assert outcome.done == (DENSE, DEMP, SURGERY) and stages[ONNX].calls == 0
    assert (outcome.status, outcome.exit_code, outcome.verdict) == ("done", 0, None)
    assert line().done == LINE[3:]


def test_redo_repeats_a_stage_and_what_depends_on_it(line: Line) -> None:
    line()
    assert line(redo=frozenset({ONNX})).done == LINE[3:]
    assert line().done == ()


@pytest.mark.parametrize(("status", "code"), [("pass", 0), ("fail", 1), ("inconclusive", 3)])
def test_the_verdict_decides_the_exit_code_also_when_nothing_ran(
    status: str, code: int, line: Line, stages: dict[str, Stage]
) -> None:
    stages[CHECK].status = status
    for outcome in (line(), line()):
        assert (outcome.status, outcome.exit_code) == (status, code)
        assert outcome.document()["verdict"] == {"status": status, "gates": []}
    assert stages[CHECK].calls == 1


def test_the_document_is_json_with_the_contract_keys(line: Line, tmp_path: Path) -> None:
    told = json.loads(json.dumps(line().document(), allow_nan=False))
    assert set(told) == {"status", "run", "report", "verdict", "done", "skipped"}
    assert told["report"] == str(tmp_path / "run" / "report.html") and told["done"] == list(LINE)


def test_a_killed_run_renders_the_report_of_the_stages_that_are_there(line: Line, stages: dict[str, Stage]) -> None:
    line()
    line("check.min_blocks=10", until=ENGINE)
    assert stages["report"].calls == 2
    (Path(line("check.min_blocks=10").run) / "report.html").unlink()
    line("check.min_blocks=10")
    assert stages["report"].calls == 4


def test_the_config_of_the_run_is_kept_with_its_defaults(line: Line, tmp_path: Path) -> None:
    line("dense.lr=0.3", "name=on the bench")
    kept = load_config(tmp_path / "run" / "config.yaml")
    assert kept == config_from_overrides(["dense.lr=0.3", "name=on the bench"])
    assert "momentum: 0.9" in (tmp_path / "run" / "config.yaml").read_text()


def test_stage_json_names_the_command_that_repeats_the_stage_alone(line: Line, tmp_path: Path) -> None:
    line(device="cpu")
    told = json.loads((tmp_path / "run" / ONNX / "stage.json").read_text())
    words = shlex.split(told["command"])
    folder = str(tmp_path / "run")
    options = ["--out", folder, "--until", ONNX, "--redo", ONNX, "--device", "cpu"]
    assert words == ["demport", "run", f"{folder}/config.yaml", *options]
    assert (told["device"], told["seed"]) == ("cpu", 0) and told["environment"]["fingerprint"]
    assert load_config(Path(words[2])) == Config()


def test_stage_names_have_a_short_form() -> None:
    assert [stage_named(name, "--until") for name in ("10-dense", "dense", "check")] == [DENSE, DENSE, CHECK]
    with pytest.raises(
        UserError, match=r"--redo publish; one of 05-pair, 10-dense, .* 70-check; name a stage of the line"
    ):
        stage_named("publish", "--redo")


@pytest.mark.skipif(first_gpu() is not None, reason="there is a GPU")
def test_a_missing_gpu_is_told_before_any_work(line: Line, stages: dict[str, Stage], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device cuda, and no NVIDIA GPU or driver is here; a GPU; use --device cpu"):
        line(device="cuda")
    assert stages[DENSE].calls == 0 and not (tmp_path / "run").exists()


def test_missing_inputs_are_told_before_any_work(line: Line, stages: dict[str, Stage], tmp_path: Path) -> None:
    for named, words in (
        (f"model.weights={tmp_path}/nope.safetensors", r"model\.weights: .*nope.safetensors is no file"),
        (f"data.source='npz:{tmp_path}/nope.npz'", r"nope\.npz"),
        ("model.name=nope_module:build", r"model\.name.*no module nope_module"),
        (f"check.reference={tmp_path}/nope.onnx", r"check\.reference: .*nope\.onnx is no file"),
        (f"check.reference={__file__}", r"test_run\.py.*ONNX"),
        ("check.metric=math:f1", r"check\.metric.*math has no function f1"),
    ):
        with pytest.raises(UserError, match=words):
            line(named)
    assert stages[DENSE].calls == 0 and not (tmp_path / "run").exists()


def test_other_weights_and_other_code_of_the_users_train_again(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module, weights = tmp_path / "core_net" / "small.py", tmp_path / "w.safetensors"
    module.parent.mkdir()
    (tmp_path / "core_net" / "__init__.py").write_text("")
    module.write_text("def build(): ...\n")
    weights.write_bytes(b"1")
    settings = ("model.name=core_net.small:build", f"model.weights={weights}")
    assert line(*settings).done == LINE and line(*settings).done == ()
    module.write_text("def build(): return 1\n")
    assert line(*settings).done == LINE
    weights.write_bytes(b"2")
    assert line(*settings).done == LINE and line(*settings).done == ()


def test_an_up_to_date_run_imports_nothing_heavy(line: Line, tmp_path: Path) -> None:
    """So that it answers in well under five seconds."""
    line()
    assert rendering.is_current(tmp_path / "run")
    code = (
        "import sys; from pipeline.cli import command_line; "
        f"code = command_line(['run', {str(tmp_path / 'run' / 'config.yaml')!r}, '--out', {str(tmp_path / 'run')!r}]); "
        "print(code, [n for n in ('torch', 'onnx', 'onnxruntime', 'sklearn', 'plotly') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert f"nothing to do: {tmp_path / 'run'} is up to date" in done.stderr
