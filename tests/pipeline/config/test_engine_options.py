"""The section `engine`: what it refuses, and that every key of it reaches the builder."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from export.engines import Choice
from export.engines.tensorrt.features import features
from export.engines.tensorrt.targets import load
from pipeline import config
from pipeline.config.engine import CAPABILITIES
from pipeline.progress import Silent
from pipeline.results import CastGraphs
from pipeline.stages.engine import build_engines
from tests.export.small_engines import needs_rtx


class Heard(Silent):
    """A progress that remembers."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, str]] = []
        self.notes: list[str] = []

    def start(self, stage: str, total: float) -> None:
        assert total > 0

    def update(self, done: float, text: str = "") -> None:
        self.updates.append((done, text))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_every_key_reaches_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def build(onnx: Path, path: Path, **options: Any) -> Any:
        options["report"](0.5, "Timing tactics")
        asked.append(options)
        return SimpleNamespace(notes=("a note",))

    monkeypatch.setattr("export.engines.engine_from_onnx", build)
    monkeypatch.setattr("export.engines.choose", Choice)
    section = config.Engine(
        flavour="tensorrt", targets=("SM86+SM89",), precisions=("fp32",),
        profile=config.Profile(min=1, opt=2, max=3), more_profiles=(config.Profile(min=4, opt=5, max=6),),
        workspace_mib=7, optimization_level=5, tf32=True, version_compatible=True, hardware_compatibility="ampere_plus",
        refit=True, sparse=True, timing_cache="cache", pin_tactics=True, time_limit_s=8,
    )  # fmt: skip
    graphs: Any = SimpleNamespace(
        dense=SimpleNamespace(path=tmp_path / "a"), compact=SimpleNamespace(path=tmp_path / "b")
    )
    heard = Heard()
    told = build_engines(section, graphs, CastGraphs({}, {}), "ab", tmp_path, heard).engines
    assert [entry.target for entry in told] == ["SM86+SM89"] * 2
    first, second = asked
    assert [profile.sizes for profile in first["options"].profiles] == [(1, 2, 3), (4, 5, 6)]
    assert first["options"].model_dump(exclude={"profile", "more_profiles"}) == {
        "workspace_mib": 7, "optimization_level": 5, "tf32": True, "version_compatible": True,
        "hardware_compatibility": "ampere_plus", "refit": True, "sparse": True, "timing_cache": "cache",
        "pin_tactics": True, "time_limit_s": 8,
    }  # fmt: skip
    assert [first[key] for key in ("flavour", "target", "precision")] == ["tensorrt", "SM86+SM89", "fp32"]
    assert (first["plan_sha256"], second["plan_sha256"]) == (None, "ab")
    assert (0.5, "dense.fp32.SM86+SM89.engine: Timing tactics") in heard.updates
    assert (1.5, "compact.fp32.SM86+SM89.engine: Timing tactics") in heard.updates
    assert [done for done, _ in heard.updates] == sorted(done for done, _ in heard.updates)
    assert heard.notes[0] == "dense.fp32.SM86+SM89.engine: a note"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"targets": ("SM90",)}, "`SM90` is no target; expected one of SM75, SM80"),
        ({"targets": ("SM86+SM86",)}, "`SM86+SM86` is no target"),
        ({"targets": ("CURRENT+SM86",)}, "`CURRENT+SM86` is no target"),
        ({"pin_tactics": True, "timing_cache": None}, "pin_tactics without timing_cache"),
        ({"flavour": "tensorrt_rtx", "pin_tactics": True}, "pin_tactics with the flavour tensorrt_rtx, which times no"),
        (
            {"flavour": "tensorrt_rtx", "hardware_compatibility": "ampere_plus"},
            "hardware_compatibility ampere_plus with the flavour tensorrt_rtx",
        ),
        ({"flavour": "openvino", "tf32": True}, "tf32 with the flavour openvino, which has nothing of the kind"),
        ({"optimization_level": 6}, "less than or equal to 5"),
        ({"more_profiles": (config.Profile(),)}, "is listed twice"),
        ({"hardware_compatibility": "all"}, "Input should be 'none', 'ampere_plus' or 'same_compute_capability'"),
    ],
)
def test_what_can_never_be_built(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config.Engine(**keys)
    assert words in str(caught.value)
    assert caught.value.error_count() == 1


def test_openvino_engines_are_in_fp32_unless_others_are_listed() -> None:
    assert config.Engine(flavour="openvino").precisions == ("fp32",)
    assert config.Engine(flavour="openvino", precisions=("int8",)).precisions == ("int8",)
    assert config.Engine().precisions == ("fp32", "fp16")


def test_batches_that_some_profile_takes() -> None:
    section = config.Engine(
        profile=config.Profile(min=1, opt=1, max=1), more_profiles=(config.Profile(min=8, opt=32, max=64),)
    )
    assert [batch for batch in (1, 2, 7, 8, 64, 65) if section.takes(batch)] == [1, 8, 64]
    assert config.Engine(targets=("SM86+SM89", "CURRENT")).targets == ("SM86+SM89", "CURRENT")


@needs_rtx
def test_the_targets_of_the_config_are_the_librarys() -> None:
    known = features(load("tensorrt_rtx")).targets
    assert set(CAPABILITIES) <= set(known)
    if version("tensorrt-rtx-cu13").startswith("1.7."):  # a later one may know more
        assert known == CAPABILITIES
