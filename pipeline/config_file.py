"""A config file and its overrides, read into the frozen tree of `config.py`; every mistake is one line.

The words for a key's type and range, in errors and in `demport run --help`, come from the JSON schema that
pydantic derives from the tree, so help, schema and checks cannot differ.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline import strict_yaml
from pipeline.config import Config
from runtime.errors import UserError

_HELP = "`demport run --help` lists the keys"
Schema = Mapping[str, Any]


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` and apply `section.key=value` overrides in order. UserError names file (or override) and key."""
    document = strict_yaml.parse(_read(path), str(path))
    if document.value is None:
        raise UserError(f"{path}: empty", "expected at least one key", "start from configs/quickstart.yaml")
    if not isinstance(document.value, dict):
        kind = "a list" if isinstance(document.value, list) else f"`{str(document.value)[:40]}`"
        raise UserError(f"{path}: {kind} at the top", "expected sections with keys", _HELP)
    return _config(document.value, overrides, str(path), document.places)


def config_from_overrides(overrides: Sequence[str]) -> Config:
    """The defaults with `section.key=value` overrides."""
    return _config({}, overrides, "--set", {})


def dump_config(config: Config) -> str:
    """YAML text that `load_config` reads back to an equal tree."""
    return yaml.dump(
        config.model_dump(mode="json"),
        Dumper=strict_yaml.StrictDumper,
        sort_keys=False,
        allow_unicode=True,
        width=10**6,
    )


