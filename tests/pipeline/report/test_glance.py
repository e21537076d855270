"""The rows on top of a report: they answer what a reader asks first, and say what is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.report.collect import collect
from pipeline.report.glance import conclusion, fastest, top
from pipeline.report.page import Table
from pipeline.report.page.numbers import GAP
from pipeline.report.render import render
from runtime.errors import UserError
from tests.pipeline.report.check_document import CONDITIONS, ENVIRONMENT, check, engine, gate, latency, why
from tests.pipeline.report.reading import document, page
from tests.pipeline.report.run_folder import STAGES, certificate, stage, write_json, write_run


def rows(run: Path) -> dict[str, tuple[str, str]]:
    """Question -> answer and what it rests on."""
    facts = (table for table in top(collect(run)) if isinstance(table, Table) and not table.heads)
    return {name: (plain(cell.text), plain(cell.more)) for table in facts for (_, name_), (_, cell) in table.cells()
            for name in [name_.text]}  # fmt: skip


def compared(run: Path) -> dict[str, list[str]]:
    """Figure -> dense, compact and change, with what stands under it."""
    table = top(collect(run))[0]
    assert isinstance(table, Table) and list(table.heads) == ["", "Dense", "Compact", "Change"]
    return {
        plain(name.text): [plain(" | ".join(filter(None, (cell.text, cell.more)))) for _, cell in cells]
        for (_, name), *cells in table.cells()
    }


def plain(text: str) -> str:
    return text.replace(GAP, " ")


def test_dense_stands_beside_compact_at_batch_1_and_at_the_gated_batch(tmp_path: Path) -> None:
    assert compared(write_run(tmp_path / "run")) == {
        "Accuracy, 397 images": ["99.50 %", "98.99 %", "-0.50 pp | -1.81 to +0.66"],
        "Latency, batch 1": ["0.210 ms", "0.160 ms", "1.31x | faster, 1.27 to 1.36"],
        "Latency, batch 32": ["1.83 ms", "1.14 ms", "1.60x | faster, 1.56 to 1.65"],
        "MACs an image": ["20.0 M", "5.00 M", "4.00x"],
        "ONNX file, fp32": ["2.71 MiB", "724 KiB", "3.83x"],
    }
    assert compared(write_run(tmp_path / "other", latency={"torch": {"fp32": {"b8": latency(2.0, 1.0, 2.0)}}}))[
        "Latency, batch 8"
    ] == ["2.00 ms", "1.00 ms", "2.00x | faster, 1.96 to 2.05"]


def test_the_first_lines_answer_what_is_asked_first(tmp_path: Path) -> None:
    facts = rows(write_run(tmp_path / "run"))
    remain = "288 remain, 21 of them dead, for alignment"  # 448 - 181 live
    assert facts["Channels"] == ("181 of 448 died (40 %)", remain)
    answer, more = facts["Same function"]
    assert answer == "Yes, while what was measured dead stays dead"
    assert more.startswith(f"compact against the trained network ({STAGES[1]}), not against dense")
    assert "4.1e-15 relative in float64" in more and "3.8e-06 in float32" in more
    assert "1 of 400 test images change class" in more
    answer, more = facts["Speed"]
    assert answer == "Slower: fp16 than fp32 on onnxruntime, 1.8 times at batch 32"  # 2.02 / 1.144
    assert more == "the time fell by much less than the MACs, explained below"
    assert facts["Engines"][0] == "4 of 4 built, none measured here"
    assert facts["Engines"][1] == "tensorrt_rtx fp32, fp16 for SM86; not run: no GPU on this machine"
    assert facts["For a server"] == ("Triton repository in /srv/models", "release 3: digits, digits_fp16")


def test_both_pages_begin_with_them_and_end_the_first_screen_with_the_conclusion(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    render(run)
    first = page(run).text.split("70-check/check.json")[0]
    markdown = plain((run / "report.md").read_text("utf-8")).split("### Gates")[0]
    for question, (answer, _) in rows(run).items():
        assert question in first and answer in first
        assert f"- **{question}**: {answer}".replace("_", "\\_") in markdown
    last = (
        "Do not deploy compact in fp32 on onnxruntime, batch 32 yet, for a gate is undecided: engines (4 engines were"
    )
    assert last in first and last in markdown
    assert "\n\n\n" not in markdown and len(rows(run)) == 5


FASTER = {"onnxruntime": {"fp32": {"b32": latency(2.0, 1.0, 2.0)}, "fp16": {"b32": latency(1.0, 0.5, 2.0)}}}
GATES = [gate("max_accuracy_drop", "pass", 0.5, 1.0, "fine"), gate("min_speedup", "pass", 1.6, 1.5, "1.60 times")]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "Deploy compact in fp32 on onnxruntime, batch 32: it is faster than dense there, keeps its accuracy "
             "within the limit, and every gate passes."),
        ({"latency": {"onnxruntime": {"fp32": {"b32": latency(1.0, 1.0, 1.0)}}}},
         "Deploy compact in fp32 on onnxruntime, batch 32 for its size only: every gate passes, but it is not"),
        ({"latency": FASTER},
         "Deploy compact in fp16 on onnxruntime, batch 32: it is faster than dense there"),
        ({"verdict": {"status": "fail", "gates": [gate("min_speedup", "fail", 1.1, 1.5, "1.10 times; too slow")]}},
         "Do not deploy, for a gate failed: min_speedup (too slow)."),
    ],
    ids=["pass", "not faster", "fp16 is fastest", "fail"],
)  # fmt: skip
def test_the_conclusion_says_whether_and_what_to_deploy(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    run = write_run(tmp_path / "run", **{"verdict": {"status": "pass", "gates": GATES}, **changes})
    assert conclusion(collect(run)).startswith(sentence)
    assert conclusion(collect(write_run(tmp_path / "early", STAGES[:3]))).startswith("Do not deploy yet: 70-check has")


def test_a_form_that_breaks_the_budget_is_not_the_one_to_deploy(tmp_path: Path) -> None:
    models = check()["models"]
    models["compact"]["accuracy"]["fp16"] = 0.5
    run = collect(write_run(tmp_path / "run", latency=FASTER, models=models))
    chosen = fastest(run)
    assert chosen and chosen.precision == "fp32"
    assert "compact in fp32" in conclusion(run)


def test_what_has_not_run_is_not_known(tmp_path: Path) -> None:
    facts = rows(write_run(tmp_path / "run", STAGES[:2]))
    for question, stage_name in (("Channels", "30-surgery"), ("Same function", "30-surgery"), ("Speed", "70-check"),
                                 ("Engines", "60-engine")):  # fmt: skip
        assert facts[question] == ("Not known", f"{stage_name} has not finished")
    answer, more = facts["For a server"]
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
    assert "float64, 3.8e-06" in rows(proven)["Same function"][1]


def test_operators_that_the_law_ran_in_float32_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    law = certificate()["law"] | {"single": ["twice.default"]}
    write_json(run / "30-surgery" / "certificate.json", certificate() | {"law": law})
    assert "in float64 but for twice.default, in float32, 3.8e-06" in rows(run)["Same function"][1]


def test_channels_that_were_cut_during_training_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    training = {"removed": 160, "max_rel_diff": 3e-15, "removals": []}
    changed = certificate() | {"evidence": {"by_proof": 0, "by_measurement": 0}, "groups": [], "training": training}
    write_json(run / "30-surgery" / "certificate.json", changed)
    facts = rows(run)
    assert facts["Channels"][1].endswith("for alignment; 160 were cut out during training")
    answer, more = facts["Same function"]
    assert answer == "Yes: every cut was made during training, and changed nothing"
    assert more.startswith("each removal against the network before it, and compact against the trained network")
    assert "4.1e-15 relative" in more  # the law of the last cut; the removals' 3e-15 is less
    write_json(run / "30-surgery" / "certificate.json", changed | {"training": {**training, "max_rel_diff": 7e-13}})
    assert "7e-13 relative" in rows(run)["Same function"][1]


@pytest.mark.parametrize(
    ("ratio", "edges", "verdict", "change"),
    [
        (1.0, [0.96, 1.05], "not distinguishable", "1.00x | no difference found, 0.96 to 1.05"),
        (0.5, [0.46, 0.55], "slower", "0.50x | slower, 0.46 to 0.55"),
        (1.01, [1.004, 1.02], "not distinguishable", "1.01x | slightly faster, 1.00 to 1.02"),
        (0.99, [0.98, 0.996], "not distinguishable", "0.99x | slightly slower, 0.98 to 1.00"),
    ],
)
def test_no_difference_is_found_only_where_the_interval_holds_1(
    tmp_path: Path, ratio: float, edges: list[float], verdict: str, change: str
) -> None:
    entry = latency(1.0, 1.0 / ratio, ratio)
    entry["speedup"] |= {"verdict": verdict, "ci95": edges}
    entry["protocol"] = {"conditions": {**CONDITIONS, "others_busy_pct": 48.0}}
    run = write_run(
        tmp_path / "run", latency={"onnxruntime": {"fp32": {"b32": entry}}}, why=[why(1.1, ratio)], concurrency=[]
    )
    assert compared(run)["Latency, batch 32"][2] == change
    answer, more = rows(run)["Speed"]
    assert answer.startswith("Slower: compact than dense on onnxruntime fp32") == (ratio < 1)
    assert ("less than 1.06x would not have been found" in more) == (ratio == 1.0)
    assert "doubtful: other processes took 48 % of the cores" in more
    assert ("explained below" in more) == (ratio == 0.5)  # 91 % and 45 % of the MACs ratio
    render(run)
    assert ("no difference found" in page(run).text.split("The network as it was given")[0]) == (ratio == 1.0)


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
    write_json(run / "80-publish" / "stage.json", {"result": {"format": "triton"}, "upstream": {}})
    with pytest.raises(UserError, match="a stage left no 'directory'"):
        collect(run)


def test_a_machine_with_a_gpu_and_a_bundle(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", environment={**ENVIRONMENT, "gpus": ["Example GPU"]})
    record: dict[str, Any] = stage("80-publish", 8)
    record["result"] |= {"format": "bundle"}
    write_json(run / "80-publish" / "stage.json", record)
    assert rows(run)["For a server"][0] == "Bundle for KServe and OpenVINO Model Server in /srv/models"
    assert check()["environment"]["gpus"] == []
