"""The Python files that a module of the user's is made of, found without importing it."""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

OURS = ("demport", "pipeline", "export", "runtime")
INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def files_of(module: str) -> list[tuple[str, Path]] | None:
    """Name and path of every file of the top package of `module`, and of every package that these import, unless it is
    installed: then its version speaks for it. None where there is no such module."""
    first = module.partition(".")[0]
    files: dict[str, Path] = {}
    packages, waiting = {first}, [first]
    while waiting:
        top = waiting.pop()
        spec = _spec(top)
        if spec is None or (top != first and not _users(spec)):
            if top == first:
                return None
            continue
        for name, path in _python_files(top, spec):
            files[name] = path
            imported = set(_imports(path)) - packages
            packages |= imported
            waiting += sorted(imported)
    return sorted(files.items())


def files_of_file(file: Path) -> list[tuple[str, Path]]:
    """Name and path of a Python file that is no module by its name, and of all of the user's that it imports."""
    files = {file.name: file}
    for top in sorted(set(_imports(file))):
        spec = _spec(top)
        if spec is not None and _users(spec):
            files |= dict(files_of(top) or ())
    return sorted(files.items())


def _spec(top: str) -> ModuleSpec | None:
    if top in OURS or not top:
        return None
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def _users(spec: ModuleSpec) -> bool:
    """Whether it lies outside of what is installed."""
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else [])]
    paths = [Path(place).resolve() for place in places]
    return bool(paths) and not any(path.is_relative_to(folder) for path in paths for folder in INSTALLED)


def _python_files(top: str, spec: ModuleSpec) -> Iterator[tuple[str, Path]]:
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        yield from ((f"{top}/{path.relative_to(folder).as_posix()}", path) for path in folder.rglob("*.py"))
    if not folders and spec.origin is not None:
        yield top, Path(spec.origin)


def _imports(path: Path) -> Iterator[str]:
    """Top-level names of the modules that a file imports, also inside functions; none where it is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
