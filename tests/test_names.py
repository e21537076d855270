"""A name says what the value is, not what happened to it: no variable, argument, attribute or function is called
told, found, made, kept, known, given, wanted or left."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.conftest import REPOSITORY

WORDS = {"told", "found", "made", "kept", "known", "given", "wanted", "left"}
ALLOWED = {
    ("runtime/errors.py", "found"),  # UserError's three documented fields
    ("runtime/documents.py", "found"),  # the same three, of a validation error
    ("export/precision/lower.py", "kept"),  # a key of casts.json and report.json
    ("pipeline/training/state.py", "left"),  # a key of history.jsonl and report.json
    ("pipeline/config/__init__.py", "given"),  # a section of the config
    ("pipeline/data/augment.py", "left"),  # a side of an image
    ("pipeline/data/folder.py", "left"),
    ("benchmarks/plots.py", "left"),
}


def names(tree: ast.AST) -> Iterator[str]:
    """Every name that the source binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname


def private(tree: ast.AST) -> Iterator[str]:
    yield from (word for word in (name.strip("_").lower() for name in names(tree)) if word in WORDS)


def test_no_name_says_what_happened_to_its_value() -> None:
    rest = []
    for package in ("demport", "pipeline", "export", "runtime", "benchmarks"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            place = path.relative_to(REPOSITORY).as_posix()
            rest += [
                (place, word) for word in private(ast.parse(path.read_text("utf-8"))) if (place, word) not in ALLOWED
            ]
    assert rest == []


def test_every_kind_of_name_is_seen() -> None:
    source = """
import os as left
class Given:
    kept: int
    def made(self, told):
        self._found = wanted = [known for known in told]
"""
    assert sorted(private(ast.parse(source))) == ["found", "given", "kept", "known", "left", "made", "told", "wanted"]
    assert list(private(ast.parse("document = founder(given)"))) == []
