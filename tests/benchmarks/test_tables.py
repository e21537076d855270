"""Tables of measured figures: written from the results, and current in every document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables
from runtime.errors import UserError

POINTS: list[dict[str, Any]] = [
    {"method": "dense", "seed": 0, "accuracy_pct": 99.5, "p50_ms": 1.8312, "macs": 20_000_000},
    {"method": "demp", "seed": 0, "accuracy_pct": 99.0, "p50_ms": 0.9, "macs": 5_000_000},
    {"method": "demp", "seed": 1, "accuracy_pct": 98.0, "p50_ms": 0.9, "macs": 5_000_000},
    {"method": "a|b", "seed": 0, "accuracy_pct": None, "p50_ms": None, "macs": None},
]
TEXT = "before\n<!-- results few.cpu: method, accuracy_pct, p50_ms, macs -->\nold\n<!-- end of results -->\nafter\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    environment = {"cpu": "Example CPU", "cores": 2, "gpus": [], "versions": {"torch": "2.15.0", "numpy": "2.4"}}
    document = {
        "schema": 1,
        "command": "python -m benchmarks.few",
        "environment": environment,
        "n": "3 runs",
        "points": POINTS,
    }
    (tmp_path / "few.cpu.json").write_text(json.dumps(document), encoding="utf-8")
    return tmp_path


def test_rows_are_means_with_ranges(results: Path) -> None:
    lines = tables.filled(TEXT, results.parent, results).splitlines()
    assert lines[2] == "| method | accuracy, % | p50, ms | macs |"
    assert lines[3] == "| --- | --: | --: | --: |"
    assert lines[4] == "| dense | 99.5 | 1.831 | 20,000,000 |"
    assert lines[5] == "| demp | 98.5 (98 to 99) | 0.9 | 5,000,000 |"
    assert lines[6] == "| a\\|b |  |  |  |"
    assert lines[8] == (
        "n = 3 runs; Example CPU, 2 cores; torch 2.15.0; `python -m benchmarks.few`; "
        f"[few.cpu.json]({results.name}/few.cpu.json)."
    )


def test_settings_are_rows_and_not_means(results: Path) -> None:
    path = results / "few.cpu.json"
    points = [{"batch": batch, "align": 8, "p50_ms": p50} for batch, p50 in ((1, 2.0), (1, 3.0), (8, 20.0))]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"points": points}), encoding="utf-8")
    head, line, *rows = tables.table(path, ["align", "batch", "p50_ms"], path.name).splitlines()[:4]
    assert (head, line) == ("| align | batch | p50, ms |", "| --: | --: | --: |")
    assert rows == ["| 8 | 1 | 2.5 (2 to 3) |", "| 8 | 8 | 20 |"]


def test_text_around_a_table_stays_and_filling_twice_changes_nothing(results: Path) -> None:
    once = tables.filled(TEXT, results, results)
    assert once.startswith("before\n") and once.endswith("<!-- end of results -->\nafter\n") and "old" not in once
    assert tables.filled(once, results, results) == once


def test_the_link_leads_from_the_document_to_the_file(results: Path) -> None:
    guide = results.parent / "guides"
    line = tables.filled(TEXT, guide, results)
    assert f"[few.cpu.json](../{results.name}/few.cpu.json)" in line


def test_a_missing_file_or_key_is_named(results: Path) -> None:
    missing = tables.filled(TEXT.replace("few.cpu", "none.cpu"), results, results)
    assert "Not measured yet: `python -m benchmarks.none` writes none.cpu.json." in missing and "|" not in missing
    missing = tables.filled(TEXT.replace("few.cpu", "gather.tpu"), results, results)
    assert "`python -m benchmarks.surgery.gather` writes gather.tpu.json" in missing
    missing = tables.filled(TEXT.replace("few.cpu", "gather_wide.tpu"), results, results)
    assert "`python -m benchmarks.surgery.gather` writes gather_wide.tpu.json" in missing
    with pytest.raises(UserError, match=r"no point has `p51_ms`; expected one of .*'p50_ms'"):
        tables.filled(TEXT.replace("p50_ms", "p51_ms"), results, results)


def test_the_house_is_the_folders_with_their_first_sentences(tmp_path: Path) -> None:
    for folder, docstring in (
        ("export", "Out. And more."),
        ("export/onnx", "Graphs of onnx.ai, read"),
        ("export/a/b", "Deep."),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "__init__.py").write_text(f'"""{docstring}"""\n')
    (tmp_path / "stranger").mkdir()
    assert tables.house(2, tmp_path).splitlines() == [
        "export/           Out",
        "  onnx/           Graphs of onnx.ai, read",
    ]
    assert len(tables.house(3, tmp_path).splitlines()) == 3
    (tmp_path / "export" / "__init__.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="has no docstring"):
        tables.house(1, tmp_path)


def test_documents_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, "run `python -m benchmarks.tables`"
    assert capsys.readouterr().out == ""


def test_every_results_file_has_the_agreed_keys() -> None:
    for path in tables.RESULTS.glob("*.json"):
        document = json.loads(path.read_text("utf-8"))
        assert {"schema", "command", "environment", "n", "points"} <= document.keys(), path.name
        assert document["points"] and all(isinstance(point, dict) for point in document["points"]), path.name


def test_images_of_triton_have_a_source_or_are_left_out() -> None:
    sources = {
        "notes": {"url": "https://example.org/notes", "read": "2026-01-02", "says": "TensorRT of a month"},
        "pins": {"url": None, "read": "2026-01-02", "says": "what others pinned"},
    }
    rows = [("26.01-py3", ["notes"]), ("26.02-py3", ["pins", "notes"])]
    document = {
        "sources": sources,
        "images": [{"tag": tag, "tensorrt": "10.1", "cuda": "13.0", "sources": names} for tag, names in rows],
    }
    text = tables.images(document)
    assert "| 26.01-py3 | 10.1 | 13.0 | notes |\n" in text
    assert "- notes: [TensorRT of a month](https://example.org/notes), read 2026-01-02\n" in text
    assert "| 26.02-py3" not in text
    assert text.endswith("\nLeft out, as no page that can be read says it: 26.02-py3 (what others pinned).\n")
    own = tables.filled("<!-- images of Triton -->\nold\n<!-- end of images -->\n")
    assert "old" not in own and own.count("\n| 2") > 20 and own.count("](https://") == own.count(", read 20") > 3