def config_schema() -> dict[str, Any]:
    """JSON schema of the config, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Config.model_json_schema()


@cache
def _schema() -> dict[str, Any]:
    """The same, made once."""
    return config_schema()


def describe_config() -> str:
    """Every section and key with its type, default and sentence: the second half of `demport run --help`."""
    lines, schema = [], _schema()
    for key, node in schema["properties"].items():
        section = _resolve(schema, node)
        lines.append(f"{key}: {_about(schema, node)}")
        for dotted, inner in _leaves(schema, section, ""):
            lines.append(f"  {dotted}: {_about(schema, inner)}")
    return "\n".join(lines)


def _read(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"{path}: a folder", "expected a YAML file", "name the file in it")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "expected a YAML config", "check the path") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "expected a readable file", "check its permissions") from None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8", "expected UTF-8 text", "save it as UTF-8") from None


def _config(tree: dict[str, Any], overrides: Sequence[str], where: str, places: Mapping[str, str]) -> Config:
    known = dict(places)
    for override in overrides:
        known |= _override(tree, override)
    try:
        return Config.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise _user_error(error, where, known) from None


def _override(tree: dict[str, Any], override: str) -> dict[str, str]:
    """Set `section.key=value` in `tree`; returns the places of what it set."""
    where = f"--set {override}"
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or not all(keys):
        raise UserError(where, "expected section.key=value", "write e.g. --set dense.epochs=10")
    value = strict_yaml.parse(text, where).value
    node = tree
    for depth, key in enumerate(keys[:-1]):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise UserError(f"{where}: `{'.'.join(keys[: depth + 1])}` has no keys", "expected a section", _HELP)
    node[keys[-1]] = value
    return {dotted: where}


def _user_error(error: ValidationError, where: str, places: Mapping[str, str]) -> UserError:
    """The first problem in one line, with how many more there are."""
    problems = error.errors(include_url=False)
    # An unknown key is shown first: it often explains the others.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path = [str(part) for part in first["loc"]]
    if first["type"] == "impossible":
        path += first["ctx"]["key"].split(".")
    dotted = ".".join(path)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    at = f"{_place(places, path) or where}{more}"
    if first["type"] == "extra_forbidden":
        return _unknown_key(at, path)
    if first["type"] == "impossible":
        told = first["ctx"]
        return UserError(f"{at}: `{dotted}`: {told['found']}", told["expected"], told["remedy"])
    schema = _schema()
    found = f"{at}: `{dotted}` is {_shown(first['input'])}"
    node = _at(schema, path)
    expected = _words(schema, node) if node else first["msg"]
    return UserError(found, f"expected {expected}", _remedy(first["input"], node))


def _place(places: Mapping[str, str], path: Sequence[str]) -> str | None:
    for end in range(len(path), 0, -1):
        if place := places.get(".".join(path[:end])):
            return place
    return None


def _unknown_key(at: str, path: Sequence[str]) -> UserError:
    schema = _schema()
    parent = _at(schema, path[:-1])
    assert parent is not None
    parent = _inside(schema, parent)
    siblings = [".".join([*path[:-1], key]) for key in parent["properties"]]
    leaves = [dotted for dotted, _ in _leaves(schema, schema, "")]
    same_leaf = [dotted for dotted in leaves if dotted.rsplit(".", 1)[-1] == path[-1]]
    dotted = ".".join(path)
    nearest = (
        difflib.get_close_matches(dotted, siblings, n=1) or same_leaf or difflib.get_close_matches(dotted, leaves, 1)
    )
    meant = " or ".join(f"`{name}`" for name in nearest)
    keys = ", ".join(parent["properties"])
    return UserError(
        f"{at}: unknown key `{dotted}`", f"expected one of {keys}", f"did you mean {meant}?" if meant else _HELP
    )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."


def _remedy(value: object, node: Schema | None) -> str:
    kind = node.get("type") if node else None
    if kind == "object" and value is None:
        return "give it keys or remove it"
    if kind in ("integer", "number") and isinstance(value, str):
        return "write it without quotes, spaces or units"
    if kind == "boolean":
        return "write true or false, unquoted"
    if kind == "string" and not isinstance(value, (dict, list)):
        return "put it in quotes"
    if kind == "array" and not isinstance(value, (dict, list)):
        return f"write [{_shown(value)}]"
    return _HELP


def _resolve(schema: Schema, node: Schema) -> Schema:
    """Follow a `$ref` into the definitions."""
    reference = node.get("$ref")
    return node if reference is None else dict(schema["$defs"][reference.rsplit("/", 1)[-1]])


def _inside(schema: Schema, node: Schema) -> Schema:
    """What keys may follow: of a section that may be null, the section."""
    node = _resolve(schema, node)
    sections = [option for option in node.get("anyOf", ()) if "$ref" in option]
    return _resolve(schema, sections[0]) if len(sections) == 1 else node


def _at(schema: Schema, path: Sequence[str]) -> Schema | None:
    """The schema of a dotted key; list items by their index; None below a free mapping such as model.args."""
    node = schema
    for part in path:
        node = _inside(schema, node)
        inner = node["items"] if part.isdigit() and "items" in node else node.get("properties", {}).get(part)
        if inner is None:
            return None
        node = inner
    return _resolve(schema, node)


def _leaves(schema: Schema, node: Schema, prefix: str) -> Iterator[tuple[str, Schema]]:
    for key, inner in node.get("properties", {}).items():
        resolved = _inside(schema, inner)
        if "properties" not in resolved or "anyOf" in inner:
            yield f"{prefix}{key}", inner
        if "properties" in resolved:
            yield from _leaves(schema, resolved, f"{prefix}{key}.")


def _about(schema: Schema, node: Schema) -> str:
    """Sentence, type and default of a key; a section has its sentence only."""
    sentence = str(node.get("description", ""))
    resolved = _resolve(schema, node)
    if "properties" in resolved:
        return sentence
    default = resolved.get("default", {})
    return f"{sentence} [{_words(schema, resolved)}; default {json.dumps(default)}]"


def _words(schema: Schema, node: Schema) -> str:
    """Type and range in words, e.g. `a whole number >= 1`."""
    node = _resolve(schema, node)
    if "anyOf" in node:
        return " or ".join(_words(schema, option) for option in node["anyOf"])
    if "const" in node or "enum" in node:
        values = ", ".join(map(str, node.get("enum", [node.get("const")])))
        return f"one of {values}" if "enum" in node else values
    kind = node["type"]
    if kind == "array":
        return f"a list, each {_words(schema, node['items'])}"
    if kind == "object":
        return "a section with keys" if "properties" in node else "a mapping"
    words = {
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
    }
    bounds = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    # The bound of every whole number, 2**31, is not worth its words.
    limits = [f"{sign} {node[name]:g}" for name, sign in bounds if name in node and node[name] != 2**31]
    return " ".join([words[kind], " and ".join(limits)]).strip()
