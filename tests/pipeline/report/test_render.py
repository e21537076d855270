"""The three files of a report: their contract, what they say, and that nothing in them reaches out or escapes."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.render import render
from runtime.errors import UserError
from tests.pipeline.report.run_folder import (
    AFTER,
    BEFORE,
    DEAD,
    STAGES,
    certificate,
    check,
    engine,
    stage,
    write_json,
    write_run,
)

NASTY = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Collects what the tests ask of a page: its text, the addresses it names, and whether its tags balance."""

    VOID = frozenset({"meta", "link", "img", "source", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.addresses, self.scripts, self.open = "", list[str](), 0, list[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("full") / "run")
    render(folder)
    return folder


def page(run: Path) -> Page:
    return Page((run / "report.html").read_text("utf-8"))


def document(run: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    loaded: dict[str, Any] = json.loads((run / "report.json").read_text("utf-8"), parse_constant=refuse)
    return loaded


def section(text: str, title: str) -> str:
    return text.split(title, 1)[1]


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
    }
    assert report["hops"][0]["from"] == "torch" and report["hops"][0]["to"] == "onnx"
    assert report["engines"][0]["sha256"] == "ab12" * 16
    assert [gate["name"] for gate in report["verdict"]["gates"]][:2] == ["max_accuracy_drop", "min_speedup"]
    assert "samples_ms" not in json.dumps(report)


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
    assert found.addresses and all(address.startswith("data:") for address in found.addresses)
    assert not re.search(r"@import|url\(|https?://", re.sub(r"data:[^\"]*", "", html))
    assert len(html) < 1_000_000


def test_html_shows_the_figures_and_where_they_come_from(run: Path) -> None:
    text = page(run).text
    assert "Inconclusive" in text.split("Gates")[0]
    assert "181 of 448 channels died (40 %)" in text
    assert "MACs an image fell from 20.0 M to 5.00 M (4.00x)" in text
    assert "1.60x (1.56 to 1.65)" in text
    assert "99.50 % (98.2 to 99.9)" in text  # Wilson, 395 of 397
    assert "-0.50 percentage points (95 % interval -1.81 to +0.66)" in text
    assert "1 right only when compact, 3 only when dense, p = 0.62. P: exact McNemar test." in text
    for file in (
        "70-check/check.json",
        "30-surgery/certificate.json",
        "10-dense/history.jsonl",
        "20-demp/history.jsonl",
    ):
        assert file in text
    assert "None was run here: no GPU on this machine." in section(text, "Engines")
    assert "Not measured: tensorrt_rtx.fp16.SM86: no GPU on this machine" in section(text, "Accuracy at every hop")
    assert "demport run configs/quickstart.yaml --out runs/quickstart --until demp --redo demp" in text


def test_every_plot_has_its_data_in_a_table(run: Path) -> None:
    html = (run / "report.html").read_text("utf-8")
    sections = re.findall(r"<section>.*?</section>", html, re.DOTALL)
    with_plot = [part for part in sections if "<figure>" in part]
    assert len(with_plot) == 3
    assert all("<table" in part and 'alt="' in part for part in with_plot)
    assert len(re.findall(r"<tr>", section(html, "DemP, epoch by epoch").split("</details>")[0])) == 41


def test_slower_than_small_is_said_with_the_widths(run: Path) -> None:
    text = page(run).text
    assert "MACs fell 4.00x, the time 1.60x on onnxruntime fp32, batch 32, 40 % of that ratio" in text
    assert "layer3.0.conv1 128 to 32" in text
    assert "2 unchanged" in text  # stem.conv and layer3


def test_certificate_says_what_was_proved(run: Path) -> None:
    text = section(page(run).text, "Certificate of the cut")
    assert "Largest relative difference4.1e-15, allowed 1e-09" in text
    assert "Removed by proof from the weights5" in text
    assert "Removed by measurement107" in text  # 11 and 96
    assert "1,400 training images, 2 channels of the last census found alive" in text
    assert "random, batch 2; 8 test images" in text
    assert "Approximate" not in text
    assert document(run)["surgery"]["evidence"] == {"by_proof": 5, "by_measurement": 107}
    assert document(run)["surgery"]["frozen"] == [{"where": "fc", "reason": "output of the network", "channels": 10}]


def test_certificate_without_a_law_or_with_another_activation_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    again = {"images": 9, "revived": 0, "largest_activation": {"gelu": 0.17, "relu": 0.0}, "approximate": ["gelu"]}
    write_json(folder / "30-surgery" / "certificate.json", certificate() | {"law": None, "confirmation": again})
    render(folder)
    text = section(page(folder).text, "Certificate of the cut")
    assert "Law in float64not checked: the cut was asked not to check it" in text
    assert "Approximategelu: dead channels reach 0.17 there, not 0" in text
    assert document(folder)["surgery"]["reasons"]["law"] == "the cut was asked not to check it"


def test_alignments_that_were_timed_are_listed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [
        {
            "align": "1",
            "channels": 267,
            "p50_ms": 10.02,
            "p50_ms_low": 9.9,
            "p50_ms_high": 10.1,
            "rounds": 3,
            "chosen": False,
        },
        {
            "align": "16, 32",
            "channels": 288,
            "p50_ms": 0.92,
            "p50_ms_low": 0.9,
            "p50_ms_high": 0.95,
            "rounds": 3,
            "chosen": True,
        },
    ]
    alignment = {"backend": "onnxruntime", "device": "cpu", "threads": 2, "batch": 32, "candidates": rows}
    write_json(folder / "30-surgery" / "certificate.json", certificate() | {"alignment": alignment})
    render(folder)
    text = section(page(folder).text, "Alignments tried")
    assert "onnxruntime on cpu, 2 threads, batch 32" in text
    assert "16, 322880.920 ms (0.90 to 0.95)chosen" in text and text.count("chosen") == 1
    assert [row["chosen"] for row in document(folder)["surgery"]["alignment"]["candidates"]] == [False, True]


def test_nothing_is_said_where_the_speed_follows_the_size(tmp_path: Path) -> None:
    models = check()["models"]
    models["dense"]["macs"] = 11_000_000  # 2.2 times compact's; 1.6 is 73 % of it
    folder = write_run(tmp_path / "run", models=models)
    render(folder)
    assert "Not as fast" not in page(folder).text
    assert "Not as fast" not in (folder / "report.md").read_text("utf-8")


def test_markdown_holds_verdict_gates_and_figures(run: Path) -> None:
    text = (run / "report.md").read_text("utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert text.startswith("## digits, a small residual network: inconclusive\n")
    assert "| max\\_accuracy\\_drop | pass | 0.5038 | 1 |  |" in text
    assert "| MACs an image | 20.0 M | 5.00 M | 4.00x |" in text
    rows = [line for line in text.splitlines() if line.startswith("| onnxruntime")]
    assert len(rows) == 3 and all(line.count("|") == 6 for line in rows)
    engines = [line for line in text.split("### Engines")[1].splitlines() if line.startswith("|")]
    assert len(engines) == 6 and {line.count("|") for line in engines} == {7}
    assert "\n\n\n" not in text


@pytest.mark.parametrize(("stages", "absent"), [(STAGES[:1], 7), (STAGES[:3], 4), (STAGES[:7], 3)])
def test_stages_that_did_not_run_are_said_so(tmp_path: Path, stages: tuple[str, ...], absent: int) -> None:
    folder = write_run(tmp_path / "run", stages)
    rendered = render(folder)
    text = page(folder).text
    assert text.count("Not run: ") == absent
    assert text.count("not run") == len(STAGES) - len(stages)
    assert rendered.report.verdict.status == "inconclusive" and rendered.report.latency == {}
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


def test_a_folder_without_stages_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished stage; expected a run folder; run `demport run` first"):
        render(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("70-check/check.json", "{", "check.json: Expecting property name"),
        ("70-check/stage.json", "[]", "stage.json: not an object"),
        ("20-demp/history.jsonl", "1\n", "history.jsonl: "),
        ("30-surgery/certificate.json", "{}", "certificate.json: lacks `groups`"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        render(folder)
    assert message in str(caught.value) and "--redo" in caught.value.remedy
    assert not list(folder.glob("report.*"))


def test_a_figure_that_is_no_number_is_refused(tmp_path: Path) -> None:
    models = check()["models"]
    models["dense"]["accuracy"]["torch"] = math.nan
    folder = write_run(tmp_path / "run", models=models)
    with pytest.raises(UserError, match=r"models\.dense\.accuracy\.torch: .*finite"):
        render(folder)
    write_json(folder / "70-check" / "stage.json", stage("70-check", 7))
    assert not (folder / "report.json").exists()


def test_engines_of_which_some_were_measured_say_so_one_by_one(tmp_path: Path) -> None:
    engines = [engine("dense", "fp32"), engine("compact", "fp16") | {"measured_on": "Example GPU", "reason": None}]
    folder = write_run(tmp_path / "run", engines=engines)
    render(folder)
    text = section(page(folder).text, "Engines")
    assert "not measured: no GPU on this machine" in text and "Example GPU" in text
    assert "None was run here" not in text
    markdown = (folder / "report.md").read_text("utf-8").split("### Engines")[1]
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and {row.count("|") for row in rows} == {8}


def test_engines_before_the_check_and_engines_that_were_not_built(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", STAGES[:7])
    built = {
        key: value for key, value in engine("dense", "fp32").items() if key not in ("model", "reason", "measured_on")
    }
    results = [
        {
            "model": "dense",
            "precision": "fp32",
            "target": "SM86",
            "engine": built | {"path": "a.engine"},
            "reason": None,
        },
        {
            "model": "dense",
            "precision": "fp16",
            "target": "SM86",
            "engine": None,
            "reason": "tensorrt is not installed",
        },
    ]
    write_json(folder / "60-engine" / "stage.json", stage("60-engine", 6) | {"result": {"engines": results}})
    render(folder)
    first, second = document(folder)["engines"]
    assert first["path"] == "60-engine/a.engine" and first["reason"] == "stage 70-check was not run"
    assert second["path"] is None and second["sha256"] is None
    text = section(page(folder).text, "Engines")
    assert "not measured: stage 70-check was not run" in text and "60-engine/stage.json" in text
    assert "not built: tensorrt is not installed" in text
