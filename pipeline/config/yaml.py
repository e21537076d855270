"""YAML 1.2 by ruamel.yaml: text in, plain values and the line of every key out; everything doubtful is refused.

`1e-3` is a number, `010` is ten, `yes` and dates are text. Repeated keys, tags other than the core ones, and text that
expands past the limits are errors.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field

from ruamel.yaml import YAML, MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.representer import SafeRepresenter

from runtime.errors import UserError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
MAX_NODES = 10_000

_CORE = "tag:yaml.org,2002:"
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_SCALARS = {
    "str": "text that can be written as UTF-8",
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "null": "nothing",
}


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
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH
    yaml.composer.warn_double_anchors = False  # YAML 1.2 lets a later anchor replace an earlier one
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        problem = _TOO_DEEP if "maximum depth" in str(error.problem) else error.problem
        raise UserError(f"{where}{line}: {problem}", "expected one YAML document", "mend that line") from None
    except YAMLError as error:
        reason = getattr(error, "reason", "cannot be read")
        raise UserError(f"{where}: {reason}", "expected YAML text", "remove what is not text") from None
    reader = _Reader(yaml, where)
    return Document(None if node is None else reader.value(node, "", 1), reader.places)


def dump(document: object) -> str:
    """YAML text that `parse` reads back to an equal document."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.allow_unicode, yaml.width = True, 10**6
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel declares it as None
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


class _Representer(SafeRepresenter):
    def represent_str(self, data: str) -> ScalarNode:
        """Text beyond printable ASCII in double quotes: the other styles lose some line breaks."""
        style = None if data.isascii() and data.isprintable() else '"'
        node: ScalarNode = self.represent_scalar(_CORE + "str", data, style=style)
        return node


_Representer.add_representer(str, _Representer.represent_str)


@dataclass
class _Reader:
    """Turns nodes into values; counts what it visits, so that aliases cannot multiply without end."""

    yaml: YAML
    where: str
    places: dict[str, str] = field(default_factory=dict)
    visited: int = 0

    def value(self, node: Node, key: str, depth: int) -> object:
        self.visited += 1
        if self.visited > MAX_NODES or depth > MAX_DEPTH:
            problem = _TOO_DEEP if depth > MAX_DEPTH else f"expands to more than {MAX_NODES} values"
            raise self.error(node, key, problem, "expected a config a person can read", "write less, without aliases")
        if isinstance(node, MappingNode) and node.tag == _CORE + "map":
            return self.mapping(node, key, depth)
        if isinstance(node, SequenceNode) and node.tag == _CORE + "seq":
            return [self.value(item, f"{key}.{i}" if key else str(i), depth + 1) for i, item in enumerate(node.value)]
        return self.scalar(node, key)

    def mapping(self, node: MappingNode, path: str, depth: int) -> dict[str, object]:
        """A mapping with text keys, each once; `<<: *anchor` fills in what the mapping does not say itself."""
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        seen: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode) or key_node.tag not in (_CORE + "str", _CORE + "merge"):
                shown = str(key_node.value)[:40] if isinstance(key_node, ScalarNode) else "a list or mapping"
                raise self.error(key_node, path, f"`{shown}` is no key", "expected a name", "write the name of a key")
            key = str(key_node.value)
            dotted = f"{path}.{key}" if path else key
            if key in seen:
                raise self.error(key_node, dotted, "stands twice", "expected each key once", "remove one of the two")
            seen.add(key)
            if key_node.tag == _CORE + "merge":
                merged = self.merged(value_node, path, depth)
            else:
                own[key] = self.value(value_node, dotted, depth + 1)
                self.places[dotted] = f"{self.where}:{key_node.start_mark.line + 1}"
        return merged | own

    def merged(self, node: Node, path: str, depth: int) -> dict[str, object]:
        merged: dict[str, object] = {}
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            value = self.value(source, path, depth + 1)
            if not isinstance(value, dict):
                raise self.error(node, path, "`<<` takes no such value", "expected a mapping", "point it at a section")
            merged = value | merged
        return merged

    def scalar(self, node: Node, key: str) -> object:
        kind = str(node.tag).removeprefix(_CORE).replace("timestamp", "str")
        if kind not in _SCALARS or not isinstance(node, ScalarNode):
            shown = str(node.tag).replace(_CORE, "!!")[:60]
            raise self.error(node, key, f"tag `{shown}`", "expected plain values without tags", "remove the tag")
        text = str(node.value)
        try:
            text.encode()  # a lone surrogate is a ValueError
            value: object = text if kind == "str" else self.yaml.constructor.construct_object(node)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError
        except (ValueError, KeyError):
            shown = ascii(text if len(text) <= 40 else text[:40] + "...")
            raise self.error(node, key, f"{shown} cannot be read", f"expected {_SCALARS[kind]}", "mend it") from None
        return value

    def error(self, node: Node, key: str, problem: str, expected: str, remedy: str) -> UserError:
        at = f"{self.where}:{node.start_mark.line + 1}"
        return UserError(f"{at}: `{key}`: {problem}" if key else f"{at}: {problem}", expected, remedy)
