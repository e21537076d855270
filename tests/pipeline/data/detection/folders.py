"""Small folders of images with boxes, in both layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Document = dict[str, Any]
SIZES = ((20, 40), (30, 10), (16, 16))
"""(height, width) of the images of a part."""


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(5)
    for number, size in enumerate(SIZES):
        Image.fromarray(random.randint(0, 255, (*size, 3)).astype(np.uint8)).save(folder / f"{number}.png")


def coco_document() -> Document:
    """Two boxes in image 0 (one a crowd), one in image 1, none in image 2; ids have gaps."""
    return {
        "images": [
            {"id": 10 + k, "file_name": f"{k}.png", "height": size[0], "width": size[1]} for k, size in enumerate(SIZES)
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "bbox": [4, 5, 20, 10], "iscrowd": 0},
            {"id": 2, "image_id": 10, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 1},
            {"id": 3, "image_id": 11, "category_id": 3, "bbox": [2.5, 3, 5, 27], "iscrowd": 0},
        ],
    }


def write_coco(folder: Path, change: Callable[[Document], object] = lambda document: None) -> None:
    """`change` spoils the training part."""
    for part in ("train2017", "val2017"):
        write_images(folder / part)
        document = coco_document()
        if part == "train2017":
            change(document)
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(document))


def write_yolo(folder: Path, rows: str = "1 0.35 0.5 0.5 0.5\n0 0.5 0.5 1 1\n", names: str = "[cat, dog]") -> None:
    """Image 0 has `rows`, image 1 a polygon, image 2 no label file."""
    for part in ("train", "val"):
        write_images(folder / "images" / part)
        labels = folder / "labels" / part
        labels.mkdir(parents=True)
        (labels / "0.txt").write_text(rows if part == "train" else "0 0.5 0.5 0.2 0.2\n")
        (labels / "1.txt").write_text("0 0.25 0.1 0.75 0.1 0.5 1.0\n")
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames: {names}\n")
