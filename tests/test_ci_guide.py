"""docs/ci-gating.md: its workflows are valid and call commands that exist; its rules are the default ones."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import typer
from ruamel.yaml import YAML

from runtime.gate.baseline import Rules
from tests.test_readme import ROOT, blocks

GUIDE = ROOT / "docs" / "ci-gating.md"


def workflows() -> tuple[dict[str, Any], dict[str, Any]]:
    github, gitlab = (YAML(typ="safe").load(block) for block in blocks(GUIDE, "yaml"))
    return github, gitlab


def scripts() -> dict[str, list[str]]:
    github, gitlab = workflows()
    steps = github["jobs"]["gate"]["steps"]
    return {"github": [step["run"] for step in steps if "run" in step], "gitlab": gitlab["gate"]["script"]}


def test_both_call_commands_that_exist() -> None:
    from pipeline.cli import app

    group: Any = typer.main.get_command(app)
    for name, lines in scripts().items():
        called = []
        for line in lines:
            if match := re.match(r"demport/\.venv/bin/demport (.*?)(?:\|\||$)", line):
                command, *words = shlex.split(match[1])
                assert group.commands[command].make_context(command, words).args == [], line
                called.append(command)
        assert called == ["run", "gate"], name


def test_the_gate_judges_what_the_run_leaves_and_its_files_are_kept() -> None:
    github, gitlab = workflows()
    for lines in scripts().values():
        run, gate = (next(line for line in lines if f"/demport {command} " in line) for command in ("run", "gate"))
        assert re.search(r"--out (\S+)", run)[1] == shlex.split(gate)[2]  # type: ignore[index]
        assert run.endswith("|| test $? -eq 1 -o $? -eq 3") and "||" not in gate
    kept = next(step for step in github["jobs"]["gate"]["steps"] if "upload-artifact" in step.get("uses", ""))
    assert kept["if"] == "always()" and kept["with"]["path"].split() == ["runs/ci/report.html", "gate.xml"]
    assert gitlab["gate"]["artifacts"]["reports"] == {"junit": "gate.xml"}
    assert gitlab["gate"]["allow_failure"] == {"exit_codes": 3}


def test_the_workflow_uses_what_our_own_do() -> None:
    ours = "\n".join(path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    github, _ = workflows()
    job = github["jobs"]["gate"]
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert len(used) == 4 and all(f"uses: {name} #" in ours for name in used)
    assert (
        github["permissions"] == {"contents": "read", "pull-requests": "write"}
        and f"runs-on: {job['runs-on']}\n" in ours
    )
    assert re.search(r"^env:", Path(ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert all("make -C demport env" in lines for lines in scripts().values())


def test_the_rules_of_the_guide_are_the_default_ones() -> None:
    (block,) = blocks(GUIDE, "json")
    assert json.loads(f"{{{block}}}")["rules"] == Rules().model_dump(mode="json")
    assert Rules.model_validate(json.loads(f"{{{block}}}")["rules"]) == Rules()


def test_the_accepted_release_is_fetched_and_the_verdict_becomes_a_comment() -> None:
    for lines in scripts().values():
        fetch, gate = (
            next(i for i, line in enumerate(lines) if part in line) for part in ("accepted.tar.gz", "/demport gate")
        )
        assert fetch < gate and "--baseline accepted " in lines[gate]
    github, _ = workflows()
    comment = next(step for step in github["jobs"]["gate"]["steps"] if "gh pr comment" in step.get("run", ""))
    assert comment["if"].startswith("always()") and "--body-file gate.md" in comment["run"]
    assert "${{" not in "".join(scripts()["github"]), "a title or branch in a script would be code"
