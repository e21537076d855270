"""`stage.json`: what a finished stage left, from which inputs, and whether it is still all there.

Keys: schema, stage, fingerprint, digest, inputs (config sections, seed, threads, hashes of input files), upstream
(stage -> digest), code (version of the stage's code), versions (libraries that decide the bytes), seconds, device,
environment, command (repeats this stage alone), files (path -> sha256, bytes), result (the stage's dataclass),
seal (hash of all other keys).

The fingerprint says from what a stage was made. The digest says from what it was made and what it left: fingerprint,
files and result. Later stages depend on the digest, so a repetition that leaves the same bytes repeats no other stage.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from runtime.documents import first_problem, seal_of, write_sealed
from runtime.errors import UserError
from runtime.files import read_json, sha256, sha256_of_json

SCHEMA = 1
NAME = "stage.json"
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Basis:
    """All that a stage is made from; equal bases give equal fingerprints."""

    stage: str
    inputs: Mapping[str, Any]
    upstream: Mapping[str, str]
    code: int
    versions: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        return sha256_of_json(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Record:
    """A stage.json that was read back; `problem` says in words what does not fit the folder, None if all does."""

    content: Mapping[str, Any]
    problem: str | None

    @property
    def digest(self) -> str:
        return str(self.content["digest"])


def write(folder: Path, basis: Basis, result: object, facts: Mapping[str, Any], home: Path) -> Record:
    """Write `folder`/stage.json; `home` is what `folder` is to become, and paths of `result` become relative to it."""
    assert dataclasses.is_dataclass(result) and not isinstance(result, type), result
    content = {
        "schema": SCHEMA,
        "stage": basis.stage,
        "fingerprint": basis.fingerprint,
        **{key: value for key, value in dataclasses.asdict(basis).items() if key != "stage"},
        **facts,
        "files": {name: {"sha256": sha256(folder / name), "bytes": size} for name, size in _files(folder)},
        "result": _plain(dataclasses.asdict(result), folder, home),
    }
    content["digest"] = sha256_of_json([content["fingerprint"], content["files"], content["result"]])
    write_sealed(folder / NAME, content)
    return Record(content, None)


def read(folder: Path) -> Record | None:
    """The record of a stage folder, every file hashed; None where there is no folder."""
    if not folder.is_dir():
        return None
    content = read_unverified(folder)
    if content is None:
        return Record({}, f"{NAME} is missing or unreadable")
    if content.get("schema") != SCHEMA:
        return Record({}, f"{NAME} is of another schema")
    return Record(content, _problem(folder, content))


def read_unverified(folder: Path) -> dict[str, Any] | None:
    """The content of stage.json without hashing the files; None where it is missing or unreadable."""
    try:
        content = read_json(folder / NAME)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def revive(folder: Path, kind: type[R], result: Mapping[str, Any]) -> R:
    """Rebuild the stage's dataclass; relative paths become paths below `folder`. UserError: somebody else wrote it."""
    try:
        built = TypeAdapter(kind).validate_python(result)
    except ValidationError as error:
        raise UserError(
            f"{folder / NAME}: its result does not fit ({first_problem(error)})",
            f"a {kind.__name__} as demport writes it",
            "run `demport run` again with --redo of the stage",
        ) from error
    return _anchored(built, folder)  # type: ignore[no-any-return]  # same type in, same type out


def differences(old: Mapping[str, Any], new: Basis) -> str:
    """What changed since `old` (a record's content), in words; "" if nothing did."""
    parts = []
    for key in ("inputs", "versions", "code", "upstream"):
        before, after = dict(_flat(old.get(key), "")), dict(_flat(getattr(new, key), ""))
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                parts.append(_change(key, name, before.get(name), after.get(name)))
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")


def _change(key: str, name: str, before: object, after: object) -> str:
    if key == "upstream":
        return f"{name} is new"
    if key == "code":
        return "demport's code of this stage is new"
    if name.startswith("content."):
        return f"{name.removeprefix('content.')} changed"
    return f"{name} {json.dumps(before)} -> {json.dumps(after)}"


def _flat(value: object, prefix: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _files(folder: Path) -> list[tuple[str, int]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]


def sealed(content: Mapping[str, Any]) -> bool:
    """Whether the content of a stage.json is as it was written."""
    try:
        return bool(content.get("seal") == seal_of(content))
    except (ValueError, RecursionError):
        return False


def _problem(folder: Path, content: Mapping[str, Any]) -> str | None:
    try:
        if content["seal"] != seal_of(content):
            return f"{NAME} was changed"
        for name, entry in content["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                return f"{name} was changed"
    except (KeyError, TypeError, AttributeError, ValueError, OSError, RecursionError):  # sealed by somebody else
        return f"{NAME} lacks what it should hold"
    return None


def _plain(value: object, folder: Path, home: Path) -> object:
    """JSON values of a result; a file of the stage is told relative to its folder, which `home` is to become."""
    if isinstance(value, Path):
        inside = value.is_relative_to(folder)
        return value.relative_to(folder).as_posix() if inside else Path(os.path.relpath(value, home)).as_posix()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, folder, home) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, folder, home) for inner in value]
    assert value is None or isinstance(value, (bool, int, float, str)), value
    return value


def _anchored(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return value if value.is_absolute() else Path(os.path.normpath(folder / value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: _anchored(getattr(value, f.name), folder) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **inner)
    if isinstance(value, dict):
        return {key: _anchored(inner, folder) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_anchored(inner, folder) for inner in value)
    return value
