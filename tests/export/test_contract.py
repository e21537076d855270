"""The builder against TensorRT 10 and 11, as far as that can be held without them: no name that a version lacks."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from export.engines.options import engine_options
from export.engines.tensorrt import build as build_engine
from export.engines.tensorrt.config import Request
from export.engines.tensorrt.features import features
from runtime.backends.trt_library import Log
from runtime.errors import UserError
from runtime.gpu import Gpu
from tests.export import standins
from tests.export.small_engines import OPTIONS, needs_rtx

TENS = tuple(version for version in standins.VERSIONS if version.startswith("10."))


def request(folder: Path, kind: str = "FLOAT", **changes: Any) -> Request:
    """`changes` are fields of the request, or options of the engine."""
    (folder / "net.onnx").write_text(kind)
    options = {name: changes.pop(name) for name in tuple(changes) if name in OPTIONS and name != "timing_cache"}
    if options.get("pin_tactics"):
        options["timing_cache"] = "folder"
    plain = Request(
        onnx=str(folder / "net.onnx"),
        engine=str(folder / "net.engine"),
        log="",
        layers=str(folder / "layers.json"),
        flavour="tensorrt",
        precision="fp32",
        targets=(),
        options=engine_options({**OPTIONS, **options}),
        timing_cache=None,
    )
    return dataclasses.replace(plain, **changes)


def run(trt: Any, asked: Request) -> tuple[dict[str, Any], Any]:
    """The answer, and the config that the builder was given."""
    with Path(asked.onnx).with_name("log").open("w") as file:
        answer = build_engine.build(asked, trt, Log(trt, file), lambda fraction, phase: None)
    return answer, trt.configs[-1]


def flags_of(config: Any) -> set[str]:
    return {flag.name for flag in config._flags}


@pytest.fixture(params=standins.VERSIONS)
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(build_engine, "first_gpu", lambda: None)
    return standins.module(request.param)


def test_a_plain_build(trt: Any, tmp_path: Path) -> None:
    answer, config = run(trt, request(tmp_path))
    assert (tmp_path / "net.engine").read_bytes() == b"engine"
    assert answer["version"] == trt.__version__
    assert flags_of(config) == set()
    assert config._limits == {trt.MemoryPoolType.WORKSPACE: 64 << 20}
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert config._profiles[0]._shapes == {"input": ([1, 3, 8, 8], [8, 3, 8, 8], [16, 3, 8, 8])}
    assert answer["proof"]["products"] == {"fp32": 1}


def test_every_option_at_once(trt: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache.timing"
    cache.write_bytes(f"{trt.__version__} conv1\n{trt.__version__} other".encode())
    asked = request(
        tmp_path,
        tf32=True,
        optimization_level=5,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        refit=True,
        sparse=True,
        timing_cache=str(cache),
        pin_tactics=True,
        profile={"min": 1, "opt": 1, "max": 1},
        more_profiles=[{"min": 2, "opt": 8, "max": 16}],
    )
    answer, config = run(trt, asked)
    assert flags_of(config) == {
        "TF32", "REFIT", "SPARSE_WEIGHTS", "VERSION_COMPATIBLE", "EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS",
    }  # fmt: skip
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert [p._shapes["input"][2] for p in config._profiles] == [[1, 3, 8, 8], [16, 3, 8, 8]]
    assert [p["input"]["min"] for p in answer["profiles"]] == [[1, 3, 8, 8], [2, 3, 8, 8]]
    assert answer["notes"] == []


def test_the_network_is_strongly_typed_whichever_way_the_version_wants_it(trt: Any) -> None:
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert features(trt).network_flags == 1 << int(flag)
    del trt.NetworkDefinitionCreationFlag
    trt.NetworkDefinitionCreationFlag = type("Flags", (), {})
    assert features(trt).network_flags == 0


def test_features(trt: Any) -> None:
    can = features(trt)
    assert can.version == trt.__version__
    assert (can.targets, can.ahead_of_time, can.timing_cache, can.pinned_tactics) == ((), False, True, True)
    assert can.hardware_levels == ("none", "ampere_plus", "same_compute_capability")
    assert can.progress


def test_lower_precisions_come_from_the_graph_alone(trt: Any, tmp_path: Path) -> None:
    for precision, kind in (("fp16", "HALF"), ("bf16", "BF16")):
        answer, config = run(trt, request(tmp_path, kind, precision=precision))
        assert answer["proof"]["products"] == {precision: 1}
        assert not flags_of(config)
        with pytest.raises(UserError, match="another type: 1 in float32"):
            run(trt, request(tmp_path, "FLOAT", precision=precision))


def test_the_first_parser_error_names_the_node(trt: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"tensorrt {trt.__version__} cannot read .*node 'relu1' \(Mystery\): no imp"):
        run(trt, request(tmp_path, "nonsense"))
    assert not (tmp_path / "net.engine").exists()
    with pytest.raises(UserError, match=r"it has no output; a whole ONNX file; export the network again"):
        run(trt, request(tmp_path, "empty"))


def test_pinned_tactics_that_the_cache_lacks_are_an_error(trt: Any, tmp_path: Path) -> None:
    asked = request(tmp_path, timing_cache=str(tmp_path / "cache.timing"), pin_tactics=True)
    with pytest.raises(UserError, match="missing in the timing cache") as caught:
        run(trt, asked)
    assert caught.value.remedy == "build once without engine.pin_tactics to fill it"
    run(trt, request(tmp_path, timing_cache=str(tmp_path / "cache.timing")))
    assert (tmp_path / "cache.timing").read_bytes() == f"{trt.__version__} conv1".encode()
    assert run(trt, asked)[0]["proof"]["share"] == 1.0


def test_a_cache_of_another_version_is_told_and_replaced(trt: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache.timing"
    cache.write_bytes(b"9.0.0 conv1")
    answer, _ = run(trt, request(tmp_path, timing_cache=str(cache)))
    assert answer["notes"][0].startswith("the timing cache cache.timing is not one of this TensorRT and GPU")
    assert f"{trt.__version__} conv1".encode() in cache.read_bytes()


def test_on_a_gpu_the_engine_itself_is_the_proof(trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_engine, "first_gpu", lambda: Gpu("NVIDIA L4", "SM89", "13.0"))
    answer, _ = run(trt, request(tmp_path, version_compatible=True))
    assert answer["proof"]["source"] == "engine"
    assert answer["proof"]["products"] == {"fp32": 1}
    assert json.loads((tmp_path / "layers.json").read_text())["layers"][0]["Name"] == "conv1"
    with pytest.raises(UserError, match=r"the engine from .* has convolutions .* another type: 1 in float32, 100%"):
        run(trt, request(tmp_path, "HALF", precision="fp16"))
    monkeypatch.setattr(trt.EngineInspector, "_kind", "Half")
    assert run(trt, request(tmp_path, "HALF", precision="fp16"))[0]["proof"]["share"] == 1.0


def test_a_gpu_that_does_not_load_the_engine_is_noted(
    trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_engine, "first_gpu", lambda: Gpu("NVIDIA L4", "SM89", "13.0"))
    monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", lambda runtime, plan: None)
    answer, _ = run(trt, request(tmp_path))
    assert answer["proof"]["source"] == "network"
    assert answer["notes"] == [
        "the engine was built, but this GPU did not load it for inspection: TensorRT gives no reason"
    ]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ('{"Layers": ["conv1"], "Bindings": []}', "the engine inspector tells no types"),
        ("{}", "the engine inspector's answer has no Layers"),
    ],
)
def test_an_inspector_that_tells_no_types_is_noted(
    trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, words: str
) -> None:
    monkeypatch.setattr(build_engine, "first_gpu", lambda: Gpu("NVIDIA L4", "SM89", "13.0"))
    monkeypatch.setattr(trt.EngineInspector, "get_engine_information", lambda inspector, form: told)
    answer, _ = run(trt, request(tmp_path))
    assert (answer["proof"]["source"], answer["proof"]["products"]) == ("network", {"fp32": 1})
    assert answer["notes"][0].startswith(words)


def test_what_10_has_and_11_lacks_is_absent_from_the_stand_ins() -> None:
    """Facts from NVIDIA's notes on 11.0, so that the record is known to be one of the real names."""
    for version in standins.VERSIONS:
        trt = standins.module(version)
        old = version in TENS
        assert hasattr(trt.BuilderFlag, "FP16") is old
        assert hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") is old
        assert ("int8_calibrator" in standins.NAMES[version]["IBuilderConfig"]) is old
        assert ("precision" in standins.NAMES[version]["ILayer"]) is old
        config = trt.IBuilderConfig()
        with pytest.raises(AttributeError, match="has no num_compute_capabilities"):
            config.num_compute_capabilities = 1


@pytest.mark.parametrize("version", standins.VERSIONS)
@pytest.mark.parametrize("kind", standins.STOOD_IN_FOR)
def test_the_stand_ins_have_no_name_of_their_own(kind: type, version: str) -> None:
    used = {name for name in vars(kind) if not name.startswith("_")}
    assert used <= set(standins.NAMES[version][kind.__name__])
    assert kind.__name__ in vars(standins.module(version))


@needs_rtx
def test_features_of_the_real_tensorrt_rtx() -> None:
    can = features(importlib.import_module("tensorrt_rtx"))
    assert {"SM80", "SM86", "SM89"} <= set(can.targets)
    assert can.ahead_of_time
    assert (can.timing_cache, can.pinned_tactics, can.hardware_levels) == (False, False, ())
    assert {"TF32", "REFIT", "SPARSE_WEIGHTS"} <= can.builder_flags
