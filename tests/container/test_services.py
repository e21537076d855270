"""How a service of compose.yaml is told to buildah, and what stands in for Triton; needs no container."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.container import builder, triton
from tests.container.services import compose, confined, service, words_of


def test_variables_are_filled_in_as_compose_does() -> None:
    assert words_of(service("pipeline"))[-1] == "configs/quickstart.yaml"
    words = words_of(service("pipeline"), CONFIG="other.yaml")
    assert words[-1] == "other.yaml" and words[:2] == ["sh", "-c"]
    assert '"$0"' in words[2] and "$$" not in words[2]


@pytest.mark.parametrize("name", ["pipeline", "publish", "client"])
def test_our_services_lose_their_rights_before_their_command(name: str) -> None:
    shell, option, script, zero, *drop = confined(service(name), "10001")
    assert (shell, option, zero) == ("sh", "-ec", "sh")
    assert script.splitlines()[:2] == ["mount -t tmpfs tmpfs /tmp", "mount -o remount,bind,ro /"]
    assert script.endswith('exec "$@"') and "/dev/shm" not in script
    assert drop == [
        "setpriv", "--reuid", "10001", "--regid", "10001", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
        "--no-new-privs",
    ]  # fmt: skip


def test_triton_gets_its_shared_memory_and_stays_root() -> None:
    script, _, *drop = confined(service("triton"), None)[2:]
    assert script == 'mount -t tmpfs -o size=256m shm /dev/shm\nexec "$@"'
    assert drop == ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


def test_what_compose_does_not_ask_for_is_not_set_up() -> None:
    assert confined({}, None) == ["sh", "-ec", 'exec "$@"', "sh", "setpriv"]
    known = {"image", "build", "entrypoint", "command", "volumes", "depends_on", "ports", "healthcheck",
             "read_only", "tmpfs", "cap_drop", "security_opt", "shm_size"}  # fmt: skip
    for name, told in compose()["services"].items():
        assert set(told) <= known, name  # a key that nobody follows here


def test_without_a_server_it_skips_and_in_ci_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline() -> Path:
        raise AssertionError("pip install\nno network")

    monkeypatch.setattr(triton, "server_environment", offline)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no tritonserver can be installed here: no network"):
        triton.demand_server()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError, match="no network"):
        triton.demand_server()


def test_a_full_disk_is_told_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=9 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setattr(builder, "_memory", lambda: None)
    assert builder._no_room() == "the image takes 21 GiB under /tmp while it is built, 9 are free"
    monkeypatch.setattr(builder, "_memory", lambda: Path("/dev/shm"))  # where one of the three copies lies
    assert builder._no_room() == "the image takes 14 GiB under /tmp while it is built, 9 are free"
    usage = usage._replace(free=15 * 2**30)
    assert builder._no_room() is None


def test_a_server_that_ignores_the_end_is_killed_with_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "PATIENCE_S", 0.2)
    process = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True)
    triton._stop(process)
    assert process.returncode == -9
    triton._stop(process)  # and one that is gone is left alone
