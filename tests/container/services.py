"""The services of compose.yaml, run by buildah as compose would: their own commands, volumes, rights and file systems.

buildah's chroot isolation shares the host's network, and does not know a read-only root, shared memory of a size or
`no-new-privileges`. A shell in the container sets these up as the service asks for them, and hands on to the service's
command with no right left.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.container.builder import ROOT, Built

SETS_UP = ("--user", "0", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETPCAP")
"""What buildah gives to the shell, and the shell to nobody."""


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    document = YAML(typ="safe").load((ROOT / name).read_text("utf-8"))
    assert isinstance(document, dict)
    return document


def service(name: str) -> dict[str, Any]:
    told = compose()["services"][name]
    assert isinstance(told, dict)
    return told


def words_of(told: Mapping[str, Any], **variables: str) -> list[str]:
    """A service's entry point and command with its variables, as compose fills them in."""

    def fill(match: re.Match[str]) -> str:
        return variables.get(match[1], match[2]) if match[1] else "$"

    words = [*told.get("entrypoint", ()), *told["command"]]
    return [re.sub(r"\$\{(\w+):-([^}]*)\}|\$\$", fill, word) for word in words]


def confined(told: Mapping[str, Any], user: str | None) -> list[str]:
    """The words before a service's command: they set up what it asks for and drop the rights it does without.

    `user` is the image's, None for root.
    """
    script = [f"mount -t tmpfs -o size={told['shm_size']} shm /dev/shm"] if "shm_size" in told else []
    script += [f"mount -t tmpfs tmpfs {folder}" for folder in told.get("tmpfs", ())]
    script += ["mount -o remount,bind,ro /"] if told.get("read_only") else []
    script += [f'export HOME="$(getent passwd {user} | cut -d: -f6)"'] if user else []
    drop = ["setpriv", *(("--reuid", user, "--regid", user, "--clear-groups") if user else ())]
    drop += ["--bounding-set=-all", "--inh-caps=-all"] if "ALL" in told.get("cap_drop", ()) else []
    drop += ["--no-new-privs"] if "no-new-privileges:true" in told.get("security_opt", ()) else []
    return ["sh", "-ec", "\n".join([*script, 'exec "$@"']), "sh", *drop]


@dataclass(frozen=True)
class Project:
    """compose's `volumes` as folders of the host; `hosts` becomes /etc/hosts, `base` is the container for Triton."""

    image: Built
    base: str
    volumes: Mapping[str, Path]
    hosts: Path

    def words(self, name: str, command: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        """The command line that runs `command` as the service would run its own."""
        told = service(name)
        ours = told["image"] == "demport:latest"
        user = str(self.image.config()["config"]["User"]) if ours else None
        mounts = [f"{self.hosts}:/etc/hosts:ro"]  # with --no-hosts, else buildah's own lies over it every other time
        for volume in told["volumes"]:
            source, _, place = volume.partition(":")
            mounts.append(f"{self.volumes[source]}:{place}")
        given = ["--no-hosts", *SETS_UP, *options, *(word for mount in mounts for word in ("--volume", mount))]
        container = self.image.container if ours else self.base
        return self.image.words(container, [*confined(told, user), *command], given)

    def run(
        self, name: str, *, replacing: Mapping[str, str] | None = None, timeout_s: int = 900, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """The service, to its end; `replacing` exchanges whole words of its command."""
        told, changed = service(name), replacing or {}
        first = () if "entrypoint" in told else self.image.config()["config"]["Entrypoint"]
        command = [*first, *words_of(told, **variables)]
        assert set(changed) <= set(command), command
        return self.probe(name, [changed.get(word, word) for word in command], timeout_s)

    def probe(self, name: str, command: Sequence[str], timeout_s: int = 60) -> subprocess.CompletedProcess[str]:
        """Another command in the service's place."""
        words = self.words(name, command)
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=timeout_s)
