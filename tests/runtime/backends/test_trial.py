"""A file is tried in a process of its own: what does not run, or never ends, is one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from pipeline import cli
from runtime.backends.trial import Order, demand_runs
from runtime.errors import UserError
from tests.runtime.nets import write_onnx

HUGE = 1 << 31


def relu(path: Path, shape: Sequence[str | int]) -> str:
    """y = relu(x); without a shape a constant, and no input."""
    x, y = (helper.make_tensor_value_info(name, 1, shape or [1]) for name in "xy")
    constant = helper.make_tensor("c", TensorProto.FLOAT, [1], [0.0])
    node = helper.make_node("Relu", ["x"], ["y"]) if shape else helper.make_node("Constant", [], ["y"], value=constant)
    body = helper.make_graph([node], "g", [x] if shape else [], [y])
    save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return str(path)


def test_what_runs_passes_and_another_shape_does_not(tmp_path: Path) -> None:
    path = str(write_onnx(tmp_path / "a.onnx"))
    demand_runs(Order(path, device="cpu"))
    with pytest.raises(UserError, match="is fed the shape \\(2, 9\\)"):
        demand_runs(Order(path, device="cpu", shape=(2, 9)))


def test_time_is_limited_and_a_crash_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_onnx(tmp_path / "a.onnx"))
    with pytest.raises(UserError, match=r"does not run within 0\.01 s; a network that runs"):
        demand_runs(Order(path, device="cpu"), limit_s=0.01)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(UserError, match="ends the process that runs it with exit code 1; "):
        demand_runs(Order(path, device="cpu"))


def test_bench_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none, big = relu(tmp_path / "none.onnx", []), relu(tmp_path / "big.onnx", ["b", HUGE, HUGE])
    for arguments, message in (
        ([none], "none.onnx takes no inputs; a network of images"),
        ([big], "takes 18,446,744,073,709,551,616 bytes; at most 4,294,967,296"),
        ([none, "--time-limit", "inf"], "--time-limit"),
        ([none, "--precision", "nan"], "'--precision'"),
    ):
        assert cli.command_line(["bench", *arguments, "--batch", "1"]) == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1
