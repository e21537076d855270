"""Tables of measured figures, written between markers of a Markdown file from benchmarks/results/*.json.

    <!-- results quickstart.cpu: method, accuracy_pct, p50_ms -->
    (written by `python -m benchmarks.tables`)
    <!-- end of results -->

The name is a results file without `.json`, the rest are keys of its points. Points that agree in all listed keys that
hold text or a setting are one row: the mean of their figures, and their range where there are several. A key ends in
its unit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.files import replacing
from runtime.errors import EXIT_GATE_FAILED, EXIT_PASS, UserError

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(r"(<!-- results (\S+): ([^>]*?) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
UNITS = {
    "pct": "%",
    "pp": "percentage points",
    "ms": "ms",
    "us": "µs",
    "s": "s",
    "gib": "GiB",
    "mib": "MiB",
    "kib": "KiB",
    "bytes": "bytes",
}
SETTINGS = ("align", "batch", "reached_at")
"""Numbers that were asked for and not measured: a mean over them would say nothing."""
Point = Mapping[str, Any]


def documents() -> list[Path]:
    """Markdown files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str, folder: Path = ROOT, results: Path = RESULTS) -> str:
    """`text` of a document in `folder` with every table written anew; UserError where no point has a key."""

    def block(match: re.Match[str]) -> str:
        start, name, keys, _, end = match.groups()
        path = results / f"{name}.json"
        return f"{start}{table(path, [key.strip() for key in keys.split(',')], os.path.relpath(path, folder))}{end}"

    return BLOCK.sub(block, text)


def table(path: Path, keys: Sequence[str], link: str) -> str:
    """A Markdown table of the points of a results file, and under it where they were measured; or that nothing was.

    `link` leads from the document to the file.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return f"Not measured yet: `python -m benchmarks.{path.name.split('.')[0]}` writes {path.name}.\n"
    every: list[Point] = document["points"]
    for key in keys:
        if not any(key in point for point in every):
            raise UserError(
                f"{path.name}: no point has `{key}`", f"expected one of {sorted(every[0])}", "name another key"
            )
    points = [point for point in every if any(key in point for key in keys)]
    names = [key for key in keys if key in SETTINGS or any(isinstance(point.get(key), str) for point in points)]
    rows: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        rows.setdefault(tuple(point.get(name) for name in names), []).append(point)
    lines = [[heading(key) for key in keys], ["---" if key in names and key not in SETTINGS else "--:" for key in keys]]
    lines += [[cell(key, row) for key in keys] for row in rows.values()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{origin(document, path.name, link)}\n"


def heading(key: str) -> str:
    """`accuracy_pct` -> `accuracy, %`."""
    name, _, unit = key.rpartition("_")
    return f"{name.replace('_', ' ')}, {UNITS[unit]}" if name and unit in UNITS else key.replace("_", " ")


def cell(key: str, points: Sequence[Point]) -> str:
    """Text as it is; a figure as its mean, with the range over several points; nothing measured as an empty cell."""
    values = [point[key] for point in points if point.get(key) is not None]
    if not values or isinstance(values[0], (str, bool)):
        return str(values[0]).replace("|", "\\|") if values else ""
    mean = sum(values) / len(values)
    spread = f" ({number(min(values))} to {number(max(values))})" if min(values) != max(values) else ""
    return number(mean) + spread


def number(value: float) -> str:
    """Four significant digits; whole numbers whole."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def origin(document: Mapping[str, Any], name: str, link: str) -> str:
    """One line: n, device, versions, command, file."""
    environment = document["environment"]
    machine = ", ".join(environment.get("gpus") or [f"{environment['cpu']}, {environment['cores']} cores"])
    versions = environment.get("versions", {})
    told = ", ".join(
        f"{package} {versions[package]}"
        for package in ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13")
        if package in versions
    )
    return f"n = {document['n']}; {machine}; {told}; `{document['command']}`; [{name}]({link})."


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables; with --check, only say which files are not current (exit 1)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=main.__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(arguments).check
    texts = {path: path.read_text("utf-8") for path in documents() if path.is_file()}
    stale = {path: new for path, text in texts.items() if (new := filled(text, path.parent)) != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: {'not current' if check else 'written'}")
        if not check:
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return EXIT_GATE_FAILED if check and stale else EXIT_PASS


if __name__ == "__main__":
    sys.exit(main())
