"""The image, built from the Dockerfile on a Debian base made here: what it is, and that the line runs in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.builder import Built, built, missing

pytestmark = pytest.mark.container


def demand_builder() -> None:
    """Skip where no image can be built; in CI, where one is installed, fail."""
    if reason := missing():
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def image() -> Iterator[Built]:
    demand_builder()
    with built() as one:
        yield one


def test_it_starts_demport_as_a_user_without_rights(image: Built) -> None:
    config = image.config()["config"]
    assert config["Entrypoint"] == ["demport"]
    assert config["User"] == "10001"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert "--version" in config["Healthcheck"]["Test"]


def test_it_says_what_it_is_and_holds_no_tests_or_secrets(image: Built) -> None:
    labels = image.config()["config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "demport"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    found = image.shell(
        "ls -a /src /workspace; find / -xdev -name '*.key' -o -xdev -name '.env' | grep -v /etc/ssl || true"
    )
    assert "tests" not in found.split() and ".git" not in found.split()
    assert ".env" not in found and "configs" in found


def test_help_and_doctor(image: Built) -> None:
    helped, doctor = image.run("--help"), image.run("doctor")
    assert helped.returncode == 0 and "shrink" in helped.stdout
    assert doctor.returncode == 0, doctor.stderr
    assert "torch" in doctor.stdout and "onnxruntime" in doctor.stdout


def test_the_quickstart_runs_to_its_report(image: Built, tmp_path: Path) -> None:
    """A few epochs, so the gates on accuracy and speed are opened; engines are built as ever."""
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(0o1777)
    short = ["dense.epochs=3", "demp.epochs=3", "check.gates.max_accuracy_drop=100", "check.gates.min_speedup=0"]
    sets = [word for one in short for word in ("--set", one)]
    done = image.run("run", "configs/quickstart.yaml", *sets, volume=f"{runs}:/workspace/runs", timeout_s=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "pass"
    report = json.loads((runs / "quickstart" / "report.json").read_text("utf-8"))
    assert report["schema"] == 1
    assert {engine["flavour"] for engine in report["engines"]} == {"tensorrt_rtx"}
    assert (runs / "quickstart" / "report.html").stat().st_uid == 10001
    published = image.run("publish", "runs/quickstart", "runs/serving/models", volume=f"{runs}:/workspace/runs")
    assert published.returncode == 0, published.stderr[-3000:]
    assert (runs / "serving" / "models" / "quickstart_classify" / "config.pbtxt").is_file()


@pytest.mark.slow
def test_the_stage_ci_runs_the_default_tests() -> None:
    demand_builder()
    with built("ci") as image:
        config = image.config()["config"]
        assert (config["User"], config["Cmd"]) == ("10001", ["make", "test"])
        done = image.run(timeout_s=1800)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert " passed" in done.stdout
