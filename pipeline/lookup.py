"""Names a user writes in a config: `module:function`, and the nearest known name to a wrong one."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from runtime.errors import UserError

MODULE_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def nearest(name: str, names: Iterable[str], n: int = 3) -> str:
    """The names most like `name`, else the first few, as "a, b, c"."""
    options = sorted(names)
    return ", ".join(difflib.get_close_matches(name, options, n, 0.5) or options[:n])


def function_named(spec: str, key: str) -> Callable[..., Any]:
    """The callable that `spec` ("my_pkg.net:build") names; `key` is the config key to blame, e.g. "model.name".

    The current directory is importable, after everything installed. Raises UserError.
    """
    if not MODULE_FUNCTION.fullmatch(spec):
        raise UserError(f'{key} is "{spec}"', 'a name of the form "package.module:function"', f"mend {key}")
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _import_failed(module_name, key, error) from error
        raise UserError(
            f'{key} is "{spec}", and there is no module {error.name}',
            f"a module in {here} or installed",
            "run from the folder that holds it, or set PYTHONPATH",
        ) from error
    except Exception as error:
        raise _import_failed(module_name, key, error) from error
    attribute = getattr(module, name, None)
    if not callable(attribute):
        functions = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UserError(
            f'{key} is "{spec}", and {module_name} has no function {name}',
            f"one of its functions, e.g. {nearest(name, functions)}" if functions else "a function in that module",
            f"mend {key}",
        )
    function: Callable[..., Any] = attribute
    return function


def _import_failed(module: str, key: str, error: BaseException) -> UserError:
    return UserError(
        f"importing {module} for {key} raised {type(error).__name__}: {error}",
        "a module that imports",
        f'try: python -c "import {module}"',
    )
