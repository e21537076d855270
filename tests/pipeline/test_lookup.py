"""Names a user writes: the nearest known one, and `module:function`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipeline.lookup import function_named, nearest
from runtime.errors import UserError


def test_nearest_names_come_best_first_and_else_the_first_few() -> None:
    known = ["resnet18", "resnet20", "vgg16", "alexnet"]
    assert nearest("resnet19", known).split(", ")[0] in ("resnet18",)
    assert nearest("zzz", known) == "alexnet, resnet18, resnet20"
    assert nearest("vgg", known, 1) == "vgg16"
    assert nearest("x", []) == ""


def test_a_function_is_found_by_module_and_name() -> None:
    assert function_named("json:dumps", "model.name") is json.dumps
    assert function_named("os.path:join", "model.name")("a", "b") == str(Path("a") / "b")


def test_the_current_directory_comes_after_everything_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("dumps = 3\n")
    (tmp_path / "demport_test_here.py").write_text("def f():\n    return 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert function_named("demport_test_here:f", "model.name")() == 5
    assert sys.path[-1] == str(tmp_path)
    monkeypatch.delitem(sys.modules, "json")
    assert callable(function_named("json:dumps", "model.name"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("json", 'model.name is "json"; a name of the form "package.module:function"; mend model.name'),
        ("json:", 'model.name is "json:"'),
        ("json:dumps()", "a name of the form"),
        ("os; import x:f", "a name of the form"),
        ("demport_no_such.part:f", "there is no module demport_no_such;"),
        ("json:dump_s", "json has no function dump_s; one of its functions, e.g. dumps, dump"),
        ("json:__name__", "has no function __name__"),
    ],
)
def test_a_wrong_name_is_said(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        function_named(spec, "model.name")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
