"""A run's repository, as `demport publish` left it, in a real tritonserver: it answers what ONNX Runtime does.

The server, its checks, scheduler, ensembles, HTTP and gRPC are NVIDIA's; in place of its ONNX Runtime backend stands
`backends/onnxruntime`, on the CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from export.serving.release_index import read_index, write_index
from pipeline import cli
from tests.server.clients import Load, Question, grpc_infer, http_infer
from tests.server.tritonserver import Running, tritonserver

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, published by the command; the repository."""
    models = tmp_path_factory.mktemp("published") / "models"
    assert cli.command_line(["publish", str(run), str(models)]) == 0
    return models


@pytest.fixture(scope="module")
def server(published: Path) -> Iterator[Running]:
    with tritonserver(published) as running:
        yield running


def images(count: int) -> Any:
    return np.random.default_rng(5).standard_normal((count, 1, 8, 8)).astype(np.float32)


def expected(repository: Path, version: int, x: Any, model: str = "tiny") -> Any:
    path = str(repository / model / str(version) / "model.onnx")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]


def test_every_model_is_ready(server: Running) -> None:
    states = server.states()
    assert {name: state for name, (state, _) in states.items()} == dict.fromkeys(
        ("tiny", "tiny_fp16", "tiny_pixels", "tiny_names", "tiny_classify", "tiny_fp16_classify"), "READY"
    )
    told = server.get("/v2/models/tiny")
    assert told["versions"] == ["1", "2"] and told["inputs"][0]["shape"] == [-1, 1, 8, 8]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("model", ["tiny", "tiny_fp16"])
@pytest.mark.parametrize("infer", [http_infer, grpc_infer])
def test_values_are_those_of_onnx_runtime(
    server: Running, published: Path, infer: Any, model: str, version: int
) -> None:
    x = images(5)
    got = infer(server, model, x, version)
    np.testing.assert_allclose(got, expected(published, version, x, model), rtol=1e-4, atol=1e-4)
    other = expected(published, 3 - version, x, model)
    assert float(np.abs(got - other).max()) > 1e-2  # the comparison tells versions apart


def test_no_version_means_the_compact_one(server: Running, published: Path) -> None:
    x = images(1)
    got = http_infer(server, "tiny", x, None)
    np.testing.assert_allclose(got, expected(published, 2, x), rtol=1e-4, atol=1e-4)
    assert got.shape == (1, 10)


def test_labels_come_back_with_the_scores(server: Running, published: Path) -> None:
    """Triton's classification extension reads labels.txt."""
    x = images(1)
    body = {
        "inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": x.ravel().tolist()}],
        "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
    }
    score, index, label = server.infer("tiny", body)["logits"]["data"][0].split(":")
    logits = expected(published, 2, x)
    assert int(index) == int(logits.argmax()) and label == index
    assert float(score) == pytest.approx(float(logits.max()), abs=1e-3)


def demport(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "demport", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_ask_finds_what_was_recorded(server: Running, published: Path) -> None:
    code, told = demport("ask", server.url, published, "--wait", "20")
    assert (code, told["status"]) == (0, "pass")
    assert {one["name"]: one["status"] for one in told["models"]} == dict.fromkeys(
        ("tiny", "tiny_fp16", "tiny_classify", "tiny_fp16_classify"), "pass"
    )


def test_a_digit_from_the_command_line(server: Running, published: Path, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    agreed = 0
    sample = published / "tiny_classify" / "sample.png"
    recorded = json.loads((sample.parent / "sample-response.json").read_text())["outputs"][0]["data"]
    code, told = demport("ask", server.url, published, "--image", sample, "--model", "tiny_classify")
    assert (code, [one["class"] for one in told["models"]]) == (0, recorded)
    for row in (0, 1, 2):
        picture = tmp_path / f"{row}.png"
        Image.fromarray((digits.images[row] * (255 / 16)).round().astype(np.uint8)).save(picture)
        code, told = demport("ask", server.url, published, "--image", picture, "--model", "tiny_classify")
        body = {"inputs": [{"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8",
                            "data": digits.images[row].astype(int).ravel().tolist()}]}  # fmt: skip
        wanted = server.infer("tiny_classify", body)["class"]["data"]
        agreed += (code, [one["class"] for one in told["models"]]) == (0, wanted)
    assert agreed == 3
    assert len(wanted) == 1


def test_ask_fails_where_another_answer_was_recorded(server: Running, published: Path, tmp_path: Path) -> None:
    import shutil

    other = Path(shutil.copytree(published, tmp_path / "other"))
    path = other / "tiny" / "sample-response.json"
    recorded = json.loads(path.read_text())
    recorded["outputs"][0]["data"][3] += 1
    path.write_text(json.dumps(recorded))
    write_index(other, "triton", 1, read_index(other).models)
    code, told = demport("ask", server.url, other)
    assert (code, told["status"]) == (1, "fail")
    assert {one["name"] for one in told["models"] if one["status"] == "fail"} == {"tiny"}


def test_sixteen_clients_for_a_minute(server: Running, published: Path) -> None:
    """Zero errors and zero wrong answers; eight clients over HTTP, eight over gRPC, batches of 1 to 4."""
    x = images(64)
    load = Load(server, Question("tiny"), x, [expected(published, 2, x)])
    load.start(http=8, grpc=8)
    time.sleep(60)
    told = load.stop()
    assert (told.errors, told.wrong) == ([], 0)
    assert told.answers > 2000
    assert min(told.by_client) > 10, told.by_client  # nobody starves
    assert threading.active_count() < 8


def test_the_check_of_the_load_finds_wrong_answers(server: Running, published: Path) -> None:
    x = images(8)
    load = Load(server, Question("tiny"), x, [expected(published, 1, x)])  # the other version's
    load.start(http=1, grpc=1)
    time.sleep(1)
    told = load.stop()
    assert told.answers == 0
    assert told.wrong > 2 and told.errors == []
