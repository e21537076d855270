"""The sidecar is read strictly, held against the engine, and compared with the machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export import manifest
from export.flavours import EngineUnavailable
from export.gpu import Gpu
from runtime.errors import UserError
from tests.export.engines import document, stand_in

Document = dict[str, Any]
SCALAR = st.none() | st.booleans() | st.integers() | st.text()
JSON = st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


def test_round_trip(tmp_path: Path) -> None:
    engine = stand_in(tmp_path / "x.engine")
    told = manifest.verify(engine)
    assert manifest.manifest_path(engine).name == "x.engine.json"
    assert json.loads((tmp_path / "x.engine.json").read_text()) == document(engine)
    assert told.model_dump(by_alias=True) == document(engine)
    assert told.max_batch == 16


def test_max_batch_is_what_all_inputs_take(tmp_path: Path) -> None:
    def shapes(limit: int) -> dict[str, list[int]]:
        return {"min": [1, 4], "opt": [2, 4], "max": [limit, 4]}

    two = [{"a": shapes(16), "b": shapes(8)}]
    engine = stand_in(tmp_path / "x.engine", profiles=two)
    assert manifest.read(engine).max_batch == 8
    fixed = [{"name": "input", "dtype": "float32", "shape": [4, 3, 8, 8]}]
    assert manifest.read(stand_in(tmp_path / "y.engine", profiles=[], inputs=fixed)).max_batch == 4


def edited(engine: Path, edit: Callable[[Document], object]) -> None:
    path = manifest.manifest_path(engine)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda d: d.update(schema=2), "has the schema 2; schema 1"),
        (lambda d: d.update(schema=True), "has the schema a bool; schema 1"),
        (lambda d: d.pop("schema"), "has the schema a NoneType; schema 1"),
        (lambda d: d.update(bytes="17"), "bytes: Input should be a valid integer"),
        (lambda d: d.update(bytes=-1), "bytes: Input should be greater than or equal to 0"),
        (lambda d: d.update(sha256="zz"), "sha256: String should match pattern"),
        (lambda d: d.update(sha256="0" * 64 + "\n"), "sha256: String should match pattern"),
        (lambda d: d.update(flavour="onnx"), "flavour: Input should be 'tensorrt' or 'tensorrt_rtx'"),
        (lambda d: d.update(target="../SM86"), "target: String should match pattern"),
        (lambda d: d.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda d: d.pop("layers"), "layers: Field required"),
        (lambda d: d["inputs"][0]["shape"].append(0), "inputs.0.shape.4.* greater than or equal to 1"),
        (lambda d: d["inputs"][0].update(dtype="float8"), "inputs.0.dtype: Input should be 'float32'"),
        (lambda d: d.update(inputs=[]), "inputs: List should have at least 1 item"),
        (lambda d: d.update(file="other.engine"), "belongs to 'other.engine'; the manifest of 'x.engine'"),
    ],
)
def test_refuses_a_manifest_that_is_not_one(tmp_path: Path, edit: Callable[[Document], object], found: str) -> None:
    engine = stand_in(tmp_path / "x.engine")
    edited(engine, edit)
    with pytest.raises(UserError, match=found) as caught:
        manifest.read(engine)
    assert "x.engine.json" in caught.value.found
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is not JSON"),
        (b"[]", "has the schema a NoneType"),
        (b'{"schema": 1, "seconds": NaN}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b" " * (manifest.MAX_BYTES + 1), "is over 1048576 bytes"),
    ],
    ids=["empty", "list", "nan", "deep", "long", "binary", "huge"],
)
def test_refuses_what_is_no_json_object(tmp_path: Path, content: bytes, found: str) -> None:
    engine = stand_in(tmp_path / "x.engine")
    manifest.manifest_path(engine).write_bytes(content)
    with pytest.raises(UserError, match=found) as caught:
        manifest.read(engine)
    assert "build the engine again" in caught.value.remedy


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(JSON)
def test_any_value_in_any_field_is_read_or_refused(tmp_path: Path, value: Any) -> None:
    engine = stand_in(tmp_path / "x.engine")
    valid = document(engine)
    for field in valid:
        manifest.manifest_path(engine).write_text(json.dumps({**valid, field: value}))
        try:
            told = manifest.read(engine)
        except UserError as error:
            assert "x.engine.json" in error.found
        else:
            kept = told.model_dump(by_alias=True)[field]
            assert kept == value
            assert isinstance(kept, bool) == isinstance(value, bool)


def test_verify_refuses_truncated_altered_and_missing(tmp_path: Path) -> None:
    engine = stand_in(tmp_path / "x.engine", b"engine bytes")
    engine.write_bytes(b"engine byte")
    with pytest.raises(
        UserError, match="is 11 bytes long; 12 bytes as in its manifest; build it again: python -m export"
    ):
        manifest.verify(engine)
    engine.write_bytes(b"engine bytez")
    with pytest.raises(UserError, match=r"has the SHA-256 [0-9a-f]{12}\.\.\.; [0-9a-f]{12}\.\.\. as in its manifest"):
        manifest.verify(engine)
    engine.unlink()
    with pytest.raises(UserError, match=r"x\.engine is missing"):
        manifest.verify(engine)
    manifest.manifest_path(engine).unlink()
    with pytest.raises(UserError, match=r"x\.engine\.json cannot be read"):
        manifest.read(engine)


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


AMPERE, ADA = Gpu("NVIDIA RTX 3090", "SM86", "13.0"), Gpu("NVIDIA L4", "SM89", "13.0")
RTX = {"flavour": "tensorrt_rtx", "version": "1.7.1.116"}


@pytest.mark.parametrize(
    ("changes", "gpu", "module", "status", "reasons"),
    [
        ({}, AMPERE, trt("10.9.0.34"), "ok", ()),
        ({}, AMPERE, trt("10.9.0.99"), "ok", ()),
        ({}, AMPERE, trt("10.10.0.1"), "wrong machine", ("tensorrt is 10.10.0.1 here, .* built by 10.9.0.34",)),
        ({}, ADA, trt("10.9.0.34"), "wrong machine", ("the GPU is SM89, the engine is for SM86",)),
        ({}, None, trt("10.9.0.34"), "wrong machine", ("no NVIDIA GPU",)),
        ({}, None, None, "wrong machine", ("tensorrt cannot be imported", "no NVIDIA GPU")),
        ({}, AMPERE, None, "wrong machine", ("tensorrt cannot be imported",)),
        (RTX, AMPERE, trt("1.7.1.116"), "ok", ()),
        (RTX, ADA, trt("1.7.1.116", Validity.SUBOPTIMAL), "ok", ("slower than one built for this GPU",)),
        (RTX, ADA, trt("1.7.1.116", Validity.INVALID, 2), "wrong machine", ("refuses it: UNSUPPORTED_CC",)),
        (RTX, ADA, trt("1.7.1.116", Validity.INVALID, 0), "unknown", ("gives no reason; the GPU is SM89",)),
        (RTX, ADA, trt("1.7.1.116", Validity.INVALID, 64), "unknown", ("gives no reason", "CUDA_ERROR")),
        (RTX, ADA, trt("1.8.0.1"), "wrong machine", ("tensorrt_rtx is 1.8.0.1 here",)),
    ],
)
def test_preflight(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: Document,
    gpu: Gpu | None,
    module: Any,
    status: str,
    reasons: tuple[str, ...],
) -> None:
    def load(flavour: str) -> Any:
        if module is None:
            raise EngineUnavailable(f"{flavour} cannot be imported: none here")
        return module

    monkeypatch.setattr(manifest, "first_gpu", lambda: gpu)
    monkeypatch.setattr(manifest, "load", load)
    told = manifest.preflight(stand_in(tmp_path / "x.engine", **changes))
    assert told.status == status
    assert told.exit_code == {"ok": 0, "wrong machine": 1, "unknown": 3}[status]
    assert len(told.reasons) == len(reasons)
    for reason, expected in zip(told.reasons, reasons, strict=True):
        assert re.search(expected, reason)


def test_preflight_without_a_manifest_is_unknown(tmp_path: Path) -> None:
    engine = tmp_path / "foreign.engine"
    engine.write_bytes(b"bytes")
    told = manifest.preflight(engine)
    assert (told.status, told.exit_code) == ("unknown", 3)
    assert "foreign.engine.json is missing" in told.reasons[0]
    with pytest.raises(UserError, match=r"gone\.engine is missing; an engine file"):
        manifest.preflight(tmp_path / "gone.engine")


def test_preflight_refuses_an_altered_engine(tmp_path: Path) -> None:
    engine = stand_in(tmp_path / "x.engine", b"engine bytes")
    engine.write_bytes(b"engine bytez")
    with pytest.raises(UserError, match="as in its manifest"):
        manifest.preflight(engine)
    assert engine.exists()
