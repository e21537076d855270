"""Engines built, proven, preflighted and run on the GPU at hand, by whichever TensorRT is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from export.engines import Engine, EngineUnavailable, manifest
from export.engines.preflight import preflight
from export.engines.tensorrt import layers_path
from runtime.backends import open_session
from runtime.errors import UserError
from runtime.gpu import first_gpu
from tests.export.graphs import conv_net, images
from tests.export.small_engines import build, typed_net

pytestmark = pytest.mark.gpu
FLAVOURS = ("tensorrt", "tensorrt_rtx")
CLOSE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
KINDS = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}


@pytest.fixture(autouse=True)
def a_gpu() -> None:
    if first_gpu() is None:
        pytest.skip("no NVIDIA GPU or driver was found")


def built(folder: Path, precision: str, **options: Any) -> Engine:
    """An engine of `conv_net` in that precision; skips where the flavour cannot build here."""
    source = folder / f"net.{precision}.onnx"
    if precision == "fp32":
        conv_net(source, width=64)
    else:
        typed_net(source, KINDS[precision], width=64)
    try:
        return build(source, folder / "x.engine", precision=precision, **{"target": "CURRENT", **options})
    except EngineUnavailable as error:
        pytest.skip(str(error))


def run(engine: Engine, batch: Any, **options: Any) -> Any:
    try:
        session = open_session(engine.path, engine.flavour, **options)
    except UserError as error:
        if "pycuda" in error.found:
            pytest.skip(str(error))
        raise
    session.bind({"input": batch})
    session.launch()
    session.wait()
    logits = session.fetch()["logits"]
    session.close()
    return logits


def wanted(folder: Path, batch: Any) -> Any:
    """ONNX Runtime's logits on the CPU, of the fp32 graph."""
    session = open_session(conv_net(folder / "wanted.onnx", width=64), device="cpu", threads=1)
    session.bind({"input": batch})
    session.launch()
    return session.fetch()["logits"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_built_here_it_is_proven_loads_and_computes(
    flavour: str, precision: Literal["fp32", "fp16", "bf16"], tmp_path: Path
) -> None:
    engine = built(tmp_path, precision, flavour=flavour)
    told = manifest.verify(engine.path)
    gpu = first_gpu()
    assert gpu is not None
    assert (told.gpu, told.targets, told.cuda.driver) == (gpu.name, [gpu.target], gpu.driver_cuda)
    assert told.proof.share >= (1.0 if precision == "fp32" else 0.5), told.notes
    assert layers_path(engine.path).exists() or told.notes
    assert preflight(engine.path).status == "ok"
    batch = images(5)
    difference = np.abs(run(engine, batch) - wanted(tmp_path, batch)).max()
    assert difference < CLOSE[precision]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_two_profiles_and_graphs(flavour: str, tmp_path: Path) -> None:
    more = {"more_profiles": [{"min": 1, "opt": 1, "max": 1}], "timing_cache": str(tmp_path / "cache")}
    engine = built(tmp_path, "fp32", flavour=flavour, **more)
    for count in (1, 8, 16):
        batch = images(count)
        np.testing.assert_allclose(run(engine, batch, cuda_graph=True), wanted(tmp_path, batch), rtol=0, atol=1e-4)
    caches = list((tmp_path / "cache").glob("*.timing")) if flavour == "tensorrt" else []
    assert (len(caches) == 1) == (flavour == "tensorrt")


def test_pinned_tactics_give_the_same_kernels(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first = built(tmp_path, "fp32", flavour="tensorrt", timing_cache=cache)
    again = built(tmp_path, "fp32", flavour="tensorrt", timing_cache=cache, pin_tactics=True)
    assert again.proof == first.proof
    assert manifest.verify(again.path).options.pin_tactics


@pytest.mark.parametrize("level", ["ampere_plus", "same_compute_capability"])
def test_compatible_engines(level: str, tmp_path: Path) -> None:
    engine = built(tmp_path, "fp32", flavour="tensorrt", hardware_compatibility=level, version_compatible=True)
    with pytest.raises(UserError, match="it brings code that runs on this machine"):
        run(engine, images(2))
    np.testing.assert_allclose(
        run(engine, images(2), allow_host_code=True), wanted(tmp_path, images(2)), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("target", ["SM80", "SM86", "SM89", "SM120"])
def test_an_rtx_engine_for_another_gpu_does_what_preflight_says(target: str, tmp_path: Path) -> None:
    """Whether an engine for SM80 runs on Hopper is not documented: preflight asks, and must be right."""
    engine = built(tmp_path, "fp32", flavour="tensorrt_rtx", target=target)
    said = preflight(engine.path)
    try:
        logits = run(engine, images(3))
    except UserError as error:
        assert said.status != "ok", (said, error)
        return
    assert said.status != "wrong machine", said
    np.testing.assert_allclose(logits, wanted(tmp_path, images(3)), rtol=0, atol=1e-4)
