"""The rows on top of a report: they answer what a reader asks first, and say what is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.report.collect import collect
from pipeline.report.glance import glance
from pipeline.report.numbers import GAP
from pipeline.report.render import render
from runtime.errors import UserError
from tests.pipeline.report.check_document import CONDITIONS, ENVIRONMENT, check, engine, gate, latency, why
from tests.pipeline.report.page import document, page
from tests.pipeline.report.run_folder import STAGES, certificate, stage, write_json, write_run


def rows(run: Path) -> dict[str, tuple[str, str]]:
    """Question -> answer and what it rests on."""
    told = glance(collect(run))
    return {row.question: (row.answer.replace(GAP, " "), row.more.replace(GAP, " ")) for row in told}


def test_the_first_lines_answer_what_is_asked_first(tmp_path: Path) -> None:
    found = rows(write_run(tmp_path / "run"))
    kept = "288 are left, 21 of them dead and kept for alignment"  # 448 - 181 live
    assert found["Channels"] == ("181 of 448 channels died (40 %)", kept)
    answer, more = found["Same function"]
    assert answer == "Yes, while what was measured dead stays dead"
    assert "4.1e-15 in float64" in more and "3.8e-06 in float32" in more and "1 of 400 test images change class" in more
    assert found["Accuracy"] == (
        "-0.50 percentage points (95 % interval -1.81 to +0.66)",
        "98.99 % against 99.50 % dense, on the same 397 test images",
    )
    answer, more = found["Speed"]
    assert answer == "1.60x, faster (95 % interval 1.56 to 1.65)"
    assert (
        more == "1.14 ms against 1.83 ms on onnxruntime fp32, batch 32; 40 % of what the MACs fell by, explained below"
    )
    assert found["Size"][0] == "MACs an image fell from 20.0 M to 5.00 M (4.00x)"
    assert found["Engines"][0] == "4 of 4 built, none measured here"
    assert found["Engines"][1] == "tensorrt_rtx fp32, fp16 for SM86; not run: no GPU on this machine"
    assert found["For a server"] == ("Triton repository in /srv/models", "release 3: digits, digits_fp16")


def test_both_pages_begin_with_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    render(run)
    top = page(run).text.split("Gates")[0]
    markdown = (run / "report.md").read_text("utf-8").replace(GAP, " ").split("### Gates")[0]
    for question, (answer, _) in rows(run).items():
        assert question in top and answer.replace(GAP, " ") in top
        assert f"- **{question}**: {answer}".replace("_", "\\_") in markdown
    assert "\n\n\n" not in markdown and len(rows(run)) == 7


def test_what_has_not_run_is_not_known(tmp_path: Path) -> None:
    found = rows(write_run(tmp_path / "run", STAGES[:2]))
    for question, stage_name in (("Channels", "30-surgery"), ("Same function", "30-surgery"), ("Accuracy", "70-check"),
                                 ("Speed", "70-check"), ("Size", "70-check"), ("Engines", "60-engine")):  # fmt: skip
        assert found[question] == ("Not known", f"{stage_name} has not finished")
    answer, more = found["For a server"]
    assert answer == "No Triton repository yet"
    assert more == f"demport publish {tmp_path / 'run'} DIR writes one"
    assert rows(write_run(tmp_path / "later", STAGES[:7]))["Engines"][0] == "None was asked for"


def test_a_function_that_is_not_the_same_is_not_said_to_be(tmp_path: Path) -> None:
    gates = [gate("max_abs_diff", "fail", 1.0, 1e-5, "")]
    run = write_run(tmp_path / "bad", verdict={"status": "fail", "gates": gates})
    assert rows(run)["Same function"][0] == "In float64 only: in float32 the difference is beyond its limit"
    unchecked = write_run(tmp_path / "unchecked")
    write_json(unchecked / "30-surgery" / "certificate.json", certificate() | {"law": None})
    assert rows(unchecked)["Same function"] == ("Not checked", "the cut was asked not to check it")
    proven = write_run(tmp_path / "proven")
    law = certificate()["law"] | {"held": False}
    write_json(proven / "30-surgery" / "certificate.json", certificate() | {"law": law})
    assert rows(proven)["Same function"][0] == "Yes, by proof from the weights"
    assert "float64, largest" in rows(proven)["Same function"][1]


def test_operators_that_the_law_ran_in_float32_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    law = certificate()["law"] | {"single": ["twice.default"]}
    write_json(run / "30-surgery" / "certificate.json", certificate() | {"law": law})
    assert "in float64 but for twice.default, in float32, largest" in rows(run)["Same function"][1]


def test_channels_that_were_cut_during_training_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    training = {"removed": 160, "max_rel_diff": 3e-15, "removals": []}
    told = certificate() | {"evidence": {"by_proof": 0, "by_measurement": 0}, "groups": [], "training": training}
    write_json(run / "30-surgery" / "certificate.json", told)
    found = rows(run)
    assert found["Channels"][1].endswith("kept for alignment; 160 were cut out during training already")
    assert found["Same function"][0].startswith("Yes: cut during training, where no cut changed more than 3")


@pytest.mark.parametrize(
    ("ratio", "answer"),
    [
        (1.0, "1.00x, no difference found (95 % interval 0.96 to 1.05)"),
        (0.5, "0.50x, slower (95 % interval 0.46 to 0.55)"),
    ],
)
def test_a_compact_network_that_is_not_faster(tmp_path: Path, ratio: float, answer: str) -> None:
    entry = latency(1.0, 1.0 / ratio, ratio)
    if ratio < 1:
        entry["speedup"]["verdict"] = "slower"
    entry["protocol"] = {"conditions": {**CONDITIONS, "others_busy_pct": 48.0}}
    run = write_run(tmp_path / "run", latency={"onnxruntime": {"fp32": {"b32": entry}}}, why=[why(1.1, ratio)])
    found, more = rows(run)["Speed"]
    assert found == answer
    assert ("less than 1.06x would not have been found" in more) == (ratio == 1.0)
    assert "doubtful: other processes took 48 % of the cores" in more
    assert ("explained below" in more) == (ratio == 0.5)  # 91 % and 45 % of the MACs ratio


def test_engines_of_which_some_ran_and_one_was_not_built(tmp_path: Path) -> None:
    engines = [
        engine("dense", "fp32") | {"measured_on": "Example GPU", "reason": None},
        engine("compact", "fp32"),
        engine("compact", "fp16") | {"path": None, "flavour": None, "reason": "no space left"},
    ]
    answer, more = rows(write_run(tmp_path / "run", engines=engines))["Engines"]
    assert answer == "2 of 3 built, 1 measured on Example GPU"
    assert more == "tensorrt_rtx fp32 for SM86; not built: no space left; not run: no GPU on this machine"


def test_a_run_that_changed_after_it_was_published_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_json(run / "50-simplify" / "stage.json", stage("50-simplify", 4) | {"digest": "another"})
    assert rows(run)["For a server"][1].endswith("the run has changed since: publish it again with --replace")
    render(run)
    assert document(run)["published"] == {
        "directory": "/srv/models", "format": "triton", "serial": 3, "models": ["digits", "digits_fp16"],
        "current": False,
    }  # fmt: skip
    (run / "80-publish" / "stage.json").write_text('{"result": {"format": "triton"}, "upstream": {}}')
    with pytest.raises(UserError, match=r"80-publish/stage\.json: KeyError"):
        collect(run)


def test_a_machine_with_a_gpu_and_a_bundle(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", environment={**ENVIRONMENT, "gpus": ["Example GPU"]})
    told: dict[str, Any] = stage("80-publish", 8)
    told["result"] |= {"format": "bundle"}
    write_json(run / "80-publish" / "stage.json", told)
    assert rows(run)["For a server"][0] == "Bundle for KServe and OpenVINO Model Server in /srv/models"
    assert check()["environment"]["gpus"] == []
