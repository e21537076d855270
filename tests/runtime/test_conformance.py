"""One suite over every backend. Those on a GPU carry the `gpu` mark; one that is absent is skipped with the reason."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import Session, open_session
from runtime.backends.torch import TorchSession, image_inputs
from runtime.errors import UserError
from tests.runtime import standins
from tests.runtime.nets import SHAPE, Net, expected, images, write_onnx


def _engine(folder: Path, flavour: str) -> Path:
    """An engine for batches of 1 to 8, built on this machine's GPU, once a folder."""
    path = folder / "net.engine"
    if path.exists():
        return path
    trt: Any = pytest.importorskip(flavour, reason=f"{flavour} is not installed")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse(write_onnx(folder / "net.onnx").read_bytes())
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape("input", (1, *SHAPE), (4, *SHAPE), (8, *SHAPE))
    config.add_optimization_profile(profile)
    path.write_bytes(bytes(builder.build_serialized_network(network, config)))
    return path


def tensorrt_session(folder: Path, flavour: str, **options: Any) -> Session:
    from runtime.backends.cuda import cuda_device

    cuda_device()
    return open_session(_engine(folder, flavour), flavour, **options)


def stand_in_session(folder: Path, flavour: str, **options: Any) -> Session:
    """On the stand-ins of this folder, which compute the same function; the fixture puts them in place."""
    (folder / "net.engine").write_bytes(b"plan")
    return open_session(folder / "net.engine", flavour, **options)


def openvino_session(path: Path) -> Session:
    pytest.importorskip("openvino", reason="openvino is not installed")
    return open_session(path, "openvino", device="cpu", threads=1)


def torch_session(**options: Any) -> Session:
    return TorchSession(Net(), image_inputs(SHAPE), threads=1, **options)


OPENERS: dict[str, Callable[[Path], Session]] = {
    "onnxruntime-cpu": lambda folder: open_session(write_onnx(folder / "net.onnx"), device="cpu", threads=1),
    "openvino-cpu": lambda folder: openvino_session(write_onnx(folder / "net.onnx")),
    "torch-cpu": lambda folder: torch_session(device="cpu"),
    "tensorrt-stand-in": lambda folder: stand_in_session(folder, "tensorrt"),
    "tensorrt-graph-stand-in": lambda folder: stand_in_session(folder, "tensorrt", cuda_graph=True),
    "tensorrt_rtx-stand-in": lambda folder: stand_in_session(folder, "tensorrt_rtx"),
    "torch-compiled-cpu": lambda folder: torch_session(device="cpu", mode="compiled"),
    "onnxruntime-cuda": lambda folder: open_session(write_onnx(folder / "net.onnx"), device="cuda"),
    "onnxruntime-tensorrt": lambda folder: open_session(write_onnx(folder / "net.onnx"), "onnxruntime_tensorrt"),
    "torch-cuda": lambda folder: torch_session(device="cuda"),
    "torch-compiled-cuda": lambda folder: torch_session(device="cuda", mode="compiled"),
    "torch-graph-cuda": lambda folder: torch_session(device="cuda", mode="cuda_graph"),
    "tensorrt": lambda folder: tensorrt_session(folder, "tensorrt"),
    "tensorrt-graph": lambda folder: tensorrt_session(folder, "tensorrt", cuda_graph=True),
    "tensorrt_rtx": lambda folder: tensorrt_session(folder, "tensorrt_rtx"),
    "tensorrt_rtx-graph": lambda folder: tensorrt_session(folder, "tensorrt_rtx", cuda_graph=True),
}


STOOD_IN_FOR = tuple(name for name in OPENERS if name.endswith("stand-in"))
ON_CPU = ("onnxruntime-cpu", "openvino-cpu", "torch-cpu", "torch-compiled-cpu", *STOOD_IN_FOR)
MARKS = {name: pytest.mark.gpu for name in OPENERS if name not in ON_CPU} | {"torch-compiled-cpu": pytest.mark.slow}
EVERY = [pytest.param(name, marks=MARKS.get(name, ())) for name in OPENERS]


