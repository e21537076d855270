"""`pipeline` -> `export` -> `runtime`: the packages import each other in this direction only, and nothing in a circle.

Every import counts: inside functions, for type checking alone, and by a string such as "runtime.x:y".
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from tests.conftest import REPOSITORY

FORBIDDEN = {"runtime": {"demport", "pipeline", "export", "tests", "benchmarks"},
             "export": {"demport", "pipeline", "tests", "benchmarks"}, "pipeline": {"demport", "tests", "benchmarks"},
             "demport": {"tests", "benchmarks"}}  # fmt: skip
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
    source = 'import export.a as b\ndef f():\n    from pipeline.x import y\nTABLE = {"ort": "runtime.backends:Ort"}\n'
    assert set(imported(ast.parse(source))) == {"export", "pipeline", "runtime"}
    assert {path.relative_to(REPOSITORY).parts[0] for path in FILES} == set(FORBIDDEN)
    assert len(FILES) > 20


# ---- circles: the import of a submodule counts for the submodule, not for the package it lies in

PACKAGES = ("demport", "pipeline", "export", "runtime")
UNTANGLED_NEXT = (  # circles that their owners are about to undo: no file may join them, no other circle is let through
    {"pipeline.check.advice", "pipeline.check.why"},
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imports_of(tree: ast.AST, modules: Collection[str]) -> set[str]:
    """The modules of `modules` that a file imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else node.module for name in inside}
    return names & set(modules)


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of several modules that import each other, directly or not."""
    names = sorted(graph)
    arrows = np.array([[other in graph[name] for other in names] for name in names], dtype=int)
    count, of = connected_components(csr_matrix(arrows), directed=True, connection="strong")
    groups = [{name for name, group in zip(names, of, strict=True) if group == i} for i in range(count)]
    return [group for group in groups if len(group) > 1]


def import_graph() -> dict[str, set[str]]:
    files = {name_of(path): path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))}
    return {name: imports_of(ast.parse(path.read_text("utf-8")), files) - {name} for name, path in files.items()}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = import_graph()
    assert len(graph) > 100 and "pipeline.surgery.rules.walk" in graph["pipeline.surgery.shrink"]
    assert [group for group in circles(graph) if not any(group <= circle for circle in UNTANGLED_NEXT)] == []


def test_a_circle_is_seen_through_functions_and_type_checking() -> None:
    a = ast.parse("if TYPE_CHECKING:\n    from p.b import x\n")
    b, c = ast.parse("def f():\n    import p.c\n"), ast.parse("from p import a\n")
    modules = {"p": ast.parse("import p.a\n"), "p.a": a, "p.b": b, "p.c": c}
    graph = {name: imports_of(tree, modules) for name, tree in modules.items()}
    assert graph == {"p": {"p.a"}, "p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a"}}
    assert circles(graph) == [{"p.a", "p.b", "p.c"}]


def test_surgery_stands_on_its_own() -> None:
    """Of the rest of `pipeline` it imports what reads and writes weights, and nothing else."""
    surgery = "pipeline.surgery"
    rest = {
        name: {x for x in modules if x.startswith("pipeline") and not f"{x}.".startswith(f"{surgery}.")}
        for name, modules in import_graph().items()
        if f"{name}.".startswith(f"{surgery}.")
    }
    assert len(rest) > 30
    assert {name: modules for name, modules in rest.items() if modules - {"pipeline.models.weights"}} == {}
