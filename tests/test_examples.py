"""Each example runs from its first line to its last, in a process and a folder of its own; `own_loop.py` does so in
tests/demport/test_own_loop.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demport import face

ROOT = Path(__file__).parents[1]
NEEDS = {"lightning_callback": "lightning", "hugging_face": "transformers", "ultralytics_yolo": "ultralytics"}
SLOW = ("ultralytics_yolo",)
EXAMPLES = [
    pytest.param(path.stem, marks=pytest.mark.slow if path.stem in SLOW else ())
    for path in sorted((ROOT / "examples").glob("*.py"))
    if path.stem != "own_loop"
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs_and_leaves_a_compact_network(name: str, tmp_path: Path) -> None:
    package = NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore",  # of packages of others, on import and in their loops
        "YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    script = ROOT / "examples" / f"{name}.py"
    line = [sys.executable, str(script)]
    done = subprocess.run(line, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"plan.json", "weights.safetensors"} <= {path.name for path in (tmp_path / "compact").iterdir()}
    assert len(script.read_text("utf-8").splitlines()) <= 60


def test_every_package_that_an_example_needs_is_named() -> None:
    assert {param.values[0] for param in EXAMPLES} == {*NEEDS}
    assert not any("ultralytics" in path.read_text("utf-8") for path in Path(face.__file__).parent.glob("*.py"))