@pytest.fixture(params=EVERY)
def session(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    name: str = request.param
    if name in STOOD_IN_FOR:
        standins.stand_in(monkeypatch)
    try:
        opened = OPENERS[name](tmp_path)
    except UserError as error:
        if name in ON_CPU:
            raise
        pytest.skip(f"{name}: {error}")
    yield opened
    opened.close()
    if name in STOOD_IN_FOR:
        standins.all_given_back()


@pytest.mark.parametrize("name", [name for name in OPENERS if name not in ON_CPU])
def test_a_backend_that_is_absent_says_what_is_missing(name: str, tmp_path: Path) -> None:
    try:
        OPENERS[name](tmp_path).close()
    except UserError as error:
        assert any(word in error.found for word in ("pycuda", "CUDA", "GPU", "installed"))
        assert error.expected
        assert error.remedy
        pytest.skip(f"{name}: {error.found}")


def run(session: Session, batch: Any) -> Any:
    session.bind({"input": batch})
    session.launch()
    session.wait()
    return session.fetch()["logits"]


def test_values_at_three_batches(session: Session) -> None:
    for count in (1, 8, 3):
        batch = images(count, seed=count)
        logits = run(session, batch)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected(batch), rtol=0, atol=1e-5)


def test_specs_and_settings(session: Session) -> None:
    assert [(spec.name, spec.shape, spec.dtype) for spec in session.inputs] == [("input", (None, 2, 3, 3), "float32")]
    assert [(spec.name, spec.shape, spec.dtype) for spec in session.outputs] == [("logits", (None, 4), "float32")]
    assert session.device in ("cpu", "cuda")
    assert "threads" in session.settings


def test_bind_and_fetch_copy(session: Session) -> None:
    batch = images(2)
    session.bind({"input": batch})
    kept = batch.copy()
    batch[:] = 1e6
    session.launch()
    first = session.fetch()["logits"]
    np.testing.assert_allclose(first, expected(kept), rtol=0, atol=1e-5)
    before = first.copy()
    session.fetch()["logits"][:] = 1e6
    np.testing.assert_array_equal(session.fetch()["logits"], before)
    run(session, images(2, seed=9))
    np.testing.assert_array_equal(first, before)


def test_a_launch_may_be_repeated(session: Session) -> None:
    batch = images(3)
    session.bind({"input": batch})
    for _ in range(5):
        session.launch()
    first = session.fetch()["logits"]
    np.testing.assert_array_equal(first, session.fetch()["logits"])
    np.testing.assert_allclose(first, expected(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "fed []"),
        ({"image": images(1)}, "fed ['image']"),
        ({"input": images(1).tolist()}, "fed a list"),
        ({"input": images(1).astype(np.float64)}, "fed float64; float32"),
        ({"input": images(1)[0]}, "fed the shape (2, 3, 3); (batch, 2, 3, 3)"),
        ({"input": images(1)[:, :1]}, "fed the shape (1, 1, 3, 3)"),
        ({"input": images(0)}, "fed the shape (0, 2, 3, 3)"),
    ],
)
def test_feeds_that_do_not_fit(session: Session, feeds: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        session.bind(feeds)
    assert words in str(caught.value)
    with pytest.raises(UserError, match="before bind"):
        session.launch()


def test_calls_out_of_order(session: Session) -> None:
    for call in (session.launch, session.wait, session.fetch):
        with pytest.raises(UserError, match="before bind"):
            call()
    session.bind({"input": images(1)})
    with pytest.raises(UserError, match="before launch"):
        session.fetch()
    session.launch()
    assert session.fetch()["logits"].shape == (1, 4)
    session.close()
    session.close()
    for call in (lambda: session.bind({"input": images(1)}), session.launch, session.wait, session.fetch):
        with pytest.raises(UserError, match="is closed"):
            call()


def test_a_second_thread_is_told(session: Session) -> None:
    session.bind({"input": images(1)})
    caught: list[BaseException] = []

    def other() -> None:
        try:
            session.launch()
        except UserError as error:
            caught.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert "used from two threads" in str(caught[0])
    np.testing.assert_allclose(run(session, images(1)), expected(images(1)), rtol=0, atol=1e-5)
