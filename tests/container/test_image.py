"""The image, built from the Dockerfile on a Debian base made here: what it is, and that the line runs in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.container.builder import ROOT, Built, built, missing

pytestmark = pytest.mark.container


def short() -> str:
    """The quickstart of a few epochs, so the gates on accuracy and speed are opened; engines are built as ever."""
    document = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text("utf-8"))
    document["dense"]["epochs"] = document["demp"]["epochs"] = 3
    document["check"] = {"gates": {"max_accuracy_drop": 100, "min_speedup": 0}}
    told: str = yaml.safe_dump(document)
    return told


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
    assert image.shell(" ".join(config["Healthcheck"]["Test"][1:])).startswith("demport ")


def test_it_says_what_it_is_and_holds_no_tests_or_secrets(image: Built) -> None:
    labels = image.config()["config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "demport"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.base.name"] == "localhost/demport-base"
    found = image.shell(
        "ls -a /src /workspace; find / -xdev -name '*.key' -o -xdev -name '.env' | grep -v /etc/ssl || true"
    )
    assert "tests" not in found.split() and ".git" not in found.split()
    assert ".env" not in found and "configs" in found


def test_help_and_doctor(image: Built) -> None:
    helped, doctor = image.run("--help"), image.run("doctor", user="4242")  # as `docker run --user "$(id -u)"` does
    assert helped.returncode == 0 and "shrink" in helped.stdout
    assert doctor.returncode == 0, doctor.stderr
    assert "torch" in doctor.stdout and "onnxruntime" in doctor.stdout


def service(name: str) -> dict[str, Any]:
    told = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"][name]
    assert isinstance(told, dict)
    return told


def words_of(told: dict[str, Any], **variables: str) -> list[str]:
    """A service's command with its variables, as compose fills them in."""

    def fill(match: re.Match[str]) -> str:
        return variables.get(match[1], match[2]) if match[1] else "$"

    return [re.sub(r"\$\{(\w+):-([^}]*)\}|\$\$", fill, word) for word in told["command"]]


def test_the_chain_of_compose(image: Built, tmp_path: Path) -> None:
    """Pipeline and publish: the services' own commands one after the other, on two volumes."""
    volumes = {name: tmp_path / name for name in ("runs", "serving")}
    for folder in volumes.values():
        folder.mkdir()
        folder.chmod(0o1777)
    (volumes["runs"] / "short.yaml").write_text(short())
    mounts = [f"{folder}:/workspace/{name}" for name, folder in volumes.items()]
    pipeline = service("pipeline")
    entrypoint = [word.replace("$$", "$") for word in pipeline["entrypoint"]]
    command = words_of(pipeline, CONFIG="runs/short.yaml")
    done = image.run(*command, entrypoint=entrypoint, volumes=mounts, timeout_s=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "pass"
    report = json.loads((volumes["runs"] / "served" / "report.json").read_text("utf-8"))
    assert report["schema"] == 1
    assert {engine["flavour"] for engine in report["engines"]} == {"tensorrt_rtx"}
    assert (volumes["runs"] / "served" / "report.html").stat().st_uid == 10001

    done = image.run(*words_of(service("publish")), volumes=mounts)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (volumes["serving"] / "models" / "quickstart_classify" / "config.pbtxt").is_file()


@pytest.mark.slow
def test_the_stage_ci_runs_the_default_tests() -> None:
    demand_builder()
    with built("ci") as image:
        config = image.config()["config"]
        assert (config["User"], config["Cmd"]) == ("10001", ["make", "test"])
        done = image.run(timeout_s=1800)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert " passed" in done.stdout
