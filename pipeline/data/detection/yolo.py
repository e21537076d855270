"""`yolo:DIR`: images and labels as Ultralytics' YOLO reads them, named in DIR/data.yaml.

train, val (or test): folders of images, or text files that list them; the labels of images/a.jpg are labels/a.txt, a
row for each box: class x y width height, as shares of the image; or class and the corners of a polygon, whose extent
is taken. An image without a label file has no box.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.detection.annotated import (
    COLUMNS,
    Annotated,
    Boxes,
    demand_names,
    demand_usable,
    share_of,
)
from pipeline.data.tree import SUFFIXES
from runtime.errors import UserError
from runtime.files import read_bounded

SLACK = 0.01
"""Share of the image that a box may reach over the border: centre and size are rounded each."""
MAX_BYTES = 16 << 20
MAX_YAML_BYTES = 1 << 20
EXPECTED = "DIR/data.yaml with train, val and names"


def read(folder: Path) -> tuple[Annotated, Annotated]:
    """The training and the test part. UserError naming what is at fault, before anything is decoded."""
    path = _yaml_of(folder)
    content = _content(path)
    names = _names(content, path)
    root = path.parent / str(content.get("path") or ".")
    roots = [place for place in (root, path.parent) if place.is_dir()]
    if not content.get("train"):
        raise UserError(f"{path} has no train", EXPECTED, "add it")
    tested = next((key for key in ("val", "test") if content.get(key)), None)
    if tested is None:
        raise UserError(f"{path} has neither val nor test", EXPECTED, "add it")
    train, test = (_part(content[key], key, roots, names, path) for key in ("train", tested))
    return train, test


def _yaml_of(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"data.source names {folder}, which is no folder", EXPECTED, "mend data.source")
    if (folder / "data.yaml").is_file():
        return folder / "data.yaml"
    present = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if len(present) != 1:
        listed = ", ".join(path.name for path in present) or "no yaml file"
        raise UserError(f"{folder} holds {listed}", EXPECTED, "name the file data.yaml")
    return present[0]


def _content(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(read_bounded(path, MAX_YAML_BYTES).decode())
    except (OSError, ValueError, YAMLError) as error:
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason})", EXPECTED, "write it again") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is no mapping", EXPECTED, "write it so")
    return {str(key): value for key, value in content.items()}


def _names(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, Mapping):
        numbered = {int(key): name for key, name in names.items() if str(key).isdigit()}
        if sorted(numbered) != list(range(len(names))):
            raise UserError(f"{path} names the classes {', '.join(map(str, names))}", "0, 1, 2 and so on", "mend names")
        names = [numbered[key] for key in range(len(numbered))]
    if not isinstance(names, list):
        raise UserError(f"{path} has no names of classes", EXPECTED, "add `names: [cat, dog]`")
    if "nc" in content and content["nc"] != len(names):
        raise UserError(f"{path} says nc {content['nc']} and names {len(names)} classes", "the same number", "mend it")
    return demand_names(names, path)


def _part(entry: Any, key: str, roots: list[Path], names: tuple[str, ...], path: Path) -> Annotated:
    images: list[Path] = []
    origin = path
    for each in entry if isinstance(entry, list) else [entry]:
        place = next((root / str(each) for root in roots if (root / str(each)).exists()), None)
        if place is None:
            raise UserError(f"{path}: {key} is {each}, which is not there", "a folder of images, or a list", "mend it")
        origin = path if isinstance(entry, list) else place
        images += _listed(place, roots) if place.is_file() else _below(place)
    if not images:
        raise UserError(f"{path}: {key} holds no image", f"files {', '.join(sorted(SUFFIXES))}", "add some")
    labels = [_labels_of(image) for image in images]
    present = tuple(label for label in labels if label.is_file())
    if not present:
        raise UserError(
            f"none of the images of {origin} has labels, such as {labels[0]}", "a file for each", "add them"
        )
    boxes, flat = [], 0
    for label in labels:
        rows, without = _boxes(label, names)
        boxes.append(rows)
        flat += without
    part = Annotated(origin, names, tuple(images), tuple(boxes), present, None, flat)
    demand_usable(part)
    return part


def _listed(file: Path, roots: list[Path]) -> list[Path]:
    """Images that a text file lists, a line each; relative ones lie beside the file or below the root."""
    lines = read_bounded(file, MAX_BYTES).decode("utf-8", "replace").split("\n")
    places = [file.parent, *roots]
    texts = [line.strip() for line in lines if line.strip()]
    return [next((root / text for root in places if (root / text).is_file()), places[0] / text) for text in texts]


def _below(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())
    return sorted(path for path in files if path.suffix.lower() in SUFFIXES)


def _labels_of(image: Path) -> Path:
    """labels/ in the place of the last images/ of its path."""
    parts = list(image.parts[:-1])
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts, f"{image.stem}.txt")


def _boxes(path: Path, names: tuple[str, ...]) -> tuple[Boxes, int]:
    """The boxes of a label file, and how many have no area."""
    if not path.is_file():
        return np.zeros((0, COLUMNS)), 0
    rows, flat = [], 0
    for number, line in enumerate(read_bounded(path, MAX_BYTES).decode("utf-8", "replace").split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            label, *values = map(float, line.split())
        except ValueError:
            raise UserError(f"{where} is `{line.strip()[:60]}`", "class x y width height", "mend it") from None
        if label not in range(len(names)):
            raise UserError(f"{where} has class {label:g}", f"0 to {len(names) - 1} ({len(names)} names)", "mend it")
        share = share_of(_corners(values, where), (1.0, 1.0), (SLACK, SLACK), where)
        if share is None:
            flat += 1
        else:
            rows.append((*share, label, 0.0))
    return np.array(rows, np.float64).reshape(-1, COLUMNS), flat


def _corners(values: list[float], where: str) -> tuple[float, float, float, float]:
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(values) < 6 or len(values) % 2:
        raise UserError(
            f"{where} has {len(values)} numbers after the class", "x y width height, or a polygon", "mend it"
        )
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
