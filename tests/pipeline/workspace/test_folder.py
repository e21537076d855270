"""The run folder with small stages of our own: skipping, re-running, locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.workspace import record as stage_record
from pipeline.workspace.folder import Done, demand_one_run, finished, is_run
from runtime.errors import UserError
from runtime.files import MAX_JSON_BYTES
from tests.pipeline.workspace.small_stages import Made, Part, line, opened, ran, snapshot, writer


def test_a_stage_leaves_its_files_and_says_how_to_repeat_it(tmp_path: Path) -> None:
    said = line(tmp_path / "run")[1]
    told = json.loads((tmp_path / "run" / "10-dense" / "stage.json").read_text())
    assert said == ["10-dense: runs", "20-sparse: runs", "40-onnx: runs"]
    assert told["inputs"]["dense"] == {"lr": 1} and told["versions"] == {"lib": "1.0"}
    assert (told["device"], told["seed"], told["command"], told["schema"]) == ("cpu", 0, "repeat 10-dense", 1)
    assert told["files"]["sub/part"]["bytes"] == 6 and told["seconds"] >= 0
    assert told["result"] == {
        "text": "text",
        "extra": None,
        "number": 0.5,
        "parts": [{"path": "sub/part", "size": 6}],
        "by_name": {"a": "sub/part"},
    }
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock", "10-dense", "20-sparse", "40-onnx"]


def test_a_result_is_rebuilt_with_paths_in_the_final_folder(tmp_path: Path) -> None:
    made = line(tmp_path / "run")[0][0].result(Made)
    skipped = line(tmp_path / "run")[0][0].result(Made)
    folder = tmp_path / "run" / "10-dense"
    assert (
        made == skipped == Made(folder / "text", None, 0.5, (Part(folder / "sub/part", 6),), {"a": folder / "sub/part"})
    )
    assert made.text.read_text() == "one"


def test_a_result_may_name_files_of_other_stages(tmp_path: Path) -> None:
    with opened(tmp_path) as (work, _):
        first = work.stage("10-dense", writer("one"), inputs={}, code=1, versions={})
        other = first.result(Made).text
        second = work.stage("20-sparse", lambda out: Part(other, 3), inputs={}, upstream=[first], code=1, versions={})
    assert second.result(Part) == Part(tmp_path / "10-dense" / "text", 3)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert Done("20-sparse", moved / "20-sparse", "", ran=False).result(Part).path == moved / "10-dense" / "text"


def test_the_second_time_nothing_runs_and_nothing_changes(tmp_path: Path) -> None:
    line(tmp_path)
    before = snapshot(tmp_path)
    done, said = line(tmp_path)
    assert ran(done) == [False] * 3 and snapshot(tmp_path) == before
    assert said == ["10-dense: up to date", "20-sparse: up to date", "40-onnx: up to date"]


def test_a_change_runs_that_stage_and_what_depends_on_it(tmp_path: Path) -> None:
    line(tmp_path)
    done, said = line(tmp_path, b=2)
    assert ran(done) == [False, True, True]
    assert said[1] == "20-sparse: runs again, demp.lr 1 -> 2"
    assert "40-onnx: removed" in said[2] and said[3] == "40-onnx: runs"
    done, said = line(tmp_path, b=2, content="y")
    assert ran(done) == [True, False, True] and said[0] == "10-dense: runs again, data changed"


def test_redo_runs_that_stage_and_what_depends_on_other_bytes(tmp_path: Path) -> None:
    line(tmp_path)
    done, said = line(tmp_path, "10-dense")
    assert ran(done) == [True, False, False], "the same bytes from the same inputs: nothing to repeat downstream"
    assert said[0] == "10-dense: runs again, as asked"
    done, said = line(tmp_path, "10-dense", first="eno")
    assert ran(done) == [True, False, True] and "40-onnx: removed" in said[1]


@pytest.mark.parametrize(
    ("code", "version", "told"), [(2, "1.0", "code of this stage"), (1, "1.1", 'lib "1.0" -> "1.1"')]
)
def test_new_code_and_new_libraries_run_a_stage_again(tmp_path: Path, code: int, version: str, told: str) -> None:
    for number, lib in ((1, "1.0"), (code, version)):
        with opened(tmp_path) as (work, said):
            done = work.stage("10-dense", writer("one"), inputs={}, code=number, versions={"lib": lib})
    assert done.ran
    assert told in said[0]


def corrupt_byte(folder: Path) -> None:
    data = bytearray((folder / "sub" / "part").read_bytes())
    data[0] ^= 1
    stat = (folder / "sub" / "part").stat()
    (folder / "sub" / "part").write_bytes(data)
    os.utime(folder / "sub" / "part", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def edit_record(folder: Path) -> None:
    text = (folder / "stage.json").read_text()
    (folder / "stage.json").write_text(text.replace('"number": 0.5', '"number": 0.9'))


def pad_record(folder: Path) -> None:
    """Still the same JSON."""
    with (folder / "stage.json").open("ab") as file:
        file.write(b" " * MAX_JSON_BYTES)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "one byte, same size and time": (corrupt_byte, "sub/part was changed"),
    "a file is gone": (lambda folder: (folder / "text").unlink(), "text is missing"),
    "a file is cut": (lambda folder: os.truncate(folder / "text", 1), "text was changed"),
    "a figure was edited": (edit_record, "stage.json was changed"),
    "record gone": (lambda folder: (folder / "stage.json").unlink(), "stage.json is missing or unreadable"),
    "record cut": (lambda folder: os.truncate(folder / "stage.json", 40), "stage.json is missing or unreadable"),
    "record empty": (lambda folder: (folder / "stage.json").write_text("[]"), "stage.json is missing or unreadable"),
    "other schema": (lambda folder: (folder / "stage.json").write_text('{"schema": 9}'), "of another schema"),
    "record too long": (pad_record, "stage.json is missing or unreadable"),
    "keys gone": (lambda folder: (folder / "stage.json").write_text('{"schema": 1}'), "lacks what it should hold"),
    "wrong types": (
        lambda folder: (folder / "stage.json").write_text('{"schema": 1, "upstream": 3, "files": []}'),
        "lacks what it should hold",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_stage_runs_again_and_says_why(case: str, tmp_path: Path) -> None:
    damage, told = DAMAGE[case]
    line(tmp_path)
    damage(tmp_path / "20-sparse")
    done, said = line(tmp_path)
    assert ran(done) == [False, True, False]
    assert "20-sparse: runs again, " in said[1] and told in said[1]
    assert (tmp_path / "20-sparse" / "text").read_text() == "two"
    assert ran(line(tmp_path)[0]) == [False] * 3


@pytest.mark.parametrize("key", ["seconds", "device", "inputs", "upstream", "versions", "command", "digest", "result"])
def test_every_key_of_the_record_is_sealed(tmp_path: Path, key: str) -> None:
    line(tmp_path)
    path = tmp_path / "40-onnx" / "stage.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {key: "x"}))
    record = stage_record.read(path.parent)
    assert record is not None and record.problem == "stage.json was changed"
    path.write_text(json.dumps(told))
    assert ran(line(tmp_path)[0]) == [False] * 3


def test_a_failed_stage_leaves_the_one_before_it(tmp_path: Path) -> None:
    line(tmp_path)
    before = snapshot(tmp_path)

    def fail(out: Path) -> Made:
        (out / "half").write_text("x")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"), opened(tmp_path) as (work, _):
        work.stage("10-dense", fail, inputs={}, code=1, versions={})
    assert snapshot(tmp_path) == before
    assert ran(line(tmp_path)[0]) == [False] * 3


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_stage_leaves_nothing(tmp_path: Path, interruption: type[BaseException]) -> None:
    def stop(out: Path) -> Made:
        (out / "half").write_text("x")
        raise interruption

    with pytest.raises(interruption), opened(tmp_path) as (work, _):
        work.stage("10-dense", stop, inputs={}, code=1, versions={})
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    assert ran(line(tmp_path)[0]) == [True] * 3


def test_an_old_stage_comes_back_when_the_new_one_is_incomplete(tmp_path: Path) -> None:
    line(tmp_path)
    (tmp_path / "10-dense").rename(tmp_path / ".10-dense.old")
    (tmp_path / ".10-dense.tmp").mkdir()
    done, said = line(tmp_path)
    assert ran(done) == [False] * 3 and "put back" in said[0]
    assert not list(tmp_path.glob(".10-dense*"))


def test_outdated_stages_go_when_an_earlier_one_is_replaced(tmp_path: Path) -> None:
    """Otherwise a report could mix figures of two trainings."""
    line(tmp_path)
    with opened(tmp_path) as (work, said):
        work.stage("20-sparse", writer("new"), inputs={"demp": {"lr": 9}}, code=1, versions={})
    assert not (tmp_path / "40-onnx").exists() and (tmp_path / "10-dense").exists()
    assert any(text.startswith("40-onnx: removed") for text in said)


def test_finished_gives_a_stage_whatever_the_config_says(tmp_path: Path) -> None:
    line(tmp_path)
    with opened(tmp_path) as (work, _):
        assert finished(work.folder, "10-dense").result(Made).text.read_text() == "one"
        with pytest.raises(
            UserError, match="30-surgery: not there; expected a finished stage; run `demport run` first"
        ):
            finished(work.folder, "30-surgery")
        corrupt_byte(tmp_path / "10-dense")
        with pytest.raises(UserError, match="sub/part was changed"):
            finished(work.folder, "10-dense")


def test_a_second_run_on_the_folder_is_refused_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with opened(tmp_path), pytest.raises(UserError) as caught, opened(tmp_path):
        pass
    assert str(caught.value) == (
        f"{tmp_path}: in use by process {os.getpid()}; expected one run at a time in a folder; "
        "wait for it or choose another --out"
    )
    assert time.monotonic() - start < 1
    with opened(tmp_path):
        assert is_run(tmp_path)


def test_a_stage_of_another_run_is_named_and_nothing_deleted(tmp_path: Path) -> None:
    line(tmp_path / "one")
    demand_one_run(tmp_path / "one")
    line(tmp_path / "two", b=7)
    shutil.rmtree(tmp_path / "one" / "20-sparse")
    shutil.copytree(tmp_path / "two" / "20-sparse", tmp_path / "one" / "20-sparse")
    with pytest.raises(UserError, match="40-onnx was made from another 20-sparse than the one beside it"):
        demand_one_run(tmp_path / "one")
    assert (tmp_path / "one" / "40-onnx" / "text").is_file()
    shutil.rmtree(tmp_path / "one" / "20-sparse")
    with pytest.raises(UserError, match="20-sparse: not there; expected a finished stage"):
        demand_one_run(tmp_path / "one")


def test_a_config_of_somebody_else_makes_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("database: {host: x}\n")
    (tmp_path / ".thesis.tmp").mkdir()
    assert not is_run(tmp_path)
    with pytest.raises(UserError, match="holds files that are not a run's"), opened(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".thesis.tmp", "config.yaml"]


def test_temporary_files_of_a_stage_lie_in_the_run_folder_and_go_with_it(tmp_path: Path) -> None:
    places: list[Path] = []

    def work(out: Path) -> Made:
        places.extend((Path(tempfile.mkdtemp()), Path(os.environ["TMPDIR"])))
        return writer("x")(out)

    before = tempfile.gettempdir()
    with opened(tmp_path) as (workspace, _):
        (tmp_path / ".scratch" / "of_a_killed_run").mkdir(parents=True)
        workspace.stage("10-dense", work, inputs={}, code=1, versions={})
    assert places[0].parent == places[1] == tmp_path / ".scratch" and not places[1].exists()
    assert tempfile.gettempdir() == before


def test_folders_that_are_not_ours_stay_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files that are not a run's; expected an empty folder"), opened(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="File exists"), opened(tmp_path / "thesis.tex"):
        pass
    with pytest.raises(UserError, match="Not a directory"), opened(tmp_path / "thesis.tex" / "run"):
        pass


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="No locks available; expected a folder to write to"), opened(tmp_path):
        pass
    monkeypatch.undo()
    assert ran(line(tmp_path)[0]) == [True] * 3


def test_a_result_that_is_no_json_is_a_bug_not_a_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"), opened(tmp_path) as (work, _):
        work.stage("10-dense", lambda out: Made(out, None, float("nan"), (), {}), inputs={}, code=1, versions={})
    with pytest.raises(AssertionError), opened(tmp_path) as (work, _):
        work.stage("10-dense", lambda out: {"not": "a dataclass"}, inputs={}, code=1, versions={})
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
