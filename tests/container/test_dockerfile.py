"""The Dockerfile as text: clean under hadolint, and without what a rootless builder does not know."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.container.builder import ROOT
from tests.container.services import compose

TEXT = (ROOT / "Dockerfile").read_text("utf-8")


def test_hadolint_has_nothing_to_say() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


def test_it_builds_with_any_builder() -> None:
    """`runtime` comes first, because a builder that does not skip unused stages builds all before the one asked for."""
    assert "# syntax=" not in TEXT and "<<" not in TEXT
    assert re.search(r"^ARG BASE_IMAGE=nvcr\.io/nvidia/tensorrt:\d\d\.\d\d-py3$", TEXT, re.MULTILINE)
    assert re.search(r"^ARG CI_BASE_IMAGE=debian:bookworm-\d{8}-slim$", TEXT, re.MULTILINE)
    stages = re.findall(r"^FROM (.*)$", TEXT, re.MULTILINE)
    assert stages == ["${BASE_IMAGE} AS runtime", "${CI_BASE_IMAGE} AS ci", "runtime"]


def test_both_stages_run_without_rights_and_say_what_they_are() -> None:
    for stage in TEXT.split("\nFROM ")[1:3]:
        assert stage.rindex("USER 10001") > stage.rindex("apt-get")
        assert "HEALTHCHECK" in stage and "org.opencontainers.image.licenses" in stage
        assert "--mount=type=cache" in stage
    assert not re.search(r"(?i)password|token|secret|api_key", TEXT)


def test_everything_that_is_copied_passes_dockerignore() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", TEXT, re.MULTILINE) for word in line.split()}
    assert copied - {"."} <= allowed
    assert "*" in lines and all((ROOT / name).exists() for name in allowed)
    for never in (".git", ".venv", "runs", ".env"):
        assert never not in allowed


def test_the_image_triton_runs_is_of_the_month_of_the_image_that_builds_engines() -> None:
    """An engine loads only in the TensorRT that built it."""
    builds = re.search(r"nvidia/tensorrt:(\d\d\.\d\d)-py3", TEXT)
    serves = re.search(r"nvidia/tritonserver:(\d\d\.\d\d)-py3", str(compose()["services"]["triton"]["image"]))
    assert builds and serves and builds[1] == serves[1]
    assert str(compose()["services"]["pipeline"]["build"]["args"]["BASE_IMAGE"]).count(builds[1]) == 1


def test_compose_is_a_chain_in_which_nobody_has_more_than_needed() -> None:
    services = compose()["services"]
    after = {name: list(service.get("depends_on", ())) for name, service in services.items()}
    assert after == {"pipeline": [], "publish": ["pipeline"], "triton": ["publish"], "client": ["triton"]}
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert not service.get("privileged")
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert [v for name in ("triton", "client") for v in services[name]["volumes"] if not v.endswith(":ro")] == []
    assert set(compose("compose.gpu.yaml")["services"]) <= set(services)


def test_the_commands_of_compose_are_demports() -> None:
    import typer

    from pipeline.cli import app

    group: Any = typer.main.get_command(app)
    for name in ("publish", "client"):
        command, *words = compose()["services"][name]["command"]
        context = group.commands[command].make_context(command, words)
        assert context.args == [] and command in ("publish", "ask")
