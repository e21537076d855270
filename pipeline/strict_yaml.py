"""YAML without its traps: text in, plain values and the line of every key out; everything doubtful is refused.

Scalars follow the YAML 1.2 core schema (`1e-3` is a number, `010` is ten, dates stay text). Unquoted yes, no,
on and off, repeated keys, tags other than the core ones, and text that expands past the limits are errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

from runtime.errors import UserError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
MAX_NODES = 10_000

_CORE = "tag:yaml.org,2002:"
_SWITCH = "!switch"
_INT = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_PATTERNS = (
    (_CORE + "int", _INT),
    (_CORE + "float", _FLOAT),
    (_CORE + "bool", re.compile("true|True|TRUE|false|False|FALSE")),
    (_CORE + "null", re.compile("|~|null|Null|NULL")),
    (_CORE + "merge", re.compile("<<")),
    (_SWITCH, re.compile("yes|no|on|off", re.IGNORECASE)),
)


class StrictLoader(yaml.SafeLoader):
    """Composes nodes only (never constructs), resolves the core schema, and stops at the depth limit."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own name; `add_implicit_resolver` fills it)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        try:
            if self.depth > MAX_DEPTH:
                raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class StrictDumper(yaml.SafeDumper):
    """Quotes what `StrictLoader` would not read back as text, and writes no aliases."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (as above)

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text beyond printable ASCII in double quotes: PyYAML's other styles lose some line breaks."""
        style = None if data.isascii() and data.isprintable() else '"'
        return self.represent_scalar(_CORE + "str", data, style=style)


StrictDumper.add_representer(str, StrictDumper.represent_str)
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
for _tag, _pattern in _PATTERNS:
    for _class in (StrictLoader, StrictDumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern.pattern})\Z", _pattern.flags), None)


@dataclass(frozen=True)
class Document:
    """The value of a text, and for every dotted key the place it stands, e.g. `{"dense.lr": "my.yaml:7"}`."""

    value: object
    places: dict[str, str]


def parse(text: str, where: str) -> Document:
    """Read one YAML document; `where` names it in errors. UserError names the place, the key and the remedy."""
    size = len(text.encode(errors="replace"))
    if size > MAX_BYTES:
        raise UserError(f"{where}: {size} bytes", f"expected at most {MAX_BYTES}", "shorten it")
    try:
        loader = StrictLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise UserError(f"{where}{line}: {error.problem}", "expected one YAML document", "mend that line") from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", "cannot be read")
        raise UserError(f"{where}: {reason}", "expected YAML text", "remove what is not text") from None
    reader = _Reader(where)
    return Document(None if node is None else reader.value(node, ""), reader.places)


def _text(text: str) -> str:
    text.encode()  # a lone surrogate is a ValueError
    return text


def _whole(text: str) -> int:
    if not _INT.fullmatch(text):
        raise ValueError
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _number(text: str) -> float:
    if not _FLOAT.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


_SCALARS: dict[str, tuple[Callable[[str], object], str]] = {
    "str": (_text, "text that can be written as UTF-8"),
    "int": (_whole, "a whole number"),
    "float": (_number, "a finite number"),
    "bool": (_truth, "true or false"),
    "null": (lambda _: None, "nothing"),
}


@dataclass
class _Reader:
    """Turns nodes into values; counts what it visits, so that aliases cannot multiply without end."""

    where: str
    places: dict[str, str] = field(default_factory=dict)
    visited: int = 0
    depth: int = 0

    def value(self, node: yaml.Node, key: str) -> object:
        self.visited += 1
        self.depth += 1
        if self.visited > MAX_NODES or self.depth > MAX_DEPTH:
            what = _TOO_DEEP if self.depth > MAX_DEPTH else f"expands to more than {MAX_NODES} values"
            raise self.error(node, key, what, "expected a config a person can read", "write less, without aliases")
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _CORE + "map":
                return self.mapping(node, key)
            if isinstance(node, yaml.SequenceNode) and node.tag == _CORE + "seq":
                return [self.value(item, f"{key}.{i}" if key else str(i)) for i, item in enumerate(node.value)]
            return self.scalar(node, key)
        finally:
            self.depth -= 1

    def mapping(self, node: yaml.MappingNode, path: str) -> dict[str, object]:
        """A mapping with text keys, each once; `<<: *anchor` fills in what the mapping does not say itself."""
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        seen: set[str] = set()
        for key_node, value_node in node.value:
            is_merge = key_node.tag == _CORE + "merge"
            key = "<<" if is_merge else self.key(key_node, path)
            dotted = f"{path}.{key}" if path else key
            if key in seen:
                raise self.error(key_node, dotted, "stands twice", "expected each key once", "remove one of the two")
            seen.add(key)
            if is_merge:
                merged = self.merged(value_node, path)
                continue
            own[key] = self.value(value_node, dotted)
            self.places[dotted] = f"{self.where}:{key_node.start_mark.line + 1}"
        return merged | own

    def merged(self, node: yaml.Node, path: str) -> dict[str, object]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, object] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise self.error(node, path, "`<<` takes no such value", "expected a mapping", "point it at a section")
            value = self.value(source, path)
            assert isinstance(value, dict)
            merged = value | merged
        return merged

    def key(self, node: yaml.Node, path: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != _CORE + "str":
            shown = str(node.value)[:40] if isinstance(node, yaml.ScalarNode) else "a list or mapping"
            raise self.error(node, path, f"`{shown}` is no key", "expected a name", "write the name of a key")
        return str(node.value)

    def scalar(self, node: yaml.Node, key: str) -> object:
        text, tag = str(node.value), node.tag
        if tag == _SWITCH:
            meant = "true" if text.lower() in ("yes", "on") else "false"
            raise self.error(
                node, key, f"unquoted `{text}`", "expected true or false", f"write {meant}, or quote it if it is text"
            )
        kind = tag.removeprefix(_CORE)
        if kind not in _SCALARS or not isinstance(node, yaml.ScalarNode):
            shown = tag.replace(_CORE, "!!")[:60]
            raise self.error(node, key, f"tag `{shown}`", "expected plain values without tags", "remove the tag")
        read, expected = _SCALARS[kind]
        try:
            return read(text)
        except ValueError:
            shown = ascii(text if len(text) <= 40 else text[:40] + "...")
            raise self.error(node, key, f"{shown} cannot be read", f"expected {expected}", "mend the value") from None

    def error(self, node: yaml.Node, key: str, found: str, expected: str, remedy: str) -> UserError:
        at = f"{self.where}:{node.start_mark.line + 1}"
        return UserError(f"{at}: `{key}`: {found}" if key else f"{at}: {found}", expected, remedy)
