"""Files of a run folder as the report reads them: what is missing or broken is a UserError that names the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from runtime.errors import UserError
from runtime.files import read_json

Json = Mapping[str, Any]


class Told(dict[str, Any]):
    """A JSON object that was read from `path`; asked for a key it lacks, it says so as a UserError."""

    def __init__(self, path: Path, content: Json) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str) -> NoReturn:
        damaged(self.path, f"lacks `{key}`")


def read_told(path: Path) -> Told:
    try:
        value = read_json(path)
    except OSError as error:
        damaged(path, error.strerror or str(error))
    except ValueError as error:
        damaged(path, str(error))
    if not isinstance(value, dict):
        damaged(path, "not an object")
    return Told(path, value)


def damaged(path: Path, why: str) -> NoReturn:
    raise UserError(f"{path}: {why}", "expected what `demport run` writes", "run the stage again with --redo")
