"""What a config names by a row of one of demport's tables, or by a function of the user's own, with its `Options`.

`Options` of demport's own are read off their file without what it imports for its work, so that a config is checked
without torch.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from pipeline import lookup
from pipeline.config.section import Section
from runtime.errors import UserError

LIGHT = ("__future__", "typing", "collections", "pydantic", "pipeline.config")
FORMS = "FILE.py:function or module:function"


def options_of(name: str, table: Mapping[str, str], key: str) -> type[Section]:
    """The `Options` of what `key` names; of a user's own without any, no keys. Raises UserError."""
    if name in table:
        return _light_options(table[name].partition(":")[0])
    function = function_of(name, table, key)
    options = vars(sys.modules[function.__module__]).get("Options", Section)
    if not (isinstance(options, type) and issubclass(options, Section)):
        raise UserError(
            f"Options of {name} is {type(options).__name__}",
            "a class derived from pipeline.config.section.Section",
            "derive it so, with a description for each key",
        )
    return options


def function_of(name: str, table: Mapping[str, str], key: str) -> Callable[..., Any]:
    """The function, which loads what it works with. Raises UserError."""
    if name in table:
        return lookup.function_named(table[name], key)
    file, separator, function = name.rpartition(":")
    if not separator:
        close = lookup.nearest(name, table)
        raise UserError(f"{key} is {name}", f"one of {', '.join(table)}, or {FORMS}", f"try {close}")
    if file.endswith(".py"):
        return lookup.function_named(f"{_module_of(file, key)}:{function}", key)
    return lookup.function_named(name, key)


def file_of(file: str, key: str) -> Path:
    """A Python file, here or where modules are searched for. Raises UserError."""
    folders = [Path(), *map(Path, sys.path)]
    path = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if path is None:
        raise UserError(f"{key}: there is no file {file}", "a Python file", "mend the path")
    return path


@cache
def _module_of(file: str, key: str) -> str:
    """The module of a file, loaded by its own name."""
    path = file_of(file, key)
    name = f"demport_{key.partition('.')[2]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(
            f"importing {path} for {key} raised {type(error).__name__}: {error}",
            "a file that imports",
            f"try: python {path}",
        ) from error
    return name


def _light_options(module: str) -> type[Section]:
    """`Options` of one of our own, made from the imports and the class alone that its file has for it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    loader = _Light(Path(spec.origin))
    light = importlib.util.module_from_spec(ModuleSpec(module, loader))
    loader.exec_module(light)
    options: type[Section] = light.Options
    options.model_rebuild(_types_namespace=vars(light))
    return options


class _Light(InspectLoader):
    """Loads of one of our files what its `Options` needs; nothing of it is cached or registered."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get_source(self, fullname: str) -> str:
        body = ast.parse(self._path.read_text(encoding="utf-8")).body
        return ast.unparse(ast.Module([statement for statement in body if _is_light(statement)], []))


def _is_light(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.ImportFrom):
        return _allowed(statement.module or "")
    if isinstance(statement, ast.Import):
        return all(_allowed(alias.name) for alias in statement.names)
    return isinstance(statement, ast.ClassDef) and statement.name == "Options"


def _allowed(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in LIGHT)


def names_in(tree: Mapping[str, Any]) -> tuple[str, str]:
    """The method and the task that a tree of config keys names; the defaults where it names none, or nothing that could
    be one."""
    names = (("sparse", "method", "demp"), ("task", "name", "classification"))
    sections = [(tree.get(section), key, default) for section, key, default in names]
    values = [one.get(key, default) if isinstance(one, Mapping) else default for one, key, default in sections]
    method, task = (v if isinstance(v, str) else names[i][2] for i, v in enumerate(values))
    return method, task
