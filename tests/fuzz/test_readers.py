"""Damaged plans, manifests, baselines, configs and published folders end in one clear line: no crash, no hang, nothing
written, no process, no connection, little memory.

A few hundred inputs for each reader in the default tier, 10,000 for each in the slow tier.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from export import manifest
from export.release_index import INDEX, PublishedModel, read_index, verify_release, write_index
from export.releases import new_release, rollback
from export.triton_config import signature_of_engine
from pipeline import stage_record
from pipeline.config_file import dump_config, load_config
from pipeline.surgery.plan import read_plan
from runtime.baseline import read_baseline
from runtime.errors import UserError
from tests.export.engines import document as manifest_document
from tests.fuzz.damage import damaged, damaged_bytes, text_of
from tests.fuzz.watch import FEW, MANY, attempts, calmly, little_memory

MODEL = PublishedModel(name="net", platform="onnxruntime_onnx", max_batch_size=1, sha256={"1": "a" * 64})

PLAN = {
    "schema": 1,
    "network": "net.Net",
    "source": {"name": "cifar:resnet20", "args": {"width": 4}, "num_classes": 10, "input_shape": [3, 8, 8]},
    "inputs": [{"shape": [2, 3, 8, 8], "dtype": "torch.float32"}],
    "residual": "tied",
    "layers": {"conv.weight": [0, 2, 3]},
    "streams": {},
    "widths": {"conv.weight": 4},
    "biases": ["conv.bias"],
}
BASELINE = {
    "kind": "demport baseline",
    "schema": 1,
    "name": "run",
    "rules": {"accuracy": {"relative": 0.0, "absolute": 0.005}, "p50_ms": None},
    "devices": {"cpu": {"environment": {"cores": 2}, "figures": {"params": 10.0, "accuracy.onnx": 0.9}}},
}


def sealed(data: bytes) -> bytes:
    """The manifest with a seal that is true of it, as somebody who tampers would make it."""
    try:
        content = json.loads(data)
        content.pop("seal", None)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return text_of({**content, "seal": hashlib.sha256(text.encode()).hexdigest()})
    except (ValueError, AttributeError, RecursionError):
        return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, audit: None) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read_manifest(path: Path) -> None:
    signature_of_engine(manifest.read(path.parent / "x.engine"), 16)


def read_stage(path: Path) -> None:
    """Raises UserError where the record has a problem, as the commands do."""
    record = stage_record.read(path.parent)
    if record is None or record.problem is not None:
        raise UserError(f"{path}: {record and record.problem}", "a finished stage", "run it")


def valid_manifest() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        engine = Path(name) / "x.engine"
        engine.write_bytes(b"engine")
        return manifest_document(engine)


def configs() -> st.SearchStrategy[bytes]:
    from pipeline.config import Config

    text = dump_config(Config()).encode()
    tree = Config().model_dump(mode="json")
    return st.one_of(damaged(tree), damaged_bytes(text))


READERS: dict[str, tuple[str, Callable[[Path], object], Callable[[], st.SearchStrategy[bytes]]]] = {
    "plan": ("plan.json", read_plan, lambda: damaged(PLAN)),
    "manifest": ("x.engine.json", read_manifest, lambda: damaged(valid_manifest()).map(sealed)),
    "baseline": ("baseline.json", read_baseline, lambda: damaged(BASELINE)),
    "config": ("config.yaml", load_config, configs),
    "stage record": ("stage.json", read_stage, lambda: damaged(stage(PLAN))),
    "index": (INDEX, lambda path: read_index(path.parent), lambda: damaged(index())),
}


def stage(result: Any) -> Any:
    return {
        "schema": 1, "stage": "50-simplify", "fingerprint": "a", "inputs": {}, "upstream": {}, "code": 1,
        "versions": {}, "files": {"x": {"sha256": "a" * 64, "bytes": 1}}, "result": result, "digest": "b", "seal": "c",
    }  # fmt: skip


def index() -> Any:
    model = MODEL.model_dump()
    return {"schema": 1, "kind": "triton", "serial": 3, "models": [model], "files": {"net/1/model.onnx": "a" * 64}}


def fuzz(reader: str, folder: Path, count: int) -> int:
    """Reads `count` damaged files; how many of them were still good."""
    name, read, strategy = READERS[reader]
    path = folder / name

    def attempt(data: bytes) -> bool:
        path.write_bytes(data)
        return calmly(lambda: read(path))

    good = attempts(strategy(), count, attempt)
    path.unlink()
    return good


@pytest.mark.parametrize("reader", READERS)
def test_a_few_damaged_files(reader: str, folder: Path) -> None:
    before = set(folder.iterdir())
    assert fuzz(reader, folder, FEW) < FEW
    assert set(folder.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_ten_thousand_damaged_files(reader: str, folder: Path) -> None:
    before = set(folder.iterdir())
    good = fuzz(reader, folder, MANY)
    assert good < MANY * 0.9
    assert set(folder.iterdir()) == before


def fuzz_release(folder: Path, count: int) -> int:
    """Rolls back to a release whose index is damaged, `count` times; how often it was put in place."""
    here, outside, done = folder / "models", folder / "outside", 0
    outside.mkdir()
    (outside / "precious").write_text("precious")

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(index()), st.sampled_from(("file", "link", "absent")))
    def attempt(data: bytes, what: str) -> None:
        nonlocal done
        for path in (here, folder / ".models.previous", folder / ".models.next"):
            shutil.rmtree(path, ignore_errors=True)
        for _ in range(2):
            with new_release(here, replace=here.exists()) as made:
                (made.folder / "net" / "1").mkdir(parents=True)
                (made.folder / "net" / "1" / "model.onnx").write_bytes(b"graph")
                write_index(made.folder, "triton", made.serial, [MODEL])
        before = folder / ".models.previous"
        (before / INDEX).write_bytes(data)
        if what == "link":
            (before / "out").symlink_to(outside)
        elif what == "absent":
            (before / "net" / "1" / "model.onnx").unlink()
        done += calmly(lambda: rollback(here), inside=folder)
        assert verify_release(here).serial >= 1
        assert (outside / "precious").read_text() == "precious" and len(list(outside.iterdir())) == 1

    with little_memory():
        attempt()
    shutil.rmtree(outside)
    return done


def test_a_few_damaged_releases(tmp_path: Path, audit: None) -> None:
    assert fuzz_release(tmp_path, 40) <= 40
    assert not (tmp_path / "outside").exists()


@pytest.mark.slow
def test_a_thousand_damaged_releases(tmp_path: Path, audit: None) -> None:
    assert fuzz_release(tmp_path, 1000) < 1000
    assert not (tmp_path / "outside").exists()


def test_the_watch_sees_what_a_reader_must_not_do(folder: Path, audit: None) -> None:
    for act in (
        lambda: (folder / "written").write_text("x"),
        (folder / "made").mkdir,
        lambda: os.system("true"),
    ):
        with pytest.raises(AssertionError):
            calmly(act)
    assert calmly((folder / "written").read_text)
    (folder / "written").unlink()
    (folder / "made").rmdir()


def test_the_limits_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with little_memory(), pytest.raises(MemoryError):
        bytearray(4 << 30)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    monkeypatch.setattr("tests.fuzz.watch.SECONDS", 0.02)
    with pytest.raises(AssertionError):
        calmly(lambda: [hash(n) for n in range(2_000_000)])
