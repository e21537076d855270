"""A task is one file and one row: the one of docs/extending.md, which nothing in the project has a line for."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.file import load_config
from pipeline.config.task import task_of
from pipeline.line import Order, run
from pipeline.progress import Silent
from runtime.errors import UserError
from runtime.measure.judged import Judging
from tests.pipeline.tiny import CONFIG

REPOSITORY = Path(__file__).parents[3]
KNOW_NO_TASK = (
    *("pipeline/training/loop.py", "pipeline/training/train.py", "runtime/measure/accuracy.py"),
    *("pipeline/surgery/proof/evidence.py", "pipeline/check", "pipeline/stages", "export/precision"),
)


def a_task_in_the_documentation() -> str:
    return (REPOSITORY / "docs" / "extending.md").read_text().partition("## A task\n")[2]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documentation's task, in a file beside the config."""
    code = re.search(r"```python\n(.*?)```", a_task_in_the_documentation(), re.DOTALL)
    assert code
    path = tmp_path / f"closeness_{tmp_path.name.rpartition('_')[2]}_{len(tmp_path.name)}.py"
    path.write_text(code[1])
    monkeypatch.chdir(tmp_path)
    return path


def config_file(folder: Path, task: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(CONFIG + f"task: {task}\n")
    return path


def test_the_documentation_s_task_scores_and_trains(mine: Path, tmp_path: Path) -> None:
    task = task_of(load_config(config_file(tmp_path, f"{{name: {mine.name}:value, largest: 12}}")).task)
    outputs, targets = torch.tensor([[2.0, 4.0], [9.0, 9.0], [90.0, 0.0]]), torch.tensor([3, 3, 3])
    assert task.scores(outputs.numpy(), targets.numpy()).tolist() == [1.0, 0.5, 0.0]
    assert task.loss(outputs, targets).item() == (0 + 36 + 42**2) / 3
    assert task.answers(outputs.numpy()) is None and task.metric == "closeness"


def test_it_runs_to_the_check_and_is_judged_by_its_score(mine: Path, tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, f"{{name: {mine.name}:value, largest: 12}}"))
    task = task_of(config.task)
    outputs, targets = torch.tensor([[2.0, 4.0], [9.0, 9.0], [90.0, 0.0]]), torch.tensor([3, 3, 3])
    assert task.score(outputs, targets).tolist() == [1.0, 0.5, 0.0]
    outcome = run(config, Order(tmp_path / "run", device="cpu", config_folder=tmp_path), Silent())
    assert outcome is not None and outcome.status in ("pass", "inconclusive")
    document = json.loads((tmp_path / "run" / "70-check" / "check.json").read_text())
    rows = (tmp_path / "run" / "10-dense" / "history.jsonl").read_text().splitlines()
    accuracy = document["models"]["dense"]["accuracy"]
    assert accuracy["torch"] == pytest.approx(json.loads(rows[-1])["closeness"], abs=1e-4)
    assert 0 < accuracy["onnx"] < 1 and document["classes"] == []
    assert "bootstrap" in document["accuracy_difference"]["method"]
    assert (tmp_path / "run" / "report.json").is_file()


def test_the_documentation_s_pooled_task_is_macro_f1(mine: Path, tmp_path: Path) -> None:
    """Against scikit-learn, on the images and on a sample that has one of them three times."""
    from sklearn.metrics import f1_score

    code = re.findall(r"```python\n(.*?)```", a_task_in_the_documentation(), re.DOTALL)[1]
    path = mine.with_name(f"pooled_{mine.name}")
    path.write_text(code)
    task = task_of(load_config(config_file(tmp_path, f"{{name: {path.name}:macro_f1}}")).task)
    labels = np.random.default_rng(0).integers(0, 3, 60)
    logits = np.random.default_rng(1).normal(size=(60, 3)) + 2 * np.eye(3)[labels]
    judging = Judging(task.judge())
    judging.add(logits[:20], labels[:20])
    judging.add(logits[20:], labels[20:])
    judged, answers = judging.judged(), logits.argmax(1)
    assert judged.value == pytest.approx(f1_score(labels, answers, average="macro"))
    counts = np.ones((1, 60), np.int64)
    counts[0, 7] = 3
    drawn = np.repeat(np.arange(60), counts[0])
    expected = f1_score(labels[drawn], answers[drawn], average="macro")
    assert judged.metric(judged.statistics, counts)[0] == pytest.approx(expected)
    assert judged.against(judged).difference_pp == 0 and task.metric == "macro_F1"
    assert judged.interval is not None and judged.interval[0] < judged.value < judged.interval[1]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{name: clasification}", "task.name is clasification; one of classification, .*; try classification"),
        ("{name: mine.py:value}", "task.name: there is no file mine.py"),
        ("{label_smoothing: 2}", "`task.label_smoothing` is 2"),
        ("{smoothing: 0.1}", "unknown key .*task.smoothing"),
    ],
)
def test_mistakes_are_one_line_before_any_work(tmp_path: Path, task: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(config_file(tmp_path, task))
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_the_documentation_s_config_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "tasks.md").read_text(), re.DOTALL)
    configs = []
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        configs.append(load_config(path))
    assert configs and configs[0].task.name == "segmentation" and configs[0].check.limit_pp == 1.0


def test_nothing_else_knows_what_a_task_is() -> None:
    paths = [path for name in KNOW_NO_TASK for path in sorted((REPOSITORY / name).rglob("*.py")) or [REPOSITORY / name]]
    names = {
        (path, node.attr if isinstance(node, ast.Attribute) else node.id)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute | ast.Name)
    }
    assert len(paths) > 20 and len(names) > 500
    assert not [(path.name, name) for path, name in names if name in ("argmax", "cross_entropy")]
