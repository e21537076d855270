"""What the sections on the cut and on the engines say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.check.reading import typed
from pipeline.report.collect import collect
from pipeline.report.document import EngineProof
from pipeline.report.networks import proven
from pipeline.report.render import render
from tests.pipeline.report.check_document import engine
from tests.pipeline.report.reading import document, page, section
from tests.pipeline.report.run_folder import SIMPLIFIED, STAGES, certificate, stage, write_json, write_run

PROOF: dict[str, Any] = {
    "source": "network", "precision": "fp16", "share": 1.0, "products": {"fp16": 54}, "others": [], "unknown": 0,
    "reformats": 0, "casts": 2, "quantizes": 0,
}  # fmt: skip


def test_certificate_says_what_was_proved(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    render(run)
    text = section(page(run).text, "Certificate of the cut")
    assert "Largest relative difference4.1e-15, allowed 1e-09" in text
    assert "Removed by proof from the weights5" in text
    assert "Removed by measurement155" in text  # with the 5 by proof all 160 that are gone
    assert "1,400 training images; 2 channels of the last census were alive" in text
    assert "random, batch 2; 8 test images" in text
    assert "Approximate" not in text
    assert "Outputs against the trained network, 400 test images0.02 at most, 1 answers changed" in text
    assert document(run)["surgery"]["evidence"] == {"by_proof": 5, "by_measurement": 155}
    assert document(run)["surgery"]["frozen"] == [{"where": "fc", "reason": "output of the network", "channels": 10}]


def test_certificate_counts_what_the_training_cut_out(tmp_path: Path) -> None:
    without = write_run(tmp_path / "without")
    render(without)
    assert "Removed during training" not in section(page(without).text, "Certificate of the cut")
    run = write_run(tmp_path / "run")
    training = {"removed": 1160, "max_rel_diff": 3e-15, "removals": []}
    write_json(run / "30-surgery" / "certificate.json", certificate() | {"training": training})
    render(run)
    text = section(page(run).text, "Certificate of the cut")
    assert "Removed during training, dead in a census1,160, no cut changed more than 3e-15" in text
    assert "Largest relative difference4.1e-15, allowed 1e-09" in text  # the last cut's, for it is the larger
    training |= {"max_rel_diff": 7e-13}
    write_json(run / "30-surgery" / "certificate.json", certificate() | {"training": training})
    render(run)
    assert "Largest relative difference7e-13, allowed 1e-09" in page(run).text


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
            "engine": built | {"path": "a.engine", "proof": PROOF},
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
    assert (first["proof"]["products"], second["proof"]) == ({"fp16": 54}, None)
    assert "54 fp16; 2 casts; from the network" in text
    assert "| 54 fp16; 2 casts; from the network |" in (folder / "report.md").read_text("utf-8")


def test_engines_of_which_some_were_measured_say_so_one_by_one(tmp_path: Path) -> None:
    engines = [engine("dense", "fp32"), engine("compact", "fp16") | {"measured_on": "Example GPU", "reason": None}]
    folder = write_run(tmp_path / "run", engines=engines)
    render(folder)
    text = section(page(folder).text, "Engines")
    assert "not measured: no GPU on this machine" in text and "Example GPU" in text
    assert "None was run here" not in text
    markdown = (folder / "report.md").read_text("utf-8").split("### Engines")[1]
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and {row.count("|") for row in rows} == {9}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "54 fp16; 2 casts; from the network"),
        ({"casts": 0, "quantizes": 31}, "54 fp16; 31 quantisations; from the network"),
        (
            {"share": 0.875, "products": {"fp32": 3, "int8": 50}, "source": "engine", "reformats": 4, "unknown": 1},
            "3 fp32, 50 int8 (87.5\N{NO-BREAK SPACE}% of the work); 1 of unknown type; 2 casts; 4 reformats; "
            "from the engine",
        ),
    ],
)
def test_the_types_of_an_engine_in_a_line(changes: dict[str, Any], text: str) -> None:
    assert proven(typed(EngineProof, {**PROOF, **changes}, Path("x"))) == text
    assert proven(None) == ""


def test_an_engine_of_the_check_has_the_proof_of_its_building(tmp_path: Path) -> None:
    entries = [engine(m, "fp16") | {"target": t} for m in ("dense", "compact") for t in ("SM86", "SM89")]
    built: list[dict[str, Any]] = [
        {**{key: entry[key] for key in ("model", "precision", "target")}, "engine": {"proof": {**PROOF, "casts": n}}}
        for n, entry in enumerate(entries)
    ]
    built[2]["engine"] = None
    folder = write_run(tmp_path / "run", engines=entries)
    write_json(folder / "60-engine" / "stage.json", stage("60-engine", 6) | {"result": {"engines": built[::-1]}})
    proofs = [one.proof for one in collect(folder).report.engines]
    assert [proof and proof.casts for proof in proofs] == [0, 1, None, 3]
    assert [one.proof for one in collect(write_run(tmp_path / "other")).report.engines] == [None] * 4


def test_a_row_for_each_graph(tmp_path: Path) -> None:
    dense, full, low = collect(write_run(tmp_path / "run")).report.graphs
    assert (dense.model, full.precision, low.precision) == ("dense", "fp32", "fp16")
    assert (full.made_by, full.opset, full.nodes_before, full.nodes) == ("onnxslim", 20, 30, 21)
    assert full.refused == {"operator set 18": "no Gelu", **SIMPLIFIED["refused"]}  # type: ignore[dict-item]
    assert (full.drop_pp, full.holds, full.in_fp32) == (None, None, ())
    assert (low.drop_pp, low.images, low.holds, low.nodes) == (0.5, 400, True, 21)
    assert [(layer.weight, layer.error) for layer in low.in_fp32] == [("layer1.0.conv1", 0.25)]
    assert collect(write_run(tmp_path / "early", STAGES[:4])).report.graphs == ()


def test_the_words_of_the_page_are_explained_on_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    render(run)
    words = section(page(run).text, "Words")
    assert all(word in words for word in ("compact", "MACs", "p50, p95, p99", "95 % interval", "gate", "law", "hop"))
    assert words.count("channel") >= 3
