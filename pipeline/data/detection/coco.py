"""`coco:DIR`: images with the annotations of COCO, one JSON a part (https://cocodataset.org/#format-data).

Two layouts: annotations/instances_train*.json with the images in train*/, and Roboflow's train/_annotations.coco.json
beside its images; the other part is val, valid or test. The JSON is read as it is; pycocotools is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.detection.annotated import (
    COLUMNS,
    SLACK_PIXELS,
    Annotated,
    Boxes,
    demand_names,
    demand_same_classes,
    demand_usable,
    share_of,
)
from runtime.errors import UserError
from runtime.files import read_bounded

PARTS = {"train": ("train",), "test": ("val", "valid", "test")}
MAX_BYTES = 2 << 30
"""Of one JSON; COCO's own for training has 470 MB."""
LAYOUT = "annotations/instances_train*.json and instances_val*.json, or train/_annotations.coco.json and valid/"


def read(folder: Path) -> tuple[Annotated, Annotated]:
    """The training and the test part. UserError naming what is at fault, before anything is decoded."""
    if not folder.is_dir():
        raise UserError(f"data.source names {folder}, which is no folder", LAYOUT, "mend data.source")
    train, test = (_part(_json_of(folder, part), folder) for part in PARTS)
    demand_same_classes(train, test)
    return train, test


def _json_of(folder: Path, part: str) -> Path:
    for name in PARTS[part]:
        present = [path for path in (folder / name / "_annotations.coco.json",) if path.is_file()]
        for pattern in (f"instances_{name}*.json", f"{name}*.json"):
            present = present or sorted((folder / "annotations").glob(pattern))
        if len(present) > 1:
            listed = ", ".join(path.name for path in present)
            raise UserError(f"{folder} has several annotations for {name}: {listed}", "one", "move the others away")
        if present:
            return present[0]
    raise UserError(f"{folder} has no annotations for {' or '.join(PARTS[part])}", LAYOUT, "name the file so")


def _part(path: Path, folder: Path) -> Annotated:
    content = _content(path)
    categories = _by_id(content, "categories", ("name",), path)
    order = sorted(categories)
    names = demand_names([categories[key]["name"] for key in order], path)
    label = {key: number for number, key in enumerate(order)}
    images = _by_id(content, "images", ("file_name", "height", "width"), path)
    boxes: dict[int, list[tuple[float, ...]]] = {key: [] for key in images}
    flat = 0
    for number, row in enumerate(content["annotations"]):
        where = f"annotation {row.get('id', number) if isinstance(row, dict) else number} of {path}"
        image, box = _box(row, images, label, where)
        if box is None:
            flat += 1
        else:
            boxes[image].append(box)
    keys = list(images)
    root = _images_folder(path, folder, str(images[keys[0]]["file_name"])) if keys else folder
    part = Annotated(
        path,
        names,
        tuple(root / str(images[key]["file_name"]) for key in keys),
        tuple(_array(boxes[key]) for key in keys),
        (path,),
        tuple((int(images[key]["height"]), int(images[key]["width"])) for key in keys),
        flat,
    )
    demand_usable(part)
    return part


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bounded(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} cannot be read ({reason})", "the JSON of COCO annotations", "write it again"
        ) from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path} has no list `{key}`", "images, annotations and categories", "write it again")
    return dict(content)


def _by_id(content: dict[str, Any], key: str, fields: tuple[str, ...], path: Path) -> dict[int, dict[str, Any]]:
    """The rows of a list by their `id`, which is unique."""
    rows: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(content[key]):
        missing = [field for field in ("id", *fields) if not isinstance(row, dict) or field not in row]
        if missing:
            raise UserError(f"row {number} of `{key}` in {path} has no {missing[0]}", ", ".join(fields), "add it")
        if not isinstance(row["id"], int) or row["id"] in rows:
            problem = "twice" if isinstance(row["id"], int) else "as an id"
            raise UserError(f"`{key}` in {path} has {row['id']!r} {problem}", "whole numbers that differ", "mend it")
        if "height" in fields and not all(isinstance(row[side], int) and row[side] > 0 for side in ("height", "width")):
            raise UserError(
                f"image {row['id']} of {path} is {row['width']!r} x {row['height']!r}", "pixels above 0", "mend it"
            )
        rows[row["id"]] = row
    return rows


def _box(
    row: Any, images: Mapping[int, dict[str, Any]], label: Mapping[int, int], where: str
) -> tuple[int, tuple[float, ...] | None]:
    """Id of the image, and the box as a row of `Boxes`; None for one of no area."""
    if not isinstance(row, dict):
        raise UserError(
            f"{where} is a {type(row).__name__}", "an object with image_id, category_id and bbox", "mend it"
        )
    for key, rows in (("image_id", images), ("category_id", label)):
        if not isinstance(row.get(key), int) or row[key] not in rows:
            listed = "images" if key == "image_id" else "categories"
            raise UserError(f"{where} has {key} {row.get(key)!r}", f"an id of `{listed}`", "mend it")
    bbox = row.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(v, int | float) for v in bbox):
        raise UserError(f"{where} has bbox {bbox!r}", "[x, y, width, height] in pixels", "mend it")
    image = images[row["image_id"]]
    x, y, width, height = map(float, bbox)
    size = float(image["width"]), float(image["height"])
    share = share_of((x, y, x + width, y + height), size, (SLACK_PIXELS, SLACK_PIXELS), where)
    crowd = float(bool(row.get("iscrowd", 0)))
    return row["image_id"], None if share is None else (*share, float(label[row["category_id"]]), crowd)


def _array(rows: list[tuple[float, ...]]) -> Boxes:
    return np.array(rows, np.float64).reshape(-1, COLUMNS)


def _images_folder(path: Path, folder: Path, first: str) -> Path:
    """Where the images of an annotations file lie: the first place that has its first image."""
    stem = path.stem.removeprefix("instances_")
    places = [path.parent] if path.name.startswith("_") else []
    places += [folder / stem, folder / "images" / stem, folder / "images", folder]
    root = next((place for place in places if (place / first).is_file()), None)
    if root is None:
        listed = ", ".join(str(place) for place in places)
        raise UserError(
            f"{path} lists the image {first}, which is in none of {listed}",
            "the images of the annotations",
            "put them there",
        )
    return root
