"""Which files a user's module is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.workspace.fingerprint import code_of, model_files, of_method
from pipeline.workspace.modules import files_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mod_net.py").write_text("import torch\nfrom mod_blocks.small import K\ndef net(): ...\n")
    (tmp_path / "mod_blocks").mkdir()
    (tmp_path / "mod_blocks" / "__init__.py").write_text("")
    (tmp_path / "mod_blocks" / "small.py").write_text(
        "def f():\n    import mod_deep\nimport runtime, mod_net, nowhere\n"
    )
    (tmp_path / "mod_deep.py").write_text("K = 8\n")
    return tmp_path


def test_what_it_imports_counts_but_not_what_is_installed(folder: Path) -> None:
    files = files_of("mod_net")
    assert files is not None
    assert [name for name, _ in files] == ["mod_blocks/__init__.py", "mod_blocks/small.py", "mod_deep", "mod_net"]
    assert files_of("nowhere_at_all") is None


@pytest.mark.parametrize("name", ["mod_net.py", "mod_blocks/small.py", "mod_deep.py"])
def test_a_change_of_any_of_them_is_noticed(folder: Path, name: str) -> None:
    first = code_of("mod_net:net", "model.name")
    assert code_of("mod_net:net", "model.name") == first
    (folder / name).write_text((folder / name).read_text() + "# changed\n")
    assert code_of("mod_net:net", "model.name") != first


def test_the_tensors_beside_an_onnx_file_belong_to_it(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx", **options)  # type: ignore[arg-type]
    assert model_files(tmp_path / "m.onnx") == [tmp_path / "m.onnx", tmp_path / "m.data"]
    onnx.save(onnx.load(tmp_path / "m.onnx"), tmp_path / "whole.onnx")
    assert model_files(tmp_path / "whole.onnx") == [tmp_path / "whole.onnx"]


def test_a_method_of_ones_own_is_its_file_and_what_it_imports(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "mine.py").write_text("import mod_deep\ndef calm(options, training): ...\n")
    first = of_method("mine.py:calm")
    assert first.keys() == {"sparse.code"}
    (folder / "mod_deep.py").write_text("K = 9\n")
    second = of_method("mine.py:calm")
    (folder / "mine.py").write_text("import mod_deep\ndef calm(options, training): return None\n")
    assert len({first["sparse.code"], second["sparse.code"], of_method("mine.py:calm")["sparse.code"]}) == 3
    assert of_method("demp") == {}
