"""Several runs on one plot: which are on it, which is best, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.finished_run import compare as compare_command
from pipeline.progress import Silent
from pipeline.report.several.compare import Dot, compare, frontier, pareto
from runtime.errors import UserError
from tests.pipeline.report.check_document import ENVIRONMENT, check, latency
from tests.pipeline.report.reading import Page
from tests.pipeline.report.run_folder import STAGES, write_run


def with_latency(dense_ms: float, compact_ms: float) -> dict[str, Any]:
    return {"onnxruntime": {"fp32": {"b32": latency(dense_ms, compact_ms, dense_ms / compact_ms)}}}


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """The second is faster at the same accuracy; the third was measured elsewhere, the fourth at another batch."""
    elsewhere = {**ENVIRONMENT, "fingerprint": "f" * 16, "cpu": "Other CPU"}
    return [
        write_run(tmp_path / "one", latency=with_latency(2.0, 1.2)),
        write_run(tmp_path / "two", latency=with_latency(1.9, 0.8)),
        write_run(tmp_path / "three", latency=with_latency(0.2, 0.1), environment=elsewhere),
        write_run(tmp_path / "four", latency={"onnxruntime": {"fp32": {"b8": latency(0.3, 0.2, 1.5)}}}),
    ]


def test_networks_of_several_runs_with_the_best(runs: list[Path], tmp_path: Path) -> None:
    told = compare(runs, tmp_path / "compare.html")
    dots = [(row.run, row.role, round(row.dot.latency, 1), row.best) for row in told.rows if row.dot]
    assert dots == [
        ("one", "dense", 100.0, True), ("one", "compact", 60.0, False), ("two", "dense", 100.0, False),
        ("two", "compact", 42.1, True),
    ]  # fmt: skip
    assert [row["p50_ms"] for row in told.document()["networks"]][:4] == [2.0, 1.2, 1.9, 0.8]
    spread = next(row.dot.latency_interval for row in told.rows if row.dot and row.dot.label == "two, compact")
    assert spread == pytest.approx((100 / 2.425, 100 / 2.335))
    reasons = {row.run: row.reason for row in told.rows if not row.dot}
    gap = "\N{NO-BREAK SPACE}"
    unmeasured = f"onnxruntime fp32, batch{gap}32 was not measured"
    assert reasons == {"three": "measured on Other CPU, 2 cores", "four": unmeasured}
    assert told.rows[0].accuracy.startswith("99.50") and told.rows[1].macs == "5.00\N{NO-BREAK SPACE}M"


def test_the_page_holds_every_figure_and_asks_nothing_of_the_network(runs: list[Path], tmp_path: Path) -> None:
    told = compare(runs, tmp_path / "compare.html")
    page = Page(told.html.read_text("utf-8"))
    assert page.open == [] and page.scripts == 0
    assert page.addresses and all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "4: two, compact (best)98.99 %" in page.text and "measured on Other CPU" in page.text
    markdown = told.markdown.read_text("utf-8").replace("\N{NO-BREAK SPACE}", " ")
    row = "98.99 % (97.4 to 99.6) | 0.800 ms | 42.1 % of dense (41.2 to 42.8) | 5.00 M | 724 KiB | inconclusive |"
    assert f"| 4: two, compact (best) | {row}  |" in markdown
    assert markdown.count("\n| ") == 9


def test_other_dense_networks_are_compared_in_milliseconds(runs: list[Path], tmp_path: Path) -> None:
    models = check()["models"]
    models["dense"]["macs"] = 30_000_000
    other = write_run(tmp_path / "other", latency=with_latency(2.5, 1.0), models=models)
    told = compare([runs[0], other], tmp_path / "compare.html")
    assert [row.dot.latency for row in told.rows if row.dot] == [2.0, 1.2, 2.5, 1.0]
    assert all(row.dot.latency_interval is None for row in told.rows if row.dot)


def test_runs_called_alike_are_told_by_their_path(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name / "run") for name in ("a", "b")]
    told = compare(folders, tmp_path / "compare.html")
    assert {row.run for row in told.rows} == {str(folder) for folder in folders}
    assert len(told.document()["networks"]) == 4


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    unchecked = write_run(tmp_path / "early", STAGES[:2])
    with pytest.raises(UserError, match="no latency was measured; a run that was checked"):
        compare([unchecked], tmp_path / "compare.html")
    with pytest.raises(UserError, match="nowhere: no run folder"):
        compare_command([tmp_path / "nowhere"], tmp_path / "compare.html", Silent())
    assert list(tmp_path.glob("compare*")) == []
    assert check()["verdict"]["status"] == "inconclusive"


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    networks = [("a", 3.0, 99.0), ("b", 1.0, 97.0), ("c", 2.0, 96.0), ("d", 2.5, 98.0), ("e", 4.0, 99.0)]
    dots = [Dot(label, "compact", ms, accuracy, None) for label, ms, accuracy in networks]
    assert [dot.label for dot in frontier(dots)] == ["b", "d", "a"]
    assert frontier([]) == []
    assert "table" in pareto("t", dots, "p50, ms").alt
    assert ">1, 2</text>" in pareto("t", [dots[0], dots[0], dots[1]], "p50, ms").svg  # in one place, one label
