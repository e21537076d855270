"""`demport prune`: the config it writes, the alignment it chooses, and the whole line from a checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from pipeline import cli
from pipeline.commands.prune import RECIPE, alignment, config_of
from pipeline.config.file import load_config
from pipeline.progress import Silent
from runtime.errors import UserError
from tests.conftest import REPOSITORY
from tests.pipeline.models.test_models import GREY, made

QUICK = ("threads=1", "sparse.batch_size=700", "surgery.align=1", "check.batch_sizes=[8]", "check.gate_batch=8",
         "check.threads=1", "check.min_blocks=5", "check.time_limit_s=1", "check.streams=[]",
         "check.gates.min_speedup=0", "check.gates.max_accuracy_drop=100")  # fmt: skip


class Noted(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    torch.save({"state_dict": made("demo:resnet", GREY, width=8).state_dict()}, tmp_path / "w.pth")
    return {"model.name": "demo:resnet", "model.weights": str(tmp_path / "w.pth"), "data.source": "digits"}


def test_the_alignment_leaves_every_layer_eight_steps() -> None:
    assert [alignment(widths) for widths in ([128, 256], [64, 128], [64, 124], [16, 32, 64], [128, 64])] == [
        16, 8, 1, 1, 8,
    ]  # fmt: skip
    assert alignment([72, 80]) == 8 and alignment([68, 80]) == 1


def test_the_recipe_is_a_config_that_overrides_change_and_a_clash_is_told(keys: dict[str, str]) -> None:
    told = Noted()
    settings = config_of(keys, "macs=0.5", ("model.args.width=8", "sparse.lr=0.01"), told)
    section = settings.sparse
    assert (settings.dense.epochs, settings.starts_dense, settings.surgery.align, told.notes) == (0, True, 1, [])
    assert settings.distill is not None and (section.lr, section.cost) == (0.01, "macs")
    assert section.asked is not None
    assert (section.asked.macs, section.asked.reached_at) == (0.5, 0.25)
    config_of(keys, "channels=0.5", ("model.args.width=8", "surgery.align=16"), told)
    assert len(told.notes) == 1 and "surgery.align=16 clashes with the target" in told.notes[0]
    for target in ("macs", "size=3", "macs="):
        with pytest.raises(UserError, match=f"--target {target}; one of macs, channels, latency_ms"):
            config_of(keys, target, (), told)
    with pytest.raises(UserError, match="classes"):
        config_of({**keys, "model.args": {"width": 8, "num_classes": 7}}, "macs=0.5", (), told)


def test_the_line_runs_from_a_checkpoint(
    keys: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, words = tmp_path / "run", [word for text in ("model.args.width=8", *QUICK) for word in ("--set", text)]
    code = cli.command_line(
        ["prune", "--model", "demo:resnet", "--weights", keys["model.weights"], "--data", "digits",
         "--target", "macs=0.5", "--epochs", "4", "--out", str(run), *words])  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert json.loads(shown.out.splitlines()[-1])["status"] == "pass"
    check = json.loads((run / "70-check" / "check.json").read_text())
    assert (run / "10-dense" / "history.jsonl").read_bytes() == b""
    assert load_config(run / "config.yaml").dense.epochs == 0
    macs = {role: check["models"][role]["macs"] for role in ("dense", "compact")}
    assert macs["compact"] / macs["dense"] == pytest.approx(0.5, abs=0.03)


def test_the_guide_says_the_recipe_and_its_yaml_is_a_config(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs" / "from-a-checkpoint.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `?([\w.]+)`? \|", guide, re.MULTILINE))
    assert {key: str(value) for key, value in RECIPE.items() if key != "name"} == {
        key: value for key, value in rows.items() if key in RECIPE
    }
    block, *_ = re.findall(r"^```yaml\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)
    (tmp_path / "c.yaml").write_text(block, encoding="utf-8")
    settings = load_config(tmp_path / "c.yaml")
    assert settings.starts_dense and settings.model.new_head and settings.distill is not None
