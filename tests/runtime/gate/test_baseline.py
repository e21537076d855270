"""The folder of an accepted release: what is written is read back, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import UserError
from runtime.files import sha256
from runtime.gate.baseline import NAME, Release, Rule, Rules, demand_own, figures_of, read_baseline, write_baseline

MODELS: dict[str, Any] = {
    "dense": {},
    "compact": {"params": 1000, "macs": 50_000, "bytes": 100_000, "accuracy": {"simplified": 0.99, "engine": None}},
}


def release(**changes: Any) -> Release:
    content = {
        "figures": figures_of(MODELS), "engines": [], "data": {"source": "digits", "fingerprint": "d" * 64},
        "model": {"name": "demo:resnet", "args": {}}, "config": {"seed": 0}, "environment": {"fingerprint": "aaaa"},
    }  # fmt: skip
    return Release.model_validate(content | changes)


def written(folder: Path, content: bytes = b"network", **changes: Any) -> Path:
    """A baseline whose ONNX file has this content."""
    source = folder.with_suffix(".onnx")
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(content)
    write_baseline(folder, "digits", Rules(), release(**changes), {"onnx": (source, None)})
    return folder


def test_figures_have_names_and_nothing_unmeasured() -> None:
    expected = {"params": 1000.0, "macs": 50_000.0, "bytes": 100_000.0, "accuracy.simplified": 0.99}
    assert figures_of(MODELS) == expected
    cases: tuple[tuple[str, Any, str], ...] = (
        ("macs", -5, "macs is -5"), ("accuracy", {"torch": 1e9}, r"accuracy\.torch is 1e\+09"),
        ("params", float("nan"), "params is nan"),
    )  # fmt: skip
    for key, value, words in cases:
        with pytest.raises(UserError, match=f"the check says {words}; "):
            figures_of({"compact": MODELS["compact"] | {key: value}})


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    folder = written(tmp_path / "base")
    baseline = read_baseline(folder)
    assert (baseline.name, baseline.rules, baseline.release) == ("digits", Rules(), release())
    (stored,) = baseline.files.values()
    assert (folder / stored.file).read_bytes() == b"network" and stored.file == f"compact.{stored.sha256[:12]}.onnx"
    assert stored.sha256 == sha256(folder / stored.file) and json.loads((folder / NAME).read_text())["schema"] == 2


def test_an_update_leaves_the_new_files_alone_and_a_link_a_link(tmp_path: Path) -> None:
    folder = written(tmp_path / "base")
    (folder / "notes.md").write_text("ours")
    link = tmp_path / "link"
    link.symlink_to(folder)
    written(link, b"another network")
    assert link.is_symlink() and len(list(folder.glob("compact.*.onnx"))) == 1
    (stored,) = read_baseline(folder).files.values()
    assert (folder / stored.file).read_bytes() == b"another network" and (folder / "notes.md").exists()


def test_the_file_that_baseline_json_links_to_is_updated(tmp_path: Path) -> None:
    folder, shared = written(tmp_path / "base"), tmp_path / "shared.json"
    (folder / NAME).rename(shared)
    (folder / NAME).symlink_to(shared)
    written(folder, b"another network")
    assert (folder / NAME).is_symlink() and read_baseline(folder).files["onnx"].sha256 in shared.read_text()


def test_a_baseline_of_one_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "baseline.json"
    old.write_text(json.dumps({"kind": "demport baseline", "schema": 1, "name": "digits", "devices": {}}))
    for path in (old, tmp_path):
        with pytest.raises(UserError, match="schema 1") as caught:
            read_baseline(path)
        assert "demport gate RUN --baseline DIR --update" in caught.value.remedy
    with pytest.raises(UserError, match="schema 1"):
        demand_own(old)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "other"}, "kind"),
        ({"more": 1}, "more"),
        ({"files": {}}, "files lacks onnx"),
        ({"files": {"onnx": {"file": "../x.onnx", "sha256": "0" * 64}}}, "files.onnx.file"),
        ({"schema": 3}, "schema"),
        ({"rules": {"latency": -0.1}}, "rules.latency"),
    ],
)
def test_what_is_no_baseline_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = written(tmp_path / "base")
    document = json.loads((folder / NAME).read_text()) | change
    (folder / NAME).write_text(json.dumps(document))
    with pytest.raises(UserError) as caught:
        read_baseline(folder)
    assert words in caught.value.found and caught.value.remedy


def test_nan_is_refused_with_its_line(tmp_path: Path) -> None:
    folder = written(tmp_path / "base")
    text = (folder / NAME).read_text()
    (folder / NAME).write_text(text.replace("1000.0", "NaN"))
    line = text[: text.index("1000.0")].count("\n") + 1
    with pytest.raises(UserError, match=r"baseline\.json is not JSON: ") as caught:
        read_baseline(folder)
    assert f"line {line} column" in caught.value.found and "demport gate" in caught.value.remedy


def test_a_changed_or_missing_file_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "base")
    path = folder / read_baseline(folder).files["onnx"].file
    path.write_bytes(b"tampered")
    with pytest.raises(UserError, match="was changed"):
        read_baseline(folder)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_baseline(folder)
    with pytest.raises(UserError, match="no such folder"):
        read_baseline(tmp_path / "absent")
    (folder / NAME).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_baseline(folder)


def test_an_update_touches_no_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    demand_own(tmp_path / "theirs")
    demand_own(tmp_path / "absent")
    (tmp_path / "theirs" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        demand_own(tmp_path / "theirs")


def test_a_rule_allows_the_larger_of_both() -> None:
    assert Rule(relative=0.1, absolute=3).allowed(10) == 3
    assert Rule(relative=0.1, absolute=3).allowed(100) == 10


def test_an_ir_of_other_weights_is_another_file(tmp_path: Path) -> None:
    """The .xml is the same: an update may not touch the weights that the old baseline.json names."""
    ir, onnx, stored = tmp_path / "compact.fp32.CPU.xml", tmp_path / "net.onnx", []
    onnx.write_bytes(b"network")
    for weights in (b"accepted", b"new"):
        ir.write_bytes(b"<net/>")
        ir.with_suffix(".bin").write_bytes(weights)
        Path(f"{ir}.json").write_text("{}")
        files = {"onnx": (onnx, None), "openvino.fp32.CPU": (ir, "a CPU")}
        write_baseline(tmp_path / "base", "digits", Rules(), release(), files)
        stored.append(read_baseline(tmp_path / "base").files["openvino.fp32.CPU"])
        assert next((tmp_path / "base").glob("*.bin")).read_bytes() == weights
    assert stored[0].sha256 == stored[1].sha256 and stored[0].file != stored[1].file
    assert len(list((tmp_path / "base").iterdir())) == 5  # baseline.json, the network, and one engine in three files
