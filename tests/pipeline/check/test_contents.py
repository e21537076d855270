"""What the check depends on beside the run: the reference model and the code of the user's metric."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Check
from pipeline.workspace.fingerprint import of_check
from runtime.errors import UserError


def test_a_reference_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "v1.onnx"
    path.write_bytes(b"one")
    first = of_check(Check(reference=str(path)))
    path.write_bytes(b"two")
    assert set(first) == {"check.reference"} and of_check(Check(reference=str(path))) != first
    assert of_check(Check()) == {}
    with pytest.raises(UserError, match=r"check\.reference: .*absent\.onnx is no file; an ONNX file"):
        of_check(Check(reference=str(tmp_path / "absent.onnx")))


def test_a_metric_is_known_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "my_metric_of_the_check.py"
    module.write_text("def f1(logits, labels): return 1.0\n")
    first = of_check(Check(metric="my_metric_of_the_check:f1"))
    module.write_text("def f1(logits, labels): return 2.0\n")
    assert set(first) == {"check.metric"} and of_check(Check(metric="my_metric_of_the_check:f1")) != first
    with pytest.raises(UserError, match=r"check\.metric is .*there is no module no_such_module_at_all"):
        of_check(Check(metric="no_such_module_at_all:f1"))


def test_a_limit_without_a_metric_is_refused() -> None:
    assert Check.model_validate({"gates": {"max_metric_drop": 0.1}}).limit_pp == 0.1  # of the task's metric
    assert Check.model_validate({"gates": {"max_accuracy_drop": 0.2}}).limit_pp == 0.2
    with pytest.raises(ValueError, match="it is set beside max_accuracy_drop"):
        Check.model_validate({"gates": {"max_metric_drop": 0.1, "max_accuracy_drop": 0.2}})
    usual = Check.model_validate({"gates": {"max_metric_drop": 0.1, "max_accuracy_drop": 1.0}})
    assert usual.limit_pp == 0.1  # a config that was written out has every key
    own = {"metric": "a:b", "gates": {"max_metric_drop": 0.1, "max_accuracy_drop": 0.2}}
    assert Check.model_validate(own).limit_pp == 0.2
    assert Check.model_validate({"metric": "a:b", "gates": {"max_metric_drop": 0.1}}).gates.max_metric_drop == 0.1
