"""Small stages of our own for tests of the run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.workspace.folder import Done, Workspace, open_workspace


@dataclass(frozen=True)
class Part:
    path: Path
    size: int


@dataclass(frozen=True)
class Made:
    text: Path
    extra: Path | None
    number: float
    parts: tuple[Part, ...]
    by_name: dict[str, Path]


@contextlib.contextmanager
def opened(folder: Path, *redo: str) -> Iterator[tuple[Workspace, list[str]]]:
    said: list[str] = []
    facts = {"device": "cpu", "seed": 0}
    with open_workspace(
        folder, say=said.append, facts=lambda: facts, command=lambda name: f"repeat {name}", redo=frozenset(redo)
    ) as work:
        yield work, said


def writer(text: str) -> Callable[[Path], Made]:
    def write(out: Path) -> Made:
        (out / "sub").mkdir()
        (out / "text").write_text(text)
        (out / "sub" / "part").write_text(text * 2)
        part = out / "sub" / "part"
        return Made(out / "text", None, 0.5, (Part(part, 2 * len(text)),), {"a": part})

    return write


def line(
    folder: Path, *redo: str, a: int = 1, b: int = 1, content: str = "x", first: str = "one"
) -> tuple[list[Done], list[str]]:
    """Two independent stages and one that depends on both."""
    with opened(folder, *redo) as (work, said):
        options: dict[str, Any] = {"code": 1, "versions": {"lib": "1.0"}}
        inputs = {"dense": {"lr": a}, "content": {"data": content}}
        dense = work.stage("10-dense", writer(first), inputs=inputs, **options)
        demp = work.stage("20-sparse", writer("two"), inputs={"demp": {"lr": b}}, **options)
        onnx = work.stage("40-onnx", writer("three"), inputs={}, upstream=[dense, demp], **options)
    return [dense, demp, onnx], said


def ran(done: list[Done]) -> list[bool]:
    return [stage.ran for stage in done]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
