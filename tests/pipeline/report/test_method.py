"""What the report says of a method's own figures and of its masks, with invented figures worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import method
from pipeline.report.method import Masked, figures_of, figures_picture, figures_table, masked_of, sentence
from pipeline.report.page import Table
from pipeline.report.render import render
from tests.pipeline.report.reading import document, page, section
from tests.pipeline.report.run_folder import SIMPLIFIED, stage, write_json, write_run

WEIGHTS: dict[str, Any] = {
    "count": 100_000, "living": 2_500, "bytes": 400_000, "sparse_bytes": 40_000, "sparse_path": "compact.sparse.onnx",
    "reason": None, "two_of_four": ["conv2.weight"], "groups": 25_000, "groups_that_fit": 24_000,
}  # fmt: skip
ROWS = [(1, {"density": 0.5, "round": 0.0}), (2, {"density": 0.25, "round": 0.0, "flips": 3.0})]


def test_the_numbers_of_a_row_that_are_the_methods_own() -> None:
    row = {"epoch": 3, "loss": 1.0, "round": 2, "density": 0.25, "whole": "why", "density_by_layer": {"a": 1.0},
           "steered": True, "winner": None}  # fmt: skip
    assert figures_of(row) == {"round": 2.0, "density": 0.25}
    assert figures_of({"epoch": 1, "lambda": 0.1, "dead": 3}) == {}


def test_they_make_a_table_and_those_that_change_a_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    table = figures_table(ROWS)
    assert table is not None and list(table.heads) == ["Epoch", "Density", "Round", "Flips"]
    assert table.rows[0] == ["1", "0.5", "0", ""] and table.rows[1][3] == "3"
    drawn: list[Any] = []
    monkeypatch.setattr(method, "course", lambda title, panels, alt: drawn.append((title, [p.axis for p in panels])))
    figures_picture(ROWS)
    assert drawn == [("Figures of the method", ["density"])]
    assert figures_table([(1, {})]) is None and figures_picture([(1, {}), (2, {})]) is None


def test_what_masks_are_worth_in_one_sentence() -> None:
    document = masked_of({"living_weights": 2_600.0, "density": 0.02}, WEIGHTS)
    assert document is not None and document["reasons"] == {} and "sparse_path" not in document
    masked = Masked(**document)
    said = sentence(masked, (200, 28, 172), "not faster").replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "98.0 % of the weights are zero and compared with dense the network is not faster: 14.0 % of the channels "
        "could go."
    )
    assert "its latency was not measured" in sentence(masked, (200, 28, 172), "")
    stay = sentence(masked, (200, 28, 192), "not faster")
    assert stay.endswith("of the channels could go, of which 20 of 28 stay for alignment.")
    assert masked_of({"density": 1.0}, WEIGHTS) is None and masked_of({"living_weights": 1.0}, None) is None
    (table,) = [b for b in method.worth(masked, (200, 28, 172), (1000, 700), "faster").blocks if isinstance(b, Table)]
    facts = {str(name): str(cell).replace("\N{NO-BREAK SPACE}", " ") for name, cell in table.rows}
    assert facts["MACs an image, dense arithmetic"] == "1,000 to 700 (70.00 %)"
    assert facts["2 of 4 along the inputs"] == "24,000 of 25,000 groups fit; in all of them: conv2.weight"


def test_a_run_with_masks_has_the_section_and_the_key(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    history = run / "20-sparse" / "history.jsonl"
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    lines = [json.dumps({**row, "living_weights": 2600, "density": 0.02}) for row in rows]
    history.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(run / "20-sparse" / "stage.json", stage("20-sparse", 1))
    result = {"dense": SIMPLIFIED, "compact": SIMPLIFIED, "weights": {**WEIGHTS, "sparse_bytes": None, "reason": "big"}}
    write_json(run / "50-simplify" / "stage.json", {**stage("50-simplify", 4), "result": result})
    render(run)
    masked = document(run)["masked"]
    assert masked["living"] == 2500 and masked["sparse_bytes"] is None and masked["reasons"] == {"sparse_bytes": "big"}
    assert "98.0\N{NO-BREAK SPACE}% of the weights are zero" in (run / "report.md").read_text()
    assert "none: big" in page(run).text and "1.6" in section(page(run).text, "Latency against dense")[:60]
