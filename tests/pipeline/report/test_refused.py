"""Run folders that were damaged or forged: refused in one line, and no report is written."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.collect import IMAGE_BYTES
from pipeline.report.render import render
from runtime.errors import UserError
from tests.pipeline.report.check_document import check
from tests.pipeline.report.run_folder import STAGES, write_json, write_run


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("removed", r"17\.png: No such file"),
        ("another", r"17\.png: it was changed after it was written"),
        ("linked", r"17\.png: it was changed after it was written"),
        ("pipe", r"17\.png: no plain file"),
        ("large", rf"17\.png: over {IMAGE_BYTES} bytes"),
    ],
)
def test_an_image_that_the_check_did_not_write_gets_into_no_report(tmp_path: Path, harm: str, message: str) -> None:
    folder = write_run(tmp_path / "run")
    secret, image = tmp_path / "secret", folder / "70-check" / "worst" / "17.png"
    secret.write_bytes(b"secret")
    image.unlink()
    if harm == "another":
        image.write_bytes(b"secret")
    elif harm == "linked":
        image.symlink_to(secret)
    elif harm == "pipe":
        os.mkfifo(image)
    elif harm == "large":
        image.write_bytes(b"\0" * (IMAGE_BYTES + 1))
    with pytest.raises(UserError, match=message) as caught:
        render(folder)
    assert "\n" not in str(caught.value) and not list(folder.glob("report.*"))


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "worst/other.png", "stage.json"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """Also where check.json was sealed again by whoever changed it."""
    (tmp_path / "secret").write_bytes(b"secret")
    worst = check()["worst"]
    folder = write_run(tmp_path / "run", worst={**worst, "images": [{**worst["images"][0], "file": name}]})
    with pytest.raises(UserError, match="the stage did not write it"):
        render(folder)
    assert not list(folder.glob("report.*"))


def test_a_folder_without_stages_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished stage; expected a run folder; run `demport run` first"):
        render(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (f"{STAGES[7]}/check.json", "{", "check.json: it was changed after it was written"),
        (f"{STAGES[7]}/stage.json", "[]", "stage.json: not an object"),
        (f"{STAGES[7]}/stage.json", "{}", "stage.json: it was changed after it was written"),
        (f"{STAGES[1]}/history.jsonl", "1\n", "history.jsonl: it was changed after it was written"),
        (f"{STAGES[2]}/certificate.json", "{}", "certificate.json: it was changed after it was written"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        render(folder)
    assert message in str(caught.value) and "--redo" in caught.value.remedy
    assert not list(folder.glob("report.*"))


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("30-surgery/certificate.json", {}, "certificate.json: lacks `evidence`"),
        ("70-check/check.json", [], "check.json: not an object"),
        ("70-check/check.json", {"schema": 1}, "check.json: lacks `environment`"),
    ],
)
def test_a_file_that_lacks_a_part_is_named_with_it(tmp_path: Path, file: str, value: Any, message: str) -> None:
    folder = write_run(tmp_path / "run")
    write_json(folder / file, value)
    with pytest.raises(UserError) as caught:
        render(folder)
    assert message in str(caught.value) and not list(folder.glob("report.*"))


def test_figures_that_cannot_be_are_refused(tmp_path: Path) -> None:
    def refused(where: str, **changes: Any) -> None:
        folder = write_run(tmp_path / where / "run", **changes)
        with pytest.raises(UserError) as caught:
            render(folder)
        assert where in str(caught.value), caught.value
        assert "\n" not in str(caught.value) and not (folder / "report.json").exists()

    models, latency = check()["models"], check()["latency"]
    models["compact"]["accuracy"]["torch"] = 1.4
    refused("models.compact.accuracy.torch: 1.4 is not within 0 and 1", models=models)
    latency["onnxruntime"]["fp32"]["b32"]["speedup"].update(ratio=1.0, ci95=[0.0, 0.0])
    refused("does not hold the ratio", latency=latency)
    latency = check()["latency"]
    latency["onnxruntime"]["fp32"]["b32"]["dense"]["samples_ms"] = [None]
    refused("samples_ms.0", latency=latency)
    latency = check()["latency"]
    latency["onnxruntime"]["fp32"]["b1"]["compact"]["p50_ms"] = -1.0
    refused("p50_ms: -1.0 is negative", latency=latency)


def test_a_figure_that_is_no_number_is_refused(tmp_path: Path) -> None:
    models = check()["models"]
    models["dense"]["accuracy"]["torch"] = math.nan
    folder = write_run(tmp_path / "run", models=models)
    with pytest.raises(UserError, match=r"check\.json: .*(NaN|finite)"):
        render(folder)
    assert not (folder / "report.json").exists()
