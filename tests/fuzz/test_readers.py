"""Damaged plans, manifests, baselines, configs, reports, checks, arrays and published folders end in one clear line: no
crash, no hang, nothing written, no process, no connection, little memory.

A few hundred inputs for each reader in the default tier, 10,000 for each in the slow tier.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.engines import manifest
from export.serving.pbtxt import signature_of_engine
from export.serving.release_index import INDEX, PublishedModel, read_index, verify_release, write_index
from export.serving.releases import new_release, rollback
from pipeline.check import results
from pipeline.config import Data
from pipeline.config.file import dump_config, load_config
from pipeline.data import load
from pipeline.report import document as report_document
from pipeline.report.card import hub_card
from pipeline.surgery.plan import read_plan
from pipeline.workspace import record as stage_record
from runtime.errors import UserError
from runtime.gate.baseline import read_baseline
from tests.export.small_engines import document as manifest_document
from tests.fuzz.damage import damaged, damaged_bytes, text_of
from tests.fuzz.watch import FEW, MANY, attempts, calmly, examples, little_memory
from tests.pipeline.report.check_document import check as check_document

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
NETWORK = hashlib.sha256(b"network").hexdigest()
BASELINE = {
    "kind": "demport baseline",
    "schema": 2,
    "name": "run",
    "rules": {"accuracy": {"relative": 0.0, "absolute": 0.005}, "latency": None, "limits": {"macs": 9.0}},
    "release": {
        "figures": {"params": 10.0, "macs": 5.0, "bytes": 7.0, "accuracy.onnx": 0.9}, "engines": ["tensorrt.fp16.SM86"],
        "data": {"source": "digits", "fingerprint": "a"}, "model": {"name": "demo:resnet", "args": {}},
        "config": {"seed": 0}, "environment": {"cores": 2},
    },
    "files": {"onnx": {"file": f"compact.{NETWORK[:12]}.onnx", "sha256": NETWORK, "device": None}},
}  # fmt: skip


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
    """With the network of the baseline and the plan of a compact one, which are whole."""
    path = tmp_path_factory.mktemp("fuzz")
    (path / f"compact.{NETWORK[:12]}.onnx").write_bytes(b"network")
    (path / "compact").mkdir()
    (path / "compact" / "plan.json").write_bytes(text_of(PLAN))
    return path


def read_manifest(path: Path) -> None:
    signature_of_engine(manifest.read(path.parent / "x.engine"), 16)


def read_release(path: Path) -> None:
    read_baseline(path.parent)


def read_npz(path: Path) -> None:
    load(Data(source=f"npz:{path}"))


def arrays() -> bytes:
    """Eight images of two classes, not compressed."""
    generator, file = np.random.default_rng(0), io.BytesIO()
    images, labels = generator.integers(0, 256, (8, 4, 4, 3), np.uint8), np.arange(8) % 2
    np.savez(file, x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    return file.getvalue()


def read_certificate(path: Path) -> None:
    """By the card that goes to a hub with the network."""
    hub_card(path.parent, None, "hf:me/net")


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


CERTIFICATE = {
    "schema": 1, "channels": {"before": 12, "dead": 4, "after": 8}, "evidence": {"by_proof": 4, "by_measurement": 0},
    "law": {"max_rel_diff": 1e-15, "tolerance": 1e-9, "inputs": ["random"], "held": False, "single": []},
    "groups": [{"group": "a", "layers": ["a"], "dead": 4, "kept_dead_because": {"a layer keeps one channel": 1}}],
}  # fmt: skip

READERS: dict[str, tuple[str, Callable[[Path], object], Callable[[], st.SearchStrategy[bytes]]]] = {
    "plan": ("plan.json", read_plan, lambda: damaged(PLAN)),
    "manifest": ("x.engine.json", read_manifest, lambda: damaged(valid_manifest()).map(sealed)),
    "baseline": ("baseline.json", read_release, lambda: damaged(BASELINE)),
    "config": ("config.yaml", load_config, configs),
    "stage record": ("stage.json", read_stage, lambda: damaged(stage(PLAN))),
    "report": ("report.json", report_document.read, lambda: damaged(check_document()).map(sealed)),
    "check": ("check.json", results.read, lambda: damaged(check_document())),
    "npz": ("d.npz", read_npz, lambda: damaged_bytes(arrays())),
    "certificate": ("compact/certificate.json", read_certificate, lambda: damaged(CERTIFICATE)),
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

    @examples(count)
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
