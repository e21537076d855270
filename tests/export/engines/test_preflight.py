"""Whether a machine can load an engine: compared with the manifest, before anything is deserialised."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.engines import EngineUnavailable
from export.engines.preflight import examine, preflight
from export.engines.tensorrt import preflight as module
from runtime.errors import UserError
from runtime.gpu import Gpu
from tests.export.small_engines import OPTIONS, stand_in


class Validity(IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class Diagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    CUDA_ERROR = 64


def trt(version: str, validity: Validity = Validity.VALID, diagnostics: int = 0) -> Any:
    """Stands in for a flavour's module on a machine that can run engines."""
    runtime = SimpleNamespace(get_engine_validity=lambda content: (validity, diagnostics))
    return SimpleNamespace(
        __version__=version,
        Logger=type("Logger", (), {"INTERNAL_ERROR": 0, "__init__": lambda self, level: None}),
        Runtime=lambda given: runtime,
        EngineValidity=Validity,
        EngineInvalidityDiagnostics=Diagnostics,
    )


def machine(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, installed: Any = None) -> None:
    def load(flavour: str) -> Any:
        if installed is None:
            raise EngineUnavailable(f"{flavour} cannot be imported: none here")
        return installed

    monkeypatch.setattr(module, "first_gpu", lambda: gpu)
    monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(module, "_rtx_targets", lambda: ("SM86", "SM89", "SM120"))


AMPERE, ADA = Gpu("NVIDIA RTX 3090", "SM86", "13.0"), Gpu("NVIDIA L4", "SM89", "13.0")
OLD = Gpu("NVIDIA RTX 3090", "SM86", "11.8")
TURING = Gpu("NVIDIA T4", "SM75", "13.0")
RTX: dict[str, Any] = {"flavour": "tensorrt_rtx", "version": "1.7.1.116"}
ANY_VERSION = {"options": {**OPTIONS, "version_compatible": True}}
ANY_AMPERE = {"options": {**OPTIONS, "hardware_compatibility": "ampere_plus"}}
SAME_CC = {"options": {**OPTIONS, "hardware_compatibility": "same_compute_capability"}}
TUNED = {"gpu": "NVIDIA RTX A6000"}


@pytest.mark.parametrize(
    ("changes", "gpu", "installed", "status", "reasons"),
    [
        ({}, AMPERE, trt("10.9.0.34"), "ok", ()),
        ({}, AMPERE, trt("10.9.0.99"), "ok", ()),
        ({}, AMPERE, trt("10.10.0.1"), "wrong machine", ("tensorrt is 10.10.0.1 on .*, .* built by 10.9.0.34",)),
        ({}, ADA, trt("10.9.0.34"), "wrong machine", ("the GPU is SM89, the engine is for SM86",)),
        ({}, None, trt("10.9.0.34"), "wrong machine", ("no NVIDIA GPU",)),
        ({}, None, None, "wrong machine", ("tensorrt cannot be imported", "no NVIDIA GPU")),
        ({}, AMPERE, None, "wrong machine", ("tensorrt cannot be imported",)),
        ({}, OLD, trt("10.9.0.34"), "wrong machine", ("the driver serves CUDA 11.8, the engine's library needs 12",)),
        (ANY_VERSION, AMPERE, trt("10.13.3.9"), "ok", ("it is version-compatible, and its own code must be allowed",)),
        (ANY_VERSION, AMPERE, trt("10.8.0.43"), "wrong machine", ("loads in later versions of 10 only",)),
        (ANY_VERSION, AMPERE, trt("11.0.0.114"), "wrong machine", ("loads in later versions of 10 only",)),
        (ANY_AMPERE, ADA, trt("10.9.0.34"), "ok", ()),
        (ANY_AMPERE, TURING, trt("10.9.0.34"), "wrong machine", ("GPU is SM75, the engine runs on SM80 and later",)),
        (SAME_CC | TUNED, AMPERE, trt("10.9.0.34"), "ok", ()),
        (TUNED, AMPERE, trt("10.9.0.34"), "ok", ("tuned on NVIDIA RTX A6000: on NVIDIA RTX 3090 it may run slower",)),
        (RTX, AMPERE, trt("1.7.1.116"), "ok", ()),
        (RTX, ADA, trt("1.7.1.116", Validity.SUBOPTIMAL), "ok", ("slower than one built for this GPU",)),
        (RTX, ADA, trt("1.7.1.116", Validity.INVALID, 2), "wrong machine", ("refuses it: UNSUPPORTED_CC",)),
        (RTX, ADA, trt("1.7.1.116", Validity.INVALID, 0), "unknown", ("gives no reason; the GPU is SM89",)),
        (RTX, ADA, trt("1.7.1.116", Validity.INVALID, 64), "unknown", ("gives no reason", "CUDA_ERROR")),
        (RTX, ADA, trt("1.8.0.1"), "wrong machine", ("tensorrt_rtx is 1.8.0.1 on this machine",)),
    ],
)
def test_this_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    gpu: Gpu | None,
    installed: Any,
    status: str,
    reasons: tuple[str, ...],
) -> None:
    machine(monkeypatch, gpu, installed)
    told = preflight(stand_in(tmp_path / "x.engine", **changes))
    assert told.status == status
    assert told.exit_code == {"ok": 0, "wrong machine": 1, "unknown": 3}[status]
    assert len(told.reasons) == len(reasons), told.reasons
    for reason, expected in zip(told.reasons, reasons, strict=True):
        assert re.search(expected, reason)
    fits = status == "ok" and "slower than one built" not in str(told.reasons)
    assert (told.rebuild is None) == (fits or gpu is None)


