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

from pydantic import ValidationError

from pipeline.config import Config, config_of, yaml
from pipeline.config.extension import names_in
from pipeline.config.places import located
from pipeline.config.sparse import options_of
from runtime.errors import UserError
from runtime.files import read_bounded

MAX_BYTES = 1 << 20
_HELP = "`demport run --help` lists the keys"
_SWITCHES = {"yes": "true", "on": "true", "no": "false", "off": "false"}
Schema = Mapping[str, Any]


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` and apply `section.key=value` overrides in order. UserError names file (or override) and key.

    Files that `path` names may lie beside it; those of overrides are of the working folder.
    """
    document = yaml.parse(_read(path), str(path))
    if document.value is None:
        raise UserError(f"{path}: empty", "expected at least one key", "start from configs/quickstart.yaml")
    if not isinstance(document.value, dict):
        kind = "a list" if isinstance(document.value, list) else f"`{str(document.value)[:40]}`"
        raise UserError(f"{path}: {kind} at the top", "expected sections with keys", _HELP)
    return _config(located(document.value, path.parent), overrides, str(path), document.places)


def config_from_overrides(overrides: Sequence[str]) -> Config:
    """The defaults with `section.key=value` overrides."""
    return _config({}, overrides, "--set", {})


def dump_config(config: Config) -> str:
    """YAML text that `load_config` reads back to an equal tree."""
    return yaml.dump(config.model_dump(mode="json"))


def config_schema(method: str = "demp", task: str = "classification") -> dict[str, Any]:
    """JSON schema of the config with the keys of this method and this task, for editors."""
    schema = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": schema} | config_of(method, task).model_json_schema()


@cache
def _schema(method: str = "demp", task: str = "classification") -> dict[str, Any]:
    """The same, made once."""
    return config_schema(method, task)


def describe_config() -> str:
    """Every section and key with its type, default and sentence: the second half of `demport run --help`."""
    lines, schema = [], _schema()
    for key, node in schema["properties"].items():
        section = _resolve(schema, node)
        lines.append(f"{key}: {_about(schema, node)}")
        for dotted, inner in _leaves(schema, section, ""):
            lines.append(f"  {dotted}: {_about(schema, inner)}")
    return "\n".join(lines)


def describe_method(method: str) -> str:
    """What a training method is, and every key of its own with its type, default and sentence. Raises UserError."""
    schema, own = _schema(method), options_of(method).model_fields
    section = _resolve(schema, schema["properties"]["sparse"])
    lines = [f"sparse: {{method: {method}}}, beside the keys of every training (`demport run --help`):"]
    leaves = [(key, node) for key, node in _leaves(schema, section, "") if key.partition(".")[0] in own]
    return "\n".join([*lines, *(f"  {key}: {_about(schema, node)}" for key, node in leaves)])


def _read(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"{path}: a folder", "expected a YAML file", "name the file in it")
    try:
        raw = read_bounded(path, MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "expected a YAML config", "check the path") from None
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}",
            f"expected a readable file of at most {MAX_BYTES} bytes",
            "check its permissions",
        ) from None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8", "expected UTF-8 text", "save it as UTF-8") from None


def _config(tree: dict[str, Any], overrides: Sequence[str], where: str, places: Mapping[str, str]) -> Config:
    origins = dict(places)
    for override in sorted(overrides, key=lambda text: not text.startswith(("model.name=", "sparse.method="))):
        origins |= _override(tree, override)
    if "demp" in tree:
        at = next((place for key, place in origins.items() if key.partition(".")[0] == "demp"), where)
        old = f"{at}: the section `demp` is now `sparse`"
        raise UserError(old, "expected sparse: {method: demp, ...}", "rename it")
    for section in ("dense", "sparse"):
        if isinstance(tree.get(section), dict) and "tensorboard" in tree[section]:
            key = f"{section}.tensorboard"
            at = origins.get(key, where)
            raise UserError(f"{at}: `{key}` is now `{section}.log`", "expected log: [tensorboard]", "rename it")
    names = names_in(tree)
    try:
        return config_of(*names).model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise _user_error(error, tree, where, origins, _schema(*names)) from None


def _override(tree: dict[str, Any], override: str) -> dict[str, str]:
    """Set `section.key=value` in `tree`; returns the places of what it set."""
    where = f"--set {override}"
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or not all(keys):
        raise UserError(where, "expected section.key=value", "write e.g. --set dense.epochs=10")
    value = yaml.parse(text, where).value
    node = tree
    for depth, key in enumerate(keys[:-1]):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise UserError(f"{where}: `{'.'.join(keys[: depth + 1])}` has no keys", "expected a section", _HELP)
    if keys == ["model", "name"] and value != node.get("name"):
        node.pop("args", None)  # they were written for the other network
    if keys == ["sparse", "method"] and value != (old := node.get("method", "demp")):
        for key in options_of(str(old)).model_fields.keys() - {"target"}:
            node.pop(key, None)  # they were written for the other method
    node[keys[-1]] = value
    return {dotted: where}


def _user_error(error: ValidationError, tree: Any, where: str, places: Mapping[str, str], schema: Schema) -> UserError:
    """The first problem in one line, with how many more there are."""
    problems = error.errors(include_url=False)
    # An unknown key is shown first: it often explains the others.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path, last = _keys(tree, first["loc"]), first["loc"][-1] if first["loc"] else ""
    absent = first["type"] == "missing" and isinstance(last, str)  # else a list is too short
    if absent or (first["type"] == "extra_forbidden" and not path):
        path.append(str(last))
    if first["type"] == "impossible":
        path += first["ctx"]["key"].split(".") if first["ctx"]["key"] else []
    dotted = ".".join(path)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    at = f"{_place(places, path) or where}{more}"
    if first["type"] == "extra_forbidden":
        return _unknown_key(at, path, schema)
    if first["type"] == "impossible":
        context = first["ctx"]
        return UserError(f"{at}: `{dotted}`: {context['found']}", context["expected"], context["remedy"])
    if absent:
        return UserError(f"{at}: no `{dotted}`", f"expected {_words(schema, _at(schema, path) or {})}", "add it")
    problem = f"{at}: `{dotted}` is {_shown(first['input'])}"
    node = _at(schema, path)
    expected = _words(schema, node) if node else first["msg"].removeprefix("Input should be ")
    return UserError(problem, f"expected {expected}", _remedy(first["input"], node))


def _keys(tree: Any, loc: Sequence[int | str]) -> list[str]:
    """The keys of `tree` on the way to a problem. Where a value may be of several kinds, pydantic puts the kind that it
    tried between them."""
    keys, node = [], tree
    for part in loc:
        if part in node if isinstance(node, dict) else part in range(len(node) if isinstance(node, list) else 0):
            keys.append(str(part))
            node = node[part]
    return keys


def _place(places: Mapping[str, str], path: Sequence[str]) -> str | None:
    for end in range(len(path), 0, -1):
        if place := places.get(".".join(path[:end])):
            return place
    return None


def _unknown_key(at: str, path: Sequence[str], schema: Schema) -> UserError:
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
    if kind == "boolean" and isinstance(value, str) and value.lower() in _SWITCHES:
        return f"YAML 1.2 has no `{value}`: write {_SWITCHES[value.lower()]}"
    if kind == "boolean":
        return "write true or false, unquoted"
    if kind == "string" and not isinstance(value, (dict, list, str)):
        return "put it in quotes"
    if kind == "array" and not isinstance(value, (dict, list)):
        return f"write [{_shown(value)}]"
    return _HELP


def _resolve(schema: Schema, node: Schema) -> Schema:
    """Follow a `$ref` into the definitions."""
    reference = node.get("$ref")
    return node if reference is None else dict(schema["$defs"][reference.rsplit("/", 1)[-1]])


def _inside(schema: Schema, node: Schema) -> Schema:
    """What keys may follow: of a section or list that may be null, the section or list."""
    node = _resolve(schema, node)
    sections = [option for option in node.get("anyOf", ()) if "$ref" in option or "items" in option]
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
        if "items" in node:
            return f"a list, each {_words(schema, node['items'])}"
        return f"a list of {len(node['prefixItems'])}, each {_words(schema, node['prefixItems'][0])}"
    if kind == "object":
        return "a section with keys" if "properties" in node else "a mapping"
    words = {
        "integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false", "null": "null",
    }  # fmt: skip
    bounds = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    # The bound of every whole number, 2**31, is not worth its words.
    limits = [f"{sign} {node[name]:g}" for name, sign in bounds if name in node and node[name] != 2**31]
    return " ".join([words[kind], " and ".join(limits)]).strip()
