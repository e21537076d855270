"""What no module of the project may do: run what it reads, go through a shell, or unpickle."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.export.graphs import conv_net

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path for name in ("demport", "pipeline", "export", "runtime", "benchmarks") for path in (ROOT / name).rglob("*.py")
)
NEVER = {
    "eval", "exec", "os.system", "os.popen", "marshal.loads", "marshal.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "pickle.load", "pickle.loads", "joblib.load", "dill.load", "shelve.open", "tempfile.mktemp",
}  # fmt: skip
HUB = ROOT / "demport" / "hub.py"  # fetches and pushes safetensors and JSON, when a user names a repository
NETWORK = {"requests", "urllib.request", "ftplib", "smtplib", "aiohttp", "httpx", "huggingface_hub"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or an attribute, "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str) -> Iterator[str]:
    """Line and reason of each thing that is not allowed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name, words = dotted(node.func), {word.arg: word.value for word in node.keywords}
            given = {key: ast.literal_eval(value) for key, value in words.items() if isinstance(value, ast.Constant)}
            if name in NEVER:
                yield f"{node.lineno}: {name}"
            if given.get("shell") is True or given.get("allow_pickle") is True:
                yield f"{node.lineno}: {name} with {given}"
            if name == "torch.load" and given.get("weights_only") is not True:
                yield f"{node.lineno}: torch.load without weights_only=True"
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (f"{node.lineno}: {name}" for name in names if name in NETWORK)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path: Path) -> None:
    source = path.read_text("utf-8")
    allowed = "huggingface_hub" if path == HUB else None
    assert [fault for fault in faults(source) if fault.partition(": ")[2] != allowed] == []
    assert not source.startswith("#!")


def test_the_search_finds_them() -> None:
    for wrong in (
        "import torch\ntorch.load(x)", "torch.load(x, weights_only=False)", "eval(x)", "subprocess.run(x, shell=True)",
        "np.load(x, allow_pickle=True)", "yaml.load(x)", "import requests", "from urllib.request import urlopen",
        "os.system('x')", "import pickle\npickle.loads(x)",
    ):  # fmt: skip
        assert len(list(faults(wrong))) == 1, wrong
    for right in ("torch.load(x, weights_only=True)", "yaml.safe_load(x)", "subprocess.run([x])", "model.eval()"):
        assert list(faults(right)) == []


def test_onnx_runtime_keeps_no_device_id(tmp_path: Path) -> None:
    """Nor a database of events; without our switch it does, from 1.31 on."""
    net = conv_net(tmp_path / "net.onnx")
    (tmp_path / "home").mkdir()
    env = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    code = f"from runtime import open_session; from pathlib import Path; open_session(Path({str(net)!r}), device='cpu')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**env, "HOME": str(tmp_path / "home")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [str(path) for path in (tmp_path / "home").rglob("*") if path.is_file()] == []
