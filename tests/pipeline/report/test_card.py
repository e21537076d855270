"""The model card: it names data, method, figures and limits, and its example runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.report.card import write_card
from runtime.errors import UserError
from tests.pipeline.report.check_document import CONDITIONS, check
from tests.pipeline.report.run_folder import STAGES, write_json, write_run
from tests.runtime.nets import expected, write_onnx


def finished(folder: Path) -> Path:
    """A run whose compact network is that of `nets`, with the pixels' scale 2, mean (1, 0) and deviation (4, 0.5)."""
    run = write_run(folder / "run")
    path = write_onnx(run / "50-simplify" / "compact.onnx")
    model = onnx.load(path)
    told = {"classes": ["cat", "dog", "cow", "<b>"], "mean": [1.0, 0.0], "std": [4.0, 0.5], "scale": 2}
    onnx.helper.set_model_props(model, {f"demport.{key}": json.dumps(value) for key, value in told.items()})
    onnx.save(model, path)
    return run


def test_the_card_names_what_a_reader_needs(tmp_path: Path) -> None:
    run = finished(tmp_path)
    text = write_card(run).read_text("utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert (run / "README.md").is_file() and text.startswith("---\npipeline_tag: image-classification\n")
    assert "Classes: cat, dog, cow, &lt;b&gt;." in text
    assert "each pixel divided by 2, less the mean [1.0, 0.0]" in text
    assert "| Accuracy, 397 images | 99.50 % | 98.99 % | -0.50 pp (-1.81 to +0.66) |" in text
    assert "**inconclusive**. Do not deploy compact in fp32" in text
    assert "- Not measured on a GPU." in text and "- Gate engines: inconclusive" in text
    assert "eight (100.00 % to 95.00 % of 40)" in text
    assert re.search(r"\| `50-simplify/compact\.onnx` \| .* \| `[0-9a-f]{64}` \|", text)


def test_a_busy_machine_is_among_the_limits(tmp_path: Path) -> None:
    run = finished(tmp_path)
    told = check()
    told["latency"]["onnxruntime"]["fp32"]["b32"]["protocol"]["conditions"] = {**CONDITIONS, "others_busy_pct": 87.0}
    write_json(run / "70-check" / "check.json", told)
    text = write_card(run).read_text("utf-8")
    assert "- The latencies are doubtful: other processes took 87 % of the cores while they were measured." in text
    write_json(run / "70-check" / "check.json", check())
    assert "doubtful" not in write_card(run).read_text("utf-8")


def test_the_example_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(tmp_path)
    code = re.findall(r"```python\n(.*?)```", write_card(run).read_text("utf-8"), re.DOTALL)
    assert len(code) == 1
    monkeypatch.chdir(run)
    pixels = np.random.default_rng(0).uniform(0, 2, (5, 2, 3, 3))
    names = {"pixels": pixels}
    exec(code[0], names)
    images = (pixels / 2 - np.array([1.0, 0.0]).reshape(-1, 1, 1)) / np.array([4.0, 0.5]).reshape(-1, 1, 1)
    np.testing.assert_allclose(names["logits"], expected(images.astype(np.float32)), atol=1e-5)
    assert names["classes"].shape == (5,)


def test_a_run_without_an_exported_model_has_no_card(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", STAGES[:3])
    with pytest.raises(UserError, match=r"compact\.onnx is not there; a run with an exported model"):
        write_card(run)
    whole = finished(tmp_path / "other")
    (whole / "50-simplify" / "compact.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="an ONNX file that demport exported; export it again"):
        write_card(whole)
    assert not (run / "README.md").exists() and not (whole / "README.md").exists()
