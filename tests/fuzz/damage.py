"""Damaged files for fuzzing: valid documents with values replaced, keys moved and bytes changed."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

HUGE = st.sampled_from([2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**30, -1, 0, -(2**63)])
ODD_TEXT = st.sampled_from(
    [
        "",
        ".",
        "..",
        "../../x",
        "/etc/passwd",
        "a/../../b",
        "\0",
        "NaN",
        "1e999",
        "a\nb",
        "\ud800",
        "é" * 300,
        "x" * 5000,
    ]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), HUGE, st.floats(), st.text(max_size=20), ODD_TEXT)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree of JSON."""
    found: list[tuple[Any, Any]] = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found += [(tree, key), *places(value)]
    return found


@st.composite
def damaged_tree(draw: st.DrawFn, valid: Any) -> Any:
    """`valid` with one to four values replaced, removed, repeated or added."""
    tree = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 4))):
        spots = places(tree)
        if not spots:
            return draw(VALUES)
        container, key = spots[draw(st.integers(0, len(spots) - 1))]
        action = draw(st.sampled_from(("replace", "replace", "remove", "add")))
        if action == "remove":
            del container[key]
        elif action == "add" and isinstance(container, dict):
            container[draw(st.text(max_size=8) | ODD_TEXT)] = draw(VALUES)
        else:
            container[key] = draw(VALUES)
    return tree


def text_of(tree: Any) -> bytes:
    """JSON as Python writes it, NaN and lone surrogates included."""
    return json.dumps(tree).encode("utf-8", "surrogatepass")


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` cut short, with bytes changed, inserted or repeated; or something else altogether."""
    kind = draw(st.sampled_from(("cut", "change", "insert", "repeat", "other", "deep")))
    if kind == "other":
        return draw(st.binary(max_size=200))
    if kind == "deep":
        return draw(st.sampled_from((b"[", b'{"a":', b"- ", b"{a: ", b"&a [*a,"))) * draw(st.integers(1, 3000))
    spot = draw(st.integers(0, len(data)))
    if kind == "cut":
        return data[:spot]
    if kind == "repeat":
        return data[:spot] + data[spot:] * draw(st.integers(2, 3))
    piece = draw(st.binary(min_size=1, max_size=6))
    return data[:spot] + piece + data[spot + (len(piece) if kind == "change" else 0) :]


def damaged(valid: Any) -> st.SearchStrategy[bytes]:
    """Files that are almost the JSON document `valid`."""
    return st.one_of(damaged_tree(valid).map(text_of), damaged_tree(valid).map(text_of), damaged_bytes(text_of(valid)))
