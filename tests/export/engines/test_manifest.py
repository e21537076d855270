"""The sidecar is read strictly, held against the engine, and compared with the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.engines import manifest
from export.engines.options import EngineOptions
from runtime.backends import SIDECAR_BYTES
from runtime.documents import seal_of
from runtime.errors import UserError
from tests.export.small_engines import document, stand_in

Document = dict[str, Any]
SCALAR = st.none() | st.booleans() | st.integers() | st.text()
JSON = st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


def test_round_trip(tmp_path: Path) -> None:
    engine = stand_in(tmp_path / "x.engine")
    told = manifest.verify(engine)
    assert manifest.manifest_path(engine).name == "x.engine.json"
    content = json.loads((tmp_path / "x.engine.json").read_text())
    assert content.pop("seal") == seal_of(document(engine))
    assert content == document(engine)
    assert json.loads(told.model_dump_json(by_alias=True)) == document(engine)
    assert told.max_batch == 16


def test_max_batch_is_what_all_inputs_take(tmp_path: Path) -> None:
    def shapes(limit: int) -> dict[str, list[int]]:
        return {"min": [1, 4], "opt": [2, 4], "max": [limit, 4]}

    two = [{"a": shapes(16), "b": shapes(8)}]
    engine = stand_in(tmp_path / "x.engine", profiles=two)
    assert manifest.read(engine).max_batch == 8
    two_profiles = [{"a": shapes(4)}, {"a": shapes(32)}]
    assert manifest.read(stand_in(tmp_path / "z.engine", profiles=two_profiles)).max_batch == 32
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
        (lambda d: d.update(schema=1), "has the schema 1; schema 3"),
        (lambda d: d.update(schema=True), "has the schema a bool; schema 3"),
        (lambda d: d.pop("schema"), "has the schema a NoneType; schema 3"),
        (lambda d: d.update(bytes="17"), "bytes: Input should be a valid integer"),
        (lambda d: d.update(bytes=-1), "bytes: Input should be greater than or equal to 0"),
        (lambda d: d.update(sha256="zz"), "sha256: String should match pattern"),
        (lambda d: d.update(sha256="0" * 64 + "\n"), "sha256: String should match pattern"),
        (lambda d: d.update(flavour="onnx"), "flavour: Value error, Input should be one of onnxruntime, "),
        (lambda d: d.update(targets=["../SM86"]), "targets.0: String should match pattern"),
        (lambda d: d.update(targets=[]), "targets: List should have at least 1 item"),
        (lambda d: d["proof"].update(share=1.5), "proof.share: Input should be less than or equal to 1"),
        (lambda d: d["proof"].update(share=0.5), "was changed after it was written; a manifest that fits its own seal"),
        (lambda d: d.pop("seal"), "was changed after it was written"),
        (lambda d: d.update(version="ten"), "version: String should match pattern"),
        (lambda d: d["cuda"].update(library="cu13"), "cuda.library: String should match pattern"),
        (lambda d: d["options"].update(tf32=True), "was changed after it was written"),
        (lambda d: d["options"].update(tf32="yes"), "options.tf32: Input should be a valid boolean"),
        (lambda d: d.update(weights={"file": "../w.bin", "sha256": "0" * 64}), "weights: Value error, expected a file"),
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
        (b'{"schema": 3, "seconds": NaN}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b" " * (SIDECAR_BYTES + 1), "over 1048576 bytes"),
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
        changed = {**valid, field: value}
        manifest.manifest_path(engine).write_text(json.dumps({**changed, "seal": seal_of(changed)}))
        try:
            told = manifest.read(engine)
        except UserError as error:
            assert "x.engine.json" in error.found
        else:
            kept = json.loads(told.model_dump_json(by_alias=True))[field]
            assert kept == value or (field == "options" and EngineOptions(**value) == told.options)
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


def test_what_was_measured_is_recorded_and_sealed(tmp_path: Path) -> None:
    engine = stand_in(tmp_path / "x.engine")
    latency = [manifest.Latency(batch=8, p50_ms=0.5, p95_ms=0.75, n=100)]
    told = manifest.record(engine, manifest.Measured(device="NVIDIA L4", accuracy=0.75, latency=latency))
    again = manifest.verify(engine)
    assert again == told
    assert again.measured is not None
    assert (again.measured.device, again.measured.accuracy, again.measured.latency[0].p50_ms) == (
        "NVIDIA L4",
        0.75,
        0.5,
    )
    engine.write_bytes(b"another engine")
    with pytest.raises(UserError, match="bytes long"):
        manifest.record(engine, manifest.Measured(device="NVIDIA L4", accuracy=None, latency=[]))
    assert json.loads(manifest.manifest_path(engine).read_text())["measured"]["accuracy"] == 0.75


def test_a_cut_manifest_is_refused_at_every_length(tmp_path: Path) -> None:
    engine = stand_in(tmp_path / "x.engine")
    whole = manifest.manifest_path(engine).read_bytes()
    for length in range(0, len(whole) - 2, 97):
        manifest.manifest_path(engine).write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"is not JSON|has the schema") as caught:
            manifest.read(engine)
        assert "\n" not in str(caught.value)
