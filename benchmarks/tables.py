"""What Markdown files say that follows from other files: tables of measured figures, and the folders of the house.

    <!-- results quickstart.cpu: method, accuracy_pct, p50_ms -->
    (written by `python -m benchmarks.tables`)
    <!-- end of results -->

The name is a results file without `.json`, the rest are keys of its points. Points that agree in all listed keys that
hold text or a setting are one row: the mean of their figures, and their range where there are several. A key ends in
its unit. Between `<!-- house 2 -->` and `<!-- end of house -->` stand the packages, two folders deep, each with the
first sentence of its docstring. Between `<!-- images of Triton -->` and `<!-- end of images -->` stands what
`export/engines/triton_images.json` says of Triton's images.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.engines import triton_images
from runtime.errors import EXIT_GATE_FAILED, EXIT_PASS, UserError
from runtime.files import replacing

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(r"(<!-- results (\S+): ([^>]*?) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
HOUSE = re.compile(r"(<!-- house (\d) -->\n).*?(<!-- end of house -->)", re.DOTALL)
IMAGES = re.compile(r"(<!-- images of Triton -->\n).*?(<!-- end of images -->)", re.DOTALL)
PACKAGES = ("demport", "pipeline", "export", "runtime")
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
SETTINGS = ("align", "batch", "epochs", "fan_in", "reached_at", "share")
"""Numbers that were asked for and not measured: a mean over them would say nothing."""
Point = Mapping[str, Any]


def documents() -> list[Path]:
    """Markdown files with generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str, folder: Path = ROOT, results: Path = RESULTS) -> str:
    """`text` of a document in `folder` with every generated part anew; UserError where no point has a key."""

    def block(match: re.Match[str]) -> str:
        start, name, keys, _, end = match.groups()
        path = results / f"{name}.json"
        return f"{start}{table(path, [key.strip() for key in keys.split(',')], os.path.relpath(path, folder))}{end}"

    tree = HOUSE.sub(lambda match: f"{match[1]}```text\n{house(int(match[2]))}```\n{match[3]}", text)
    return BLOCK.sub(block, IMAGES.sub(lambda match: f"{match[1]}{images()}{match[2]}", tree))


def images(document: Mapping[str, Any] | None = None) -> str:
    """A Markdown table of Triton's images with its sources, each with the day it was read, and under it the images that
    are left out, because no page says which TensorRT they have. `document`: as triton_images.json."""
    document = document or triton_images.table()
    pages = {name: source for name, source in document["sources"].items() if source["url"]}
    shown = [row for row in document["images"] if pages.keys() >= set(row["sources"])]
    lines = ["| image | TensorRT | CUDA | source |", "|---|---|---|---|"]
    lines += [f"| {row['tag']} | {row['tensorrt']} | {row['cuda']} | {', '.join(row['sources'])} |" for row in shown]
    lines += ["", *(f"- {name}: [{one['says']}]({one['url']}), read {one['read']}" for name, one in pages.items())]
    left_out = [row["tag"] for row in document["images"] if row not in shown]
    if left_out:
        says = "; ".join(source["says"] for name, source in document["sources"].items() if name not in pages)
        lines += ["", f"Left out, as no page that can be read says it: {', '.join(left_out)} ({says})."]
    return "".join(f"{line}\n" for line in lines)


def house(depth: int, root: Path = ROOT) -> str:
    """The folders of the packages up to `depth`, a line each: its name, and the first sentence of its docstring."""
    lines = []
    for package in (name for name in PACKAGES if (root / name / "__init__.py").is_file()):
        inner = sorted((root / package).rglob("__init__.py"))
        for file in (file for file in inner if len(file.relative_to(root).parts) <= depth + 1):
            *above, name = file.parent.relative_to(root).parts
            lines.append(f"{'  ' * len(above) + name + '/':17} {phrase(file)}\n")
    return "".join(lines)


def phrase(file: Path) -> str:
    """The first sentence of a module's docstring without its full stop; UserError where there is none."""
    sentence = re.split(r"\.(?=\s|$)", ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "")[0]
    if not sentence:
        raise UserError(f"{file} has no docstring", "one sentence on what the folder holds", "write it")
    return " ".join(sentence.split())


def module_of(name: str) -> str:
    """The benchmark that writes `name`.*.json, as `python -m` takes it; a name may go on after the benchmark's."""
    words = name.split("_")
    stems = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    files = (file for stem in stems for file in (ROOT / "benchmarks").rglob(f"{stem}.py"))
    file = next(files, ROOT / "benchmarks" / name)
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def table(path: Path, keys: Sequence[str], link: str) -> str:
    """A Markdown table of the points of a results file, and under it where they were measured; or that nothing was.

    `link` leads from the document to the file.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return f"Not measured yet: `python -m {module_of(path.name.split('.')[0])}` writes {path.name}.\n"
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
    libraries = ", ".join(
        f"{package} {versions[package]}"
        for package in ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx-cu13")
        if package in versions
    )
    return f"n = {document['n']}; {machine}; {libraries}; `{document['command']}`; [{name}]({link})."


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
