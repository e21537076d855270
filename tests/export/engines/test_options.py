"""Options that a TensorRT cannot follow are refused before anything is built."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from export.engines import manifest
from export.engines.options import EngineOptions, engine_options
from export.engines.tensorrt.config import check_options
from export.engines.tensorrt.features import Features, features
from runtime.errors import UserError
from tests.export import standins
from tests.export.graphs import conv_net
from tests.export.small_engines import build, needs_rtx

pytestmark = needs_rtx


def rtx() -> Features:
    return features(importlib.import_module("tensorrt_rtx"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hardware_compatibility": "ampere_plus"}, "builds none such; none; list the GPUs in engine.targets"),
        ({"pin_tactics": True, "timing_cache": "x"}, "no editable timing cache"),
    ],
)
def test_rtx_cannot(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_options(EngineOptions(**changes), rtx(), "tensorrt_rtx")
    check_options(EngineOptions(timing_cache="x", refit=True, sparse=True), rtx(), "tensorrt_rtx")
    assert not rtx().pinned_tactics


@pytest.mark.parametrize("version", standins.VERSIONS)
def test_tensorrt_can_all(version: str) -> None:
    can = features(standins.module(version))
    for level in ("ampere_plus", "same_compute_capability"):
        everything = {"hardware_compatibility": level, "pin_tactics": True}
        everything |= dict.fromkeys(("version_compatible", "refit", "sparse"), True)
        check_options(engine_options(everything), can, "tensorrt")
    poorer = Features(can.version, 0, (), frozenset({"TF32"}), True, ("none",), True)
    with pytest.raises(UserError, match=r"BuilderFlag\.REFIT is asked for"):
        check_options(EngineOptions(refit=True), poorer, "tensorrt")
    assert not poorer.pinned_tactics


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workspace_mib": 0}, "engine.workspace_mib: Input should be greater than or equal to 1"),
        ({"optimization_level": 6}, "engine.optimization_level: Input should be less than or equal to 5"),
        ({"time_limit_s": 0}, "engine.time_limit_s: Input should be greater than 0"),
        ({"time_limit_s": float("nan")}, "engine.time_limit_s: Input should be a finite number"),
        ({"more_profiles": [{"min": 1, "opt": 8, "max": 16}]}, "is listed twice"),
        ({"profile": (2, 1, 4)}, "min 2, opt 1, max 4; expected min <= opt <= max"),
        ({"pin_tactics": True, "timing_cache": None}, "pin_tactics without timing_cache"),
    ],
)
def test_options_with_which_nothing_can_be_built(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        build(conv_net(tmp_path / "net.onnx"), tmp_path / "x.engine", **changes)
    assert words in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["net.onnx"]


def test_several_profiles_and_targets_in_one_real_engine(tmp_path: Path) -> None:
    source, heard = conv_net(tmp_path / "net.onnx"), []
    engine = build(
        source, tmp_path / "x.engine", target="SM86+SM89", profile=(1, 1, 8),
        more_profiles=[{"min": 16, "opt": 32, "max": 64}], sparse=True, timing_cache=str(tmp_path / "unused"),
        optimization_level=0, tf32=True, report=lambda fraction, text: heard.append((fraction, text)),
    )  # fmt: skip
    told = manifest.verify(engine.path)
    assert (told.target, told.targets, engine.target) == ("SM86+SM89", ["SM86", "SM89"], "SM86+SM89")
    assert [(p["input"].min[0], p["input"].opt[0], p["input"].max[0]) for p in told.profiles] == [
        (1, 1, 8),
        (16, 32, 64),
    ]
    assert (told.max_batch, told.options.sparse, told.options.tf32, told.options.optimization_level) == (
        64,
        True,
        True,
        0,
    )
    assert (told.timing_cache, told.cuda.library) == (None, "13")
    assert told.notes == ["tensorrt_rtx times no kernels ahead of time: nothing for engine.timing_cache"]
    assert not (tmp_path / "unused").exists()
    assert told.command(target="SM89") == "python -m export rebuild x.engine.json --target SM89"
    fractions = [fraction for fraction, _ in heard]
    assert fractions and fractions == sorted(fractions) and fractions[-1] == 1.0
    assert any(text for _, text in heard)


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        ({"refit": True}, "leave engine.refit out: TensorRT-RTX compiles refittable engines only on a GPU"),
        ({"version_compatible": True}, "install it, or leave engine.version_compatible out"),
    ],
)
def test_what_the_real_builder_refuses_names_the_option(tmp_path: Path, flags: dict[str, Any], remedy: str) -> None:
    with pytest.raises(UserError, match="tensorrt_rtx cannot build") as caught:
        build(conv_net(tmp_path / "net.onnx"), tmp_path / "x.engine", **flags)
    assert caught.value.remedy == remedy
    assert not (tmp_path / "x.engine").exists()


def test_a_bfloat16_engine(tmp_path: Path) -> None:
    from tests.export.small_engines import typed_net

    engine = build(typed_net(tmp_path / "net.onnx", "BFLOAT16"), tmp_path / "x.engine", precision="bf16")
    assert engine.proof["products"] == {"bf16": 3}
    assert manifest.verify(engine.path).precision == "bf16"
