"""The engine session: on stand-ins for the libraries, and (marked gpu) on a real GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import cuda, open_session, trt_library
from runtime.backends.tensorrt import TrtSession
from runtime.errors import UserError
from tests.export.standins import NAMES, VERSIONS
from tests.runtime import cuda_standins, standins
from tests.runtime.nets import expected, images
from tests.runtime.test_conformance import tensorrt_session


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    standins.stand_in(monkeypatch)
    yield
    standins.all_given_back()


def engine(folder: Path, plan: bytes = b"plan") -> Path:
    path = folder / "net.engine"
    path.write_bytes(plan)
    return path


def infer(session: Any, batch: Any) -> Any:
    session.bind({"input": batch})
    session.launch()
    session.wait()
    return session.fetch()["logits"]


def test_values_at_growing_and_shrinking_batches(standing_in: None, tmp_path: Path) -> None:
    session = TrtSession(engine(tmp_path), "tensorrt")
    kept = []
    for count in (2, 8, 1, 5):
        batch = images(count, seed=count)
        kept.append((batch, infer(session, batch)))
    for batch, logits in kept:
        np.testing.assert_allclose(logits, expected(batch), rtol=0, atol=1e-6)
    assert session.settings["gpu"] == "stand-in GPU"
    session.close()
    assert cuda_standins.Allocation.live == 0


def test_layer_times_are_microseconds(standing_in: None, tmp_path: Path) -> None:
    session = TrtSession(engine(tmp_path), "tensorrt")
    session.bind({"input": images(2)})
    times = session.layer_times(3)
    assert times == {"Reformatting CopyNode for Input Tensor 0": [2.0] * 3, "gemm + relu": [5.0] * 3}
    np.testing.assert_allclose(session.fetch()["logits"], expected(images(2)), rtol=0, atol=1e-6)
    session.close()


def test_copies_are_done_when_bind_returns(standing_in: None, tmp_path: Path) -> None:
    """Else they would run, and be timed, with the first launch."""
    session = TrtSession(engine(tmp_path), "tensorrt")
    session.bind({"input": images(3)})
    stream = list(cuda_standins.STREAMS.values())[-1]
    assert stream.queue == []
    session.launch()
    assert len(stream.queue) == 1
    session.wait()
    assert stream.queue == []
    session.close()


def test_specs_come_from_the_engine_and_its_profile(standing_in: None, tmp_path: Path) -> None:
    session = TrtSession(engine(tmp_path), "tensorrt_rtx")
    assert session.backend == "tensorrt_rtx"
    (spec,) = session.inputs
    assert (spec.shape, spec.dtype, spec.smallest, spec.largest) == (
        (None, 2, 3, 3), "float32", (1, 2, 3, 3), (8, 2, 3, 3),
    )  # fmt: skip
    assert [(output.name, output.shape) for output in session.outputs] == [("logits", (None, 4))]
    session.close()


def test_a_batch_outside_the_profile(standing_in: None, tmp_path: Path) -> None:
    session = TrtSession(engine(tmp_path), "tensorrt")
    with pytest.raises(UserError) as caught:
        session.bind({"input": images(9)})
    assert "fed the shape (9, 2, 3, 3)" in caught.value.found
    assert "from (1, 2, 3, 3) to (8, 2, 3, 3)" in caught.value.expected
    session.close()


def test_an_engine_that_does_not_load_gives_the_librarys_first_error(standing_in: None, tmp_path: Path) -> None:
    path = engine(tmp_path, b"garbage")
    with pytest.raises(UserError) as caught:
        TrtSession(path, "tensorrt")
    assert caught.value.found == (
        f"{path} was not accepted by the runtime: The serialized engine is not compatible with this device"
    )
    assert "stand-in GPU" in caught.value.expected


def test_a_type_numpy_lacks(standing_in: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tensor input of the engine is BF16") as caught:
        TrtSession(engine(tmp_path, b"plan BF16"), "tensorrt")
    assert "float32" in caught.value.expected or "FLOAT" in caught.value.expected


def test_close_twice_and_use_afterwards(standing_in: None, tmp_path: Path) -> None:
    session = TrtSession(engine(tmp_path), "tensorrt")
    infer(session, images(1))
    session.close()
    session.close()
    with pytest.raises(UserError, match="is closed"):
        session.launch()
    assert cuda_standins.Allocation.live == 0


def names_used(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


@pytest.mark.parametrize("kind", standins.CLASSES_STOOD_IN_FOR)
def test_the_stand_ins_use_names_of_every_version(kind: type) -> None:
    """Code that touched another name would fail on the stand-ins; these names are in 10.x, 11.x and RTX."""
    trt: Any = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    used = names_used(kind) - ({"num_optimization_profiles", "strategies"} if kind is standins.ICudaEngine else set())
    assert used
    assert used <= set(dir(getattr(trt, kind.__name__)))
    for version in VERSIONS:
        assert used <= set(NAMES[version][kind.__name__]), version


def test_the_stand_ins_for_rtx_use_its_names() -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    for name, kind in standins.RTX_CLASSES.items():
        used = names_used(kind) - {"strategies"}
        assert used
        assert used <= set(dir(getattr(trt, name)))
    for version in VERSIONS:
        assert "num_optimization_profiles" in NAMES[version]["ICudaEngine"]
        assert "CudaGraphStrategy" not in NAMES[version]


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_the_profile_tuned_nearest_is_taken(standing_in: None, tmp_path: Path, flavour: str) -> None:
    session = TrtSession(engine(tmp_path, b"plans"), flavour)
    assert session.settings["profiles"] == 2
    assert (session.inputs[0].smallest, session.inputs[0].largest) == ((1, 2, 3, 3), (8, 2, 3, 3))
    for count in (1, 8, 3, 1, 4):
        batch = images(count, seed=count)
        np.testing.assert_allclose(infer(session, batch), expected(batch), rtol=0, atol=1e-6)
    with pytest.raises(UserError) as caught:
        session.bind({"input": images(2)})
    assert "fed the shapes input (2, 2, 3, 3)" in caught.value.found
    assert "0: input (1, 2, 3, 3) to (1, 2, 3, 3); 1: input (3, 2, 3, 3) to (8, 2, 3, 3)" in caught.value.expected
    session.close()


def test_a_graph_is_captured_once_for_shapes_and_addresses(standing_in: None, tmp_path: Path) -> None:
    session = TrtSession(engine(tmp_path), "tensorrt", cuda_graph=True)
    graphs = []
    for count in (4, 4, 2, 8):
        batch = images(count, seed=count)
        np.testing.assert_allclose(infer(session, batch), expected(batch), rtol=0, atol=1e-6)
        graphs.append(session._graph)
        assert cuda_standins.CapturedGraph.live == 1
    assert graphs[0] is graphs[1]
    assert len({id(graph) for graph in graphs}) == 3
    assert session.settings["cuda_graph"] is True
    assert session.layer_times(2)["gemm + relu"] == [5.0, 5.0]
    session.close()


def test_rtx_captures_for_itself(standing_in: None, tmp_path: Path) -> None:
    standins.RtxEngine.strategies.clear()
    for wanted in (True, False):
        session = TrtSession(engine(tmp_path), "tensorrt_rtx", cuda_graph=wanted)
        np.testing.assert_allclose(infer(session, images(2)), expected(images(2)), rtol=0, atol=1e-6)
        session.close()
    kind = standins.CudaGraphStrategy
    assert standins.RtxEngine.strategies == [kind.WHOLE_GRAPH_CAPTURE, kind.DISABLED]
    assert cuda_standins.CapturedGraph.live == 0


def test_an_engine_with_code_of_its_own_is_opened_only_where_allowed(standing_in: None, tmp_path: Path) -> None:
    path = engine(tmp_path)
    sidecar = tmp_path / "net.engine.json"
    sidecar.write_text('{"flavour": "tensorrt", "options": {"version_compatible": true}}')
    with pytest.raises(UserError, match="it brings code that runs on this machine") as caught:
        open_session(path)
    assert "allow_host_code=True" in caught.value.remedy
    session = open_session(path, allow_host_code=True)
    assert session._runtime.engine_host_code_allowed is True  # type: ignore[attr-defined]  # of a TrtSession
    session.close()
    sidecar.write_text("[]")
    with pytest.raises(UserError, match="is no JSON object"):
        open_session(path)


def test_an_option_that_a_backend_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the option 'fast' for tensorrt; one of allow_host_code, cuda_graph"):
        open_session(engine(tmp_path), "tensorrt", fast=True)
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="the option 'cuda_graph' for onnxruntime; one of none"):
        open_session(tmp_path / "net.onnx", cuda_graph=True)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine(tmp_path)
    with pytest.raises(UserError, match="engines run on NVIDIA GPUs only"):
        open_session(path, "tensorrt_rtx", device="cpu")
    monkeypatch.setattr(trt_library, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="tensorrt is not installed; tensorrt, which built the engine; install tensorrt"
    ):
        open_session(path, "tensorrt")
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    monkeypatch.setattr(cuda, "gpus", lambda: ())
    with pytest.raises(UserError, match="pycuda is not installed and no NVIDIA GPU is visible"):
        cuda.CudaDevice()
    monkeypatch.setattr(cuda, "gpus", lambda: ("some GPU",))
    with pytest.raises(UserError, match="pycuda is not installed; an NVIDIA GPU, and pycuda"):
        cuda.CudaDevice()


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_driver", lambda: cuda_standins.DRIVER)
    with pytest.raises(UserError) as caught:
        cuda.CudaDevice(3)
    assert caught.value.found == "1 NVIDIA GPUs are visible"
    assert caught.value.expected == "GPU 3"


def test_nothing_heavy_is_imported_with_the_modules() -> None:
    import subprocess

    code = (
        "import sys, runtime.backends.tensorrt, runtime.backends.cuda;"
        "print([m for m in ('tensorrt','tensorrt_rtx','pycuda','torch','onnxruntime','onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


@pytest.mark.gpu
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_on_a_gpu_beside_torch_with_batches_in_and_outside_the_profile(flavour: str, tmp_path: Path) -> None:
    import torch

    before = torch.ones(4, device="cuda")
    try:
        session = tensorrt_session(tmp_path, flavour)
    except UserError as error:
        pytest.skip(str(error))
    for count in (1, 8, 3):
        batch = images(count, seed=count)
        np.testing.assert_allclose(infer(session, batch), expected(batch), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="optimisation profile"):
        session.bind({"input": images(9)})
    session.close()
    assert float((before + 1).sum()) == 8.0
