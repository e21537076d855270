"""The GitHub workflows do what CI does here, with rights to read and nothing else."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

FOLDER = Path(__file__).parents[1] / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    document = YAML(typ="safe").load(path.read_text("utf-8"))
    assert document["permissions"] == {"contents": "read"}
    found: dict[str, Any] = document["jobs"]
    return found


def scripts(path: Path) -> list[str]:
    return [step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_job_is_bounded_and_every_action_pinned(path: Path) -> None:
    for name, job in jobs(path).items():
        assert job["timeout-minutes"] <= 40, name
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])  # a tag can be moved
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False
            # A title or branch name in a script would be code of whoever opens the pull request.
            assert "${{ github" not in step.get("run", "")


def test_they_cover_what_ci_runs() -> None:
    told = "\n".join(script for path in FILES for script in scripts(path))
    for part in ("make test", "make demo", "pytest -m server", "docker build --target runtime", "demport gate"):
        assert part in told
    uploads = [str(job) for path in FILES for job in jobs(path).values() if "upload-artifact" in str(job)]
    assert len(uploads) == 2 and all("report.html" in upload for upload in uploads)


def test_commands_of_the_workflows_parse() -> None:
    from pipeline.cli import app

    group: Any = typer.main.get_command(app)
    seen = []
    for path in FILES:
        for script in scripts(path):
            for line in script.replace("\\\n", " ").splitlines():
                match = re.search(r"\b(?:demport|in_image) ((?:run|gate|publish) .*?)(?:\|\||$)", line)
                if match:
                    command, *words = shlex.split(match[1])
                    assert group.commands[command].make_context(command, words).args == []
                    seen.append(command)
    assert seen.count("run") == 3 and seen.count("gate") == 2 and seen.count("publish") == 1
