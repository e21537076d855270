"""JSON documents that may come from anybody: strict sections, one reader, one writer, one error.

A sealed document holds the SHA-256 of all its other keys as `seal`, so that one that was edited or cut short is
refused: a guard against accidents, not against somebody who computes a new seal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError, from_json

from runtime.errors import UserError
from runtime.files import read_bounded, sha256_of_json, write_json


class Section(BaseModel):
    """A part of a document: frozen, of exact types, without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", protected_namespaces=())


S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Kind:
    """What a file should be, in the words of the error, and its largest size."""

    expected: str
    remedy: str
    limit: int
    links: bool = True

    def error(self, path: Path, reason: str) -> UserError:
        """`UserError` that names the file and the reason."""
        return UserError(f"{path}{reason}", self.expected, self.remedy)

    def read(self, path: Path) -> bytes:
        """The bytes. UserError: missing, no plain file, too long."""
        try:
            return read_bounded(path, self.limit, links=self.links)
        except OSError as error:
            raise self.error(path, f" cannot be read ({error.strerror})") from error

    def parse(self, path: Path, data: bytes) -> Any:
        """The JSON value of `data`. UserError: no strict JSON."""
        try:
            return from_json(data, allow_inf_nan=False)
        except ValueError as error:
            raise self.error(path, f" is not JSON: {error}") from error

    def schema(self, path: Path, value: Any, schema: int) -> dict[str, Any]:
        """`value` as an object of this `schema`. UserError: another schema, or no object."""
        number = value.get("schema") if isinstance(value, dict) else None
        if type(number) is not int or number != schema:  # True == 1, and is none
            shown = number if type(number) is int and 0 <= number < 1000 else f"a {type(number).__name__}"
            raise UserError(f"{path} has the schema {shown}", f"schema {schema}", self.remedy)
        assert isinstance(value, dict)
        return value

    def section(self, path: Path, value: Any, section: type[S]) -> S:
        """`value` as a `section`. UserError names the first key that does not fit."""
        try:
            return section.model_validate(value)
        except ValidationError as error:
            raise self.error(path, f": {first_problem(error)}") from error

    def document(self, path: Path, section: type[S]) -> S:
        """The file as a `section`."""
        return self.section(path, self.parse(path, self.read(path)), section)


def impossible(key: str, found: str, expected: str, remedy: str) -> PydanticCustomError:
    """The error of a value that is well typed but can never work; `key` is relative to the section that raises it."""
    return PydanticCustomError(
        "impossible",
        "{found}; {expected}; {remedy}",
        {"key": key, "found": found, "expected": expected, "remedy": remedy},
    )


def once(key: str, values: Iterable[object]) -> None:
    """Raises `impossible` when a value is listed twice."""
    seen: list[object] = []
    for value in values:
        if value in seen:
            raise impossible(key, f"{value} is listed twice", "expected each value once", "remove one of the two")
        seen.append(value)


def first_problem(error: ValidationError) -> str:
    """`place: message` of the first problem that pydantic reports."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "content"
    return f"{place}: {first['msg']}"


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of all keys but `seal`."""
    return sha256_of_json({key: value for key, value in content.items() if key != "seal"})


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` with its seal, atomically."""
    write_json(path, {**content, "seal": seal_of(content)})
