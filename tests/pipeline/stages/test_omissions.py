"""What `demport publish` leaves out, and the reasons it gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from export.serving.files import Model
from export.serving.recorded import RESPONSE
from pipeline.results import CastGraphs, EngineResult, Engines, Omission, Served
from pipeline.stages import omissions as left_out
from pipeline.stages.omissions import by_reason, omissions, without_answers

Format = Literal["triton", "bundle"]


def engine(role: Any, precision: Any, flavour: str | None, reason: str | None = None) -> EngineResult:
    built: Any = None if flavour is None else SimpleNamespace(path=Path(f"{role}.{precision}.engine"), flavour=flavour)
    return EngineResult(role, precision, "SM86", built, reason)


@pytest.mark.parametrize(
    ("format", "allow_rtx", "flavour", "why"),
    [
        ("triton", False, "tensorrt_rtx", left_out.RTX),
        ("triton", True, "tensorrt_rtx", left_out.ALONE),
        ("triton", False, "tensorrt", left_out.ALONE),
        ("triton", False, "openvino", left_out.OPENVINO),
        ("bundle", True, "tensorrt_rtx", left_out.BUNDLE),
        ("bundle", False, "tensorrt", left_out.BUNDLE),
        ("bundle", False, None, "not built: no bf16 here"),
        ("triton", False, None, "not built: no bf16 here"),
    ],
)
def test_every_engine_that_stays_behind_has_a_reason(
    format: Format, allow_rtx: bool, flavour: str | None, why: str
) -> None:
    entry = engine("dense", "bf16", flavour, None if flavour else "no bf16 here")
    assert list(omissions(format, allow_rtx, Engines((entry,)), CastGraphs({}, {}), [])) == [
        ("engine dense.bf16.SM86", why)
    ]
    pair = Model("net", {1: Path("dense.bf16.engine"), 2: Path("compact.bf16.engine")})
    assert bool(list(omissions(format, allow_rtx, Engines((entry,)), CastGraphs({}, {}), [pair]))) == (flavour is None)


def test_graphs_for_other_uses_and_models_without_answers(tmp_path: Path) -> None:
    """Of three networks one has its answers and its ensemble; the shared steps are no networks."""
    served = [Served(name, "onnxruntime_onnx", 8, {"1": "a" * 64}) for name in ("net", "net_bf16", "net_pixels")]
    served.append(Served("net_classify", "ensemble", 8, {}))
    for name in ("net", "net_bf16", "net_pixels", "net_classify"):
        (tmp_path / name).mkdir()
    for name in ("net", "net_bf16"):
        (tmp_path / name / "labels.txt").write_text("a\nb\n")
    (tmp_path / "net" / RESPONSE).write_text("{}")
    assert list(without_answers(tmp_path, served, True)) == [
        ("answers of net_bf16", left_out.SILENT),
        ("net_bf16_classify", left_out.UNLIKE),
    ]
    assert list(without_answers(tmp_path, served, False)) == [("answers of net_bf16", left_out.SILENT)]
    pixels: Any = SimpleNamespace(path=Path("x/compact.fp32.pixels.onnx"))
    lower = CastGraphs({}, {}, None, {"compact.fp32": pixels}, {"compact.fp32": Path("x/compact.fp32.nms.onnx")})
    assert list(omissions("triton", False, Engines(()), lower, [])) == [
        ("compact.fp32.pixels.onnx", left_out.PIXELS),
        ("compact.fp32.nms.onnx", left_out.COMPLETED),
    ]


def test_one_reason_is_said_once() -> None:
    assert by_reason([("a", "x"), ("b", "y"), ("c", "x")]) == (Omission("x", ("a", "c")), Omission("y", ("b",)))
    assert by_reason([]) == ()
