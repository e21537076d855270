"""JSON files of a run folder as typed trees; what is damaged or implausible is one line that names the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from runtime.errors import UserError
from runtime.files import read_json

R = TypeVar("R")
STRICT = ConfigDict(allow_inf_nan=False, extra="ignore", populate_by_name=True)
"""Of a tree; dataclasses below it that have no config of their own take it over."""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a run folder as plain values. UserError names the file."""
    try:
        document = read_json(path)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise damaged(path, str(error)) from error
    if not isinstance(document, dict):
        raise damaged(path, "not an object")
    return document


def typed(kind: type[R], document: Mapping[str, Any], path: Path) -> R:
    """`document`, which was read from `path`, as a dataclass. UserError names the key that does not fit."""
    try:
        value = TypeAdapter(kind).validate_python(document)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise damaged(path, "nested too deep") from error
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        missing = f"lacks `{place}`" if first["type"] == "missing" else f"{place}: {first['msg']}"
        raise damaged(path, missing) from error
    if problem := next(implausible(document), None):
        raise damaged(path, problem)
    return value


def damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: {problem}", "expected what `demport run` writes", "run the stage again with --redo")


SHARES = ("accuracy", "top5", "macro_f1", "beside", "top1_agreement", "p_value", "p_before", "p_after", "forms")
COUNTS = ("params", "macs", "denormals", "n", "only_first", "only_second", "streams", "batch", "images", "seconds")
TIMES = ("p50_ms", "p95_ms", "p99_ms", "mean_ms", "best_ms", "samples_ms", "images_per_s", "run_us")


def implausible(document: object, place: str = "", key: str = "") -> Iterator[str]:
    """What no measurement can give: numbers that are not finite, shares outside 0..1, negative counts and times, and an
    interval that does not hold its ratio. `key` is the nearest name of a range above a number."""
    if isinstance(document, Mapping):
        if "ratio" in document and not _holds(document):
            yield f"{place}: the interval {document.get('ci95')} does not hold the ratio {document['ratio']}"
        for name, value in document.items():
            below = name if name in (*SHARES, *COUNTS, *TIMES) else key if key in SHARES else ""
            yield from implausible(value, f"{place}.{name}" if place else str(name), below)
    elif isinstance(document, (list, tuple)):
        for index, value in enumerate(document):
            yield from implausible(value, f"{place}.{index}", key)
    elif isinstance(document, (int, float)) and not isinstance(document, bool):
        if not math.isfinite(document):
            yield f"{place}: {document} is not finite"
        elif key in SHARES and not 0 <= document <= 1:
            yield f"{place}: {document} is not within 0 and 1"
        elif key in (*COUNTS, *TIMES) and document < 0:
            yield f"{place}: {document} is negative"


def _holds(speedup: Mapping[str, Any]) -> bool:
    """A ratio above 0 within its interval; the edges of a bootstrap of few openings may miss it a little."""
    try:
        low, high = speedup["ci95"]
        return bool(0 < low <= high and low <= 1.1 * speedup["ratio"] and speedup["ratio"] <= 1.1 * high)
    except (KeyError, TypeError, ValueError):
        return False
