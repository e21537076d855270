"""The three files of a report: their contract, what they say, and that nothing in them reaches out or escapes."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.document import read
from pipeline.report.render import render
from runtime.errors import UserError
from tests.pipeline.report.check_document import CONDITIONS, check, why
from tests.pipeline.report.reading import document, page, section
from tests.pipeline.report.run_folder import AFTER, BEFORE, DEAD, PNG, STAGES, write_run

KEYS = Path(__file__).parent / "report_keys.txt"
NASTY = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("full") / "run")
    render(folder)
    return folder


def test_json_keeps_the_contract(run: Path) -> None:
    report = document(run)
    assert report["schema"] == 1
    assert report["models"]["dense"]["macs"] == 20_000_000
    assert report["models"]["compact"]["channels"] == AFTER
    assert report["models"]["compact"]["accuracy"]["onnx"] == pytest.approx(393 / 397)
    assert report["surgery"]["channels_before"] == BEFORE
    assert report["surgery"]["channels_dead"] == DEAD
    assert report["latency"]["onnxruntime"]["fp32"]["b32"]["speedup"] == {
        "ratio": 1.6,
        "ci95": [1.56, 1.65],
        "verdict": "faster",
        "detectable": 1.06,
    }
    assert report["hops"][0]["from"] == "masked" and report["hops"][0]["to"] == "torch"
    assert report["why"][0]["share"] == 0.4 and report["concurrency"][0]["streams"] == 1
    assert report["worst"]["images"][0]["file"] == "worst/17.png" and report["broken"] is None
    assert report["engines"][0]["sha256"] == "ab12" * 16
    assert [gate["name"] for gate in report["verdict"]["gates"]][:2] == ["max_accuracy_drop", "min_speedup"]
    assert "samples_ms" not in json.dumps(report)


def keys(value: Any, path: str = "") -> set[str]:
    """`models.dense.macs` of every key at every depth; entries of a list count as one."""
    if isinstance(value, dict):
        return {f"{path}{key}" for key in value}.union(*(keys(inner, f"{path}{key}.") for key, inner in value.items()))
    return set().union(*(keys(inner, path) for inner in value)) if isinstance(value, list) else set()


def test_json_has_the_keys_it_has_always_had(run: Path) -> None:
    """KEYS were taken from the report of this folder before its parts were the results of the stages."""
    assert keys(document(run)) == {*KEYS.read_text("utf-8").splitlines(), "seal"}
    assert len(KEYS.read_text("utf-8").splitlines()) > 200


def test_a_report_is_read_back_only_as_it_was_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    render(folder)
    path = folder / "report.json"
    assert read(path)["verdict"]["status"] == "inconclusive"
    path.write_text(path.read_text("utf-8").replace('"status": "inconclusive"', '"status": "pass"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"report\.json: it was changed after it was written"):
        read(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="no plain file"):
        read(path)


def nulls(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in nulls(inner, f"{path}.{key}")]
    if isinstance(value, list):
        return [found for index, inner in enumerate(value) for found in nulls(inner, f"{path}.{index}")]
    return [path] if value is None else []


@pytest.mark.parametrize("stages", [STAGES, STAGES[:2], STAGES[:3]])
def test_every_null_among_the_models_has_its_reason(tmp_path: Path, stages: tuple[str, ...]) -> None:
    folder = write_run(tmp_path / "run", stages)
    render(folder)
    report = document(folder)
    for part in (report["models"]["dense"], report["models"]["compact"], report["surgery"]):
        missing = [path.lstrip(".") for path in nulls({key: value for key, value in part.items() if key != "reasons"})]
        assert set(missing) <= set(part["reasons"])
        assert all(len(reason) > 5 for reason in part["reasons"].values())


def test_html_is_one_file_without_scripts_and_requests(run: Path) -> None:
    html = (run / "report.html").read_text("utf-8")
    found = page(run)
    assert found.scripts == 0
    assert found.open == []
    assert found.addresses and all(address.startswith(("data:", "#")) for address in found.addresses)
    assert not re.search(r"@import|url\((?!#)|https?://", re.sub(r"data:[^\"]*", "", html))
    assert len(html) < 400_000


def test_html_shows_the_figures_and_where_they_come_from(run: Path) -> None:
    text = page(run).text
    assert "Inconclusive" in text.split("Gates")[0]
    assert "181 of 448 died (40 %)" in text
    assert "MACs an image20.0 M5.00 M4.00x" in text and text.count("4.00x") == 1  # each ratio is said once
    assert "1.60x (1.56 to 1.65)" in text and text.count("1.60x") == 2  # on top, and in the table of all forms
    assert "99.50 % (98.2 to 99.9)" in text  # Wilson, 395 of 397
    assert "-0.50 pp-1.81 to +0.66" in text
    assert "1 images are right only in compact, 3 only in dense: p = 0.62. P: exact McNemar test." in text
    for file in (
        "70-check/check.json",
        "30-surgery/certificate.json",
        f"{STAGES[0]}/history.jsonl",
        f"{STAGES[1]}/history.jsonl",
    ):
        assert file in text
    assert "None was run here: no GPU on this machine." in section(text, "Engines")
    assert "Not measured: tensorrt_rtx.fp16.SM86: no GPU on this machine" in section(text, "Accuracy at every hop")
    assert "Not measured: tensorrt_rtx fp16; batch 32: no GPU on this machine" in section(text, "Latency")
    assert f"--out runs/quickstart --until {STAGES[1][3:]} --redo {STAGES[1][3:]}" in text


def test_every_plot_has_its_data_in_a_table_of_its_section(run: Path) -> None:
    html = (run / "report.html").read_text("utf-8")
    sections = re.findall(r"<section id=.*?</section>", html, re.DOTALL)
    with_plot = [part for part in sections if "<figure>" in part]
    assert [re.findall("<h2>(.*?)</h2>", part)[0] for part in with_plot] == [
        "Latency", "Where the time goes", "Accuracy at every hop", "Training",
    ]  # fmt: skip
    for part in with_plot:
        assert part.count("<table") >= part.count("<figure>") and 'role="img" aria-label="' in part
    assert html.count("<figure>") == html.count('<svg class="plot"') == 8
    assert len(re.findall(r"<tr>", section(html, "Sparse training, epoch by epoch").split("</details>")[0])) == 41


def test_contents_lead_to_every_section(run: Path) -> None:
    html = (run / "report.html").read_text("utf-8")
    links = re.findall(r'<a href="#([^"]+)">', html)
    assert links == re.findall(r'<section id="([^"]+)">', html) and len(links) == len(set(links)) >= 12
    assert links[0] == "gates" and links[-1] == "words"


def test_why_it_is_not_faster_is_said_with_the_layers(run: Path) -> None:
    text = page(run).text
    why = section(text, "Why is it not faster?").split("Timed in turn")[0]
    assert "On ONNX Runtime fp32 on the CPU, batch 32, 2 threads, the time fell by 40 % of what the MACs fell by" in why
    assert "Most of compact's run is bound by memory (57 %)" in why
    assert "57 % of a run is in 1 layers that lost no work (layer3)" in why and "sparse.lambda_peak" in why
    layers = section(text, "Layer by layer")
    assert "32 to 20 (runs as 24)" in layers and "300 to 200" in layers and "4.00 M to 1.00 M" in layers
    assert "100 GFLOP/s; memory 40 GB/s at 256 KiB, 20 GB/s at 128 MiB" in text
    assert "Why is it not faster?" in (run / "report.md").read_text("utf-8")


def test_nothing_is_explained_where_the_speed_follows_the_size(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", why=[why(2.2, 1.6)])  # 73 % of it
    render(folder)
    assert "Why is it not faster?" not in page(folder).text
    assert "Why is it not faster?" not in (folder / "report.md").read_text("utf-8")
    assert "Layer by layer" in page(folder).text


def test_speed_under_load_and_how_it_was_measured(run: Path) -> None:
    text = page(run).text
    load = section(text, "Several sessions at once").split("Where the time goes")[0]
    table, folded = load.split("Throughput, and what a caller waits for")
    assert "Batch 32; each session in a thread of its own, computing with 1 thread on a processor." in table
    assert "Form1 session2 sessions" in table
    assert "onnxruntime fp321.25x (1.21 to 1.30)1.50x (1.46 to 1.55)" in table
    assert "onnxruntime fp161.00x (0.96 to 1.05)" in table
    assert "Not measured: onnxruntime fp16; 2 at once: 5 rounds of 2 at once would take 61 s" in table
    assert "Not measured: tensorrt_rtx fp16; 1, 2 at once: no GPU on this machine" in table
    assert "onnxruntime fp32, 2 at once17,000 images/s" in folded and "25,500 images/s" in folded
    assert "at once9,000 images/s" in folded and "no difference found" in folded
    method = section(text, "batch 32 was measured")
    assert "Smallest speedup it would have found1.06x" in method and "Cores taken by others3.1 %" in method
    assert "1.60x (1.56 to 1.65)1.44x (1.40 to 1.49)faster" in section(text, "Latency")  # 0.9 of 1.6


def test_a_broken_hop_a_busy_machine_and_a_reference_are_named_on_top(tmp_path: Path) -> None:
    latency = check()["latency"]
    latency["onnxruntime"]["fp32"]["b32"]["protocol"]["conditions"] = {**CONDITIONS, "others_busy_pct": 48.0}
    broken = {"model": "compact", "from": "simplified", "to": "fp16", "drop_pp": 12.5, "limit_pp": 1.0}
    entry = latency["onnxruntime"]["fp32"]["b32"]
    reference = {"file": "v1.onnx", "sha256": "0" * 64, "batch": 32, "reference": entry["dense"],
                 "compact": entry["compact"], "speedup": entry["speedup"], "protocol": entry["protocol"]}  # fmt: skip
    folder = write_run(tmp_path / "run", latency=latency, broken=broken, reference=reference)
    render(folder)
    for text in (page(folder).text, (folder / "report.md").read_text("utf-8").replace("\N{NO-BREAK SPACE}", " ")):
        assert "broken first from simplified to fp16: 12.50 percentage points lost against dense" in text
        assert "doubtful: other processes took 48 % of the cores" in text
        assert "v1.onnx" in text


def test_the_images_it_got_wrong_are_in_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    render(folder)
    html = (folder / "report.html").read_text("utf-8")
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in html
    assert "eight taken for one91 % to 22 %; image 17" in page(folder).text
    assert "eight4,000" not in page(folder).text


def test_markdown_holds_verdict_gates_and_figures(run: Path) -> None:
    text = (run / "report.md").read_text("utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith("## digits, a small residual network: inconclusive\n")
    assert "| max\\_accuracy\\_drop | pass | 0.5038 | 1 |  |" in text
    assert "| MACs an image | 20.0 M | 5.00 M | 4.00x |" in text
    latency, loads = text.split("### Several sessions at once")
    rows = [line for line in latency.splitlines() if line.startswith("| onnxruntime")]
    assert len(rows) == 3 and all(line.count("|") == 7 for line in rows)
    assert loads.lstrip().startswith(
        "| Form | 1 session | 2 sessions |\n|---|--:|--:|\n"
        "| onnxruntime fp32 | 1.25x (1.21 to 1.30) | 1.50x (1.46 to 1.55) |\n"
        "| onnxruntime fp16 | 1.00x (0.96 to 1.05) |  |\n\nNot measured: onnxruntime fp16; 2 at once: 5 rounds"
    )
    engines = [line for line in text.split("### Engines")[1].splitlines() if line.startswith("|")]
    assert len(engines) == 6 and {line.count("|") for line in engines} == {8}
    assert "\n\n\n" not in text


@pytest.mark.parametrize(("stages", "absent"), [(STAGES[:1], 6), (STAGES[:3], 4), (STAGES[:7], 3)])
def test_stages_that_did_not_run_are_said_so(tmp_path: Path, stages: tuple[str, ...], absent: int) -> None:
    folder = write_run(tmp_path / "run", stages)
    render(folder)
    text, report = page(folder).text, document(folder)
    assert text.count("Not run: ") == absent
    assert text.count("not run") == len(STAGES) - len(stages)
    assert report["verdict"]["status"] == "inconclusive" and report["latency"] == {}
    assert "Not run: stage 70-check." in (folder / "report.md").read_text("utf-8")


def test_names_of_users_are_escaped(tmp_path: Path) -> None:
    gates = [{"name": NASTY, "status": "fail", "value": 1.0, "limit": 2.0, "reason": "a|b\nc"}]
    folder = write_run(tmp_path / "run", verdict={"status": "fail", "gates": gates})
    (folder / "config.yaml").write_text(f"name: '{NASTY}'\n", encoding="utf-8")
    render(folder)
    html, markdown = ((folder / name).read_text("utf-8") for name in ("report.html", "report.md"))
    assert NASTY in page(folder).text and page(folder).scripts == 0
    assert "<script" not in html and "<script" not in markdown
    assert "| a\\|b c |" in markdown


def test_rendering_twice_gives_the_same_bytes(run: Path) -> None:
    before = {name: (run / name).read_bytes() for name in ("report.json", "report.md", "report.html")}
    render(run)
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not list(run.glob("*.tmp")) and not list(run.glob(".report*"))
