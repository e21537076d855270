"""The image, built from the Dockerfile on a Debian base made here: what it is."""

from __future__ import annotations

import pytest

from tests.container.builder import Built, built, demand_builder

pytestmark = pytest.mark.container


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


@pytest.mark.slow
def test_the_stage_ci_runs_the_default_tests() -> None:
    demand_builder()
    with built("ci") as image:
        config = image.config()["config"]
        assert (config["User"], config["Cmd"]) == ("10001", ["make", "test"])
        done = image.run(timeout_s=1800)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert " passed" in done.stdout
