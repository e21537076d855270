"""The services of compose.yaml as containers, one after the other: pipeline, publish, triton, client.

Volumes, capabilities, the read-only root, /tmp and shared memory are as compose.yaml says; order and network are the
test's, which asks the health check's address itself. Triton is the server tier's, with a backend of ours in place of
ONNX Runtime's, and not NVIDIA's image.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from export.serving.release_index import read_index, write_index
from pipeline.config import yaml
from tests.container.builder import ROOT, Built
from tests.container.services import Project, service
from tests.container.triton import PORT, demand_server, triton

pytestmark = pytest.mark.container


def short() -> str:
    """The quickstart of a few epochs, so the gates on accuracy and speed are opened; engines are built as ever."""
    document = YAML(typ="safe").load((ROOT / "configs" / "quickstart.yaml").read_text("utf-8"))
    document["dense"]["epochs"] = document["sparse"]["epochs"] = 3
    document["check"] = {"gates": {"max_accuracy_drop": 100, "min_speedup": 0}}
    told: str = yaml.dump(document)
    return told


@pytest.fixture(scope="module")
def project(image: Built, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("compose")
    volumes = {name: folder / name for name in ("runs", "serving")}
    for volume in volumes.values():
        volume.mkdir()
        volume.chmod(0o1777)
    (volumes["runs"] / "short.yaml").write_text(short())
    (folder / "hosts").write_text("127.0.0.1 localhost triton\n")
    return Project(image, image.new_base(), volumes, folder / "hosts")


@pytest.fixture(scope="module")
def published(project: Project) -> Path:
    """The pipeline's run, published by the next service; the folder that Triton serves."""
    done = project.run("pipeline", CONFIG="runs/short.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "pass"
    done = project.run("publish")
    assert done.returncode == 0, done.stderr[-3000:]
    return project.volumes["serving"] / "models"


def test_pipeline_and_publish(project: Project, published: Path) -> None:
    run = project.volumes["runs"] / "served"
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert report["schema"] == 1
    assert {engine["flavour"] for engine in report["engines"]} == {"tensorrt_rtx"}
    assert (run / "report.html").stat().st_uid == 10001
    assert (published / "quickstart_classify" / "config.pbtxt").is_file()


def ask(project: Project, port: int, wait_s: int = 120) -> subprocess.CompletedProcess[str]:
    """compose's `client`, at the port where its server is."""
    return project.run("client", replacing={f"http://triton:{PORT}": f"http://triton:{port}", "120": str(wait_s)})


def told(done: subprocess.CompletedProcess[str]) -> tuple[int, str, dict[str, str]]:
    """Exit code, status, and each model's."""
    assert done.stdout, done.stderr[-3000:]
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return done.returncode, document["status"], {one["name"]: one["status"] for one in document["models"]}


def with_another_answer(published: Path, model: str, folder: Path) -> Path:
    """A copy of the volume in which another answer of a model is recorded, with an index that is true of it."""
    copy = Path(shutil.copytree(published, folder / "models"))
    path = copy / model / "sample-response.json"
    recorded = json.loads(path.read_text("utf-8"))
    recorded["outputs"][0]["data"][0] += 1
    path.write_text(json.dumps(recorded))
    write_index(copy, "triton", 1, read_index(copy).models)
    folder.chmod(0o755)  # pytest's are private, and the client is another user
    return folder


def test_triton_and_client(project: Project, published: Path, tmp_path: Path) -> None:
    venv = demand_server()
    names = ("quickstart", "quickstart_fp16", "quickstart_classify", "quickstart_fp16_classify")
    with triton(project, venv) as port:
        assert told(ask(project, port)) == (0, "pass", dict.fromkeys(names, "pass"))
        wrong = {**project.volumes, "serving": with_another_answer(published, "quickstart_fp16", tmp_path)}
        done = ask(dataclasses.replace(project, volumes=wrong), port)
        assert told(done) == (1, "fail", dict.fromkeys(names, "pass") | {"quickstart_fp16": "fail"})
    done = ask(project, port, wait_s=1)  # the server is gone
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: http://triton:{port}: no server is ready there; a server ready within 1 s" in done.stderr


PLACES = ("/opt", "/workspace", "/workspace/runs", "/workspace/serving", "/serving", "/tmp")
PROBE = f"""
grep -E '^(CapPrm|CapEff|CapBnd|NoNewPrivs):' /proc/self/status
for folder in {" ".join(PLACES)}; do
  if touch $folder/probe 2>/dev/null; then rm $folder/probe; echo "$folder: writable"; fi
done
echo "user: $(id -u)"
echo "home: $HOME"
echo "shm: $(df --output=size -B 1M /dev/shm | tail -n 1)"
"""


@pytest.mark.parametrize("name", ["pipeline", "publish", "triton", "client"])
def test_a_service_has_the_rights_that_compose_gives(project: Project, name: str) -> None:
    """Those of a user that may write to /workspace, or of root, less what compose takes away."""
    done = project.probe(name, ["sh", "-c", PROBE])
    assert done.returncode == 0, done.stderr
    found = {key: value.strip() for key, _, value in (line.partition(":") for line in done.stdout.splitlines())}
    assert {found[key] for key in ("CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"
    volumes = {volume.split(":")[1] for volume in service(name)["volumes"] if not volume.endswith(":ro")}
    own = {"/opt"} if name == "triton" else set()
    assert {key for key in found if key in PLACES} == {"/tmp"} | volumes | own
    if name == "triton":
        assert (found["user"], found["shm"]) == ("0", "256")
    else:
        assert (found["user"], found["home"]) == ("10001", "/home/demport")
