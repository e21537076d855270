"""`pipeline` -> `export` -> `runtime`: the packages import each other in this direction only, also inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FORBIDDEN = {"runtime": {"pipeline", "export", "tests", "benchmarks"}, "export": {"pipeline", "tests", "benchmarks"},
             "pipeline": {"tests", "benchmarks"}}  # fmt: skip
FILES = [path for package in FORBIDDEN for path in sorted((REPOSITORY / package).rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all modules that a file imports, by statement or by a string such as "runtime.x:y"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            module, colon, function = node.value.partition(":")
            if colon and function.isidentifier() and "." in module:
                yield module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(REPOSITORY).parts[0]
    names = set(imported(ast.parse(path.read_text("utf-8"))))
    assert not names & FORBIDDEN[package], f"{path} imports {names & FORBIDDEN[package]}"


def test_the_check_sees_every_kind_of_import() -> None:
    source = (
        'import export.a as b\ndef f():\n    from pipeline.x import y\nTABLE = {"ort": "runtime.ort_backend:Ort"}\n'
    )
    assert set(imported(ast.parse(source))) == {"export", "pipeline", "runtime"}
    assert {path.relative_to(REPOSITORY).parts[0] for path in FILES} == set(FORBIDDEN)
    assert len(FILES) > 20
