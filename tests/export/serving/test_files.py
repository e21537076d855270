"""An engine that is handed on keeps its manifest, under the name that servers want."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.engines import manifest
from export.engines.preflight import preflight
from export.serving.files import NAME, Model, Sources, copy_versions, safe_name
from runtime.errors import UserError
from tests.export.small_engines import stand_in

LATENCY = [manifest.Latency(batch=8, p50_ms=0.5, p95_ms=0.75, n=100)]


def test_an_engine_goes_with_its_manifest_sealed_for_its_new_name(tmp_path: Path) -> None:
    root = tmp_path / "run"
    engine = stand_in(root / "net.engine", b"engine")
    copy_versions(Model("net", {1: engine}), tmp_path / "net", Sources(root, {}))
    served = tmp_path / "net" / "1" / "model.plan"
    assert sorted(item.name for item in served.parent.iterdir()) == ["model.plan", "model.plan.json"]
    assert manifest.verify(served) == manifest.read(engine).model_copy(update={"file": "model.plan"})
    assert preflight(served).status == "wrong machine"  # it says what it is for: no stand-in loads anywhere
    served.write_bytes(b"engina")
    with pytest.raises(UserError, match="has the SHA-256"):
        preflight(served)


def test_figures_of_the_check_go_with_it(tmp_path: Path) -> None:
    root = tmp_path / "run"
    engine, other = (stand_in(root / f"{name}.engine", name.encode()) for name in ("net", "two"))
    measured = manifest.Measured(device="NVIDIA L4", accuracy=0.75, latency=LATENCY)
    manifest.write(root / "check" / "net.engine", manifest.read(engine).model_copy(update={"measured": measured}))
    sources = Sources(root, {}, measured={engine: root / "check" / "net.engine"})
    copy_versions(Model("net", {1: engine, 2: other}), tmp_path / "net", sources)
    assert manifest.verify(tmp_path / "net" / "1" / "model.plan").measured == measured
    assert manifest.verify(tmp_path / "net" / "2" / "model.plan").measured is None


def test_a_manifest_of_other_bytes_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "run"
    engine, other = (stand_in(root / f"{name}.engine", name.encode()) for name in ("net", "two"))
    manifest.write(root / "check" / "net.engine", manifest.read(other).model_copy(update={"file": "net.engine"}))
    sources = Sources(root, {}, measured={engine: root / "check" / "net.engine"})
    with pytest.raises(UserError, match=r"net\.engine has the SHA-256 .* as recorded"):
        copy_versions(Model("net", {1: engine}), tmp_path / "net", sources)
    assert manifest.read(engine).sha256 != manifest.read(other).sha256


@given(st.text())
def test_any_text_has_a_safe_name(text: str) -> None:
    name = safe_name(text)
    assert NAME.fullmatch(name)
    assert Path("folder", name).resolve().parent == Path("folder").resolve()
    assert safe_name(name) == name