@pytest.mark.parametrize(
    ("changes", "image", "gpu", "status", "reason"),
    [
        ({"version": "10.13.3.9"}, "25.09-py3", "SM86", "ok", None),
        ({"version": "10.13.3.99"}, "nvcr.io/nvidia/tritonserver:25.09-py3", "SM86", "ok", None),
        ({"version": "10.11.0.33"}, "25.06", "SM86", "ok", None),  # the table has no more than 10.11.0 for it
        (
            {},
            "25.09-py3",
            "SM86",
            "wrong machine",
            "tensorrt is 10.13.3.9 on .*tritonserver:25.09-py3, .* by 10.9.0.34",
        ),
        ({}, "25.04-trtllm-python-py3", "SM86", "ok", None),
        ({}, "25.04-trtllm-python-py3", "SM90", "wrong machine", "the GPU is SM90, the engine is for SM86"),
        ({}, "25.04-trtllm-python-py3", None, "unknown", "no GPU is here and none is named: give --gpu"),
        ({}, "31.01-py3", "SM86", "unknown", "no row for 31.01-py3; ask the image: docker run"),
        (RTX, "25.09-py3", "SM86", "wrong machine", "has no TensorRT-RTX"),
    ],
)
def test_a_triton_image(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    image: str,
    gpu: str | None,
    status: str,
    reason: str | None,
) -> None:
    machine(monkeypatch, None)
    told = examine(stand_in(tmp_path / "x.engine", **changes), image, gpu)
    assert told.status == status
    assert told.machine.startswith("nvcr.io/nvidia/tritonserver:")
    if reason is None:
        assert (told.reasons, told.rebuild) == ((), None)
    else:
        assert re.search(reason, told.reasons[0])
        assert told.rebuild is not None and "--flavour tensorrt --target CURRENT" in told.rebuild


def test_another_gpu_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, None, trt("1.7.1.116"))
    engine = stand_in(tmp_path / "x.engine", **RTX, targets=["SM86", "SM89"])
    assert examine(engine, None, "SM89").status == "ok"
    told = examine(engine, None, "SM120")
    assert (told.status, told.reasons) == ("wrong machine", ("the GPU is SM120, the engine is for SM86 and SM89",))
    assert told.rebuild == "python -m export rebuild x.engine.json --target SM120"
    assert told.document()["engine"] == str(engine)
    hopper = examine(engine, None, "SM90").rebuild
    assert hopper == "python -m export rebuild x.engine.json --target CURRENT  (on that GPU)"


@pytest.mark.parametrize(
    ("image", "gpu", "found"), [("latest", None, "--triton-image 'latest'"), (None, "86", "--gpu '86'")]
)
def test_arguments_that_name_nothing(tmp_path: Path, image: str | None, gpu: str | None, found: str) -> None:
    with pytest.raises(UserError) as caught:
        examine(stand_in(tmp_path / "x.engine"), image, gpu)
    assert caught.value.found == found
    assert "such as" in caught.value.expected


def test_without_a_manifest_it_is_unknown(tmp_path: Path) -> None:
    engine = tmp_path / "foreign.engine"
    engine.write_bytes(b"bytes")
    told = preflight(engine)
    assert (told.status, told.exit_code) == ("unknown", 3)
    assert "foreign.engine.json is missing" in told.reasons[0]
    with pytest.raises(UserError, match=r"gone\.engine is missing; an engine file"):
        preflight(tmp_path / "gone.engine")


def test_an_altered_engine_or_manifest_is_refused(tmp_path: Path) -> None:
    engine = stand_in(tmp_path / "x.engine", b"engine bytes")
    sidecar = tmp_path / "x.engine.json"
    sidecar.write_text(sidecar.read_text().replace("SM86", "SM89"))
    with pytest.raises(UserError, match="was changed after it was written"):
        preflight(engine)
    engine = stand_in(tmp_path / "x.engine", b"engine bytes")
    engine.write_bytes(b"engine bytez")
    with pytest.raises(UserError, match="as in its manifest"):
        preflight(engine)
    assert engine.exists()


@pytest.mark.parametrize(("name", "remedy"), [("README.md", "give an engine of a run"), ("net.onnx", "python -m expo")])
def test_a_file_that_is_no_engine_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    machine(monkeypatch, None)
    (tmp_path / name).write_text("some text")
    with pytest.raises(UserError, match=rf"{name} is no engine by its name, and no manifest {name}\.json is beside it"):
        preflight(tmp_path / name)
    with pytest.raises(UserError, match=remedy):
        preflight(tmp_path / name)
    with pytest.raises(UserError, match="is no file; an engine file"):
        preflight(tmp_path)
    assert preflight(stand_in(tmp_path / name)).status == "wrong machine"  # its manifest says what it is


def test_versions_that_are_not_releases_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, AMPERE, trt("10.9.0rc1"))
    assert preflight(stand_in(tmp_path / "x.engine", version="10.9.0a2")).status == "ok"
    told = preflight(stand_in(tmp_path / "x.engine", version="10.9.1.post1"))
    assert (told.status, told.reasons[0][:24]) == ("wrong machine", "tensorrt is 10.9.0rc1 on")
