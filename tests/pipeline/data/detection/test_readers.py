"""Annotations of COCO and YOLO: what is read, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.detection import coco, yolo
from runtime.errors import UserError
from tests.pipeline.data.detection.folders import Document, write_coco, write_yolo


def test_coco_boxes_are_shares_of_their_image(tmp_path: Path) -> None:
    write_coco(tmp_path)
    train, test = coco.read(tmp_path)
    assert train.names == test.names == ("cat", "dog"), "in the order of their ids"
    assert [path.name for path in train.paths] == ["0.png", "1.png", "2.png"]
    assert train.boxes[0].tolist() == [[0.1, 0.25, 0.6, 0.75, 1, 0], [0, 0, 1, 1, 0, 1]]
    assert train.boxes[1].tolist() == [[0.25, 0.1, 0.75, 1, 0, 0]]
    assert train.boxes[2].shape == (0, 6)
    assert train.sizes == ((20, 40), (30, 10), (16, 16))
    assert "3 images, 3 boxes in 2 classes; 1 images without a box" in train.note()


def test_pycocotools_reads_the_same_boxes(tmp_path: Path) -> None:
    tools = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    write_coco(tmp_path)
    train, _ = coco.read(tmp_path)
    theirs = tools.COCO(str(tmp_path / "annotations" / "instances_train2017.json"))
    for key, boxes, (height, width) in zip(theirs.getImgIds(), train.boxes, train.sizes or (), strict=True):
        expected = [row["bbox"] for row in theirs.loadAnns(theirs.getAnnIds(imgIds=[key]))]
        pixels = boxes[:, :4] * [width, height, width, height]
        pixels[:, 2:] -= pixels[:, :2]
        assert np.allclose(pixels, np.reshape(expected, (-1, 4)))
    assert len(theirs.getImgIds()) == len(train.boxes) == 3


def test_the_layout_of_roboflow_is_read(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for part, name in (("train2017", "train"), ("val2017", "valid")):
        (tmp_path / part).rename(tmp_path / name)
        document = tmp_path / "annotations" / f"instances_{part}.json"
        document.rename(tmp_path / name / "_annotations.coco.json")
    train, test = coco.read(tmp_path)
    assert train.paths[0] == tmp_path / "train" / "0.png"
    assert test.paths[2] == tmp_path / "valid" / "2.png"


def _set(section: str, key: str, value: object, row: int = 0) -> Callable[[Document], object]:
    return lambda document: document[section][row].__setitem__(key, value)


COCO_REFUSED = {
    "outside": (_set("annotations", "bbox", [30, 5, 20, 10]), "annotation 1 .* outside its image: 30, 5, 50, 15"),
    "negative": (_set("annotations", "bbox", [4, 5, -2, 10]), "annotation 1 .* negative width"),
    "no number": (_set("annotations", "bbox", [4, float("nan"), 2, 10]), "annotation 1 .* no number"),
    "short": (_set("annotations", "bbox", [4, 5, 2]), r"annotation 1 .* has bbox \[4, 5, 2\]"),
    "class": (_set("annotations", "category_id", 99), "annotation 1 .* has category_id 99"),
    "image": (_set("annotations", "image_id", 99), "annotation 1 .* has image_id 99"),
    "file": (_set("images", "file_name", "none.png", 1), "lists the image none.png, and there is no file"),
    "first file": (_set("images", "file_name", "none.png"), "none.png, which is in none of"),
    "size": (_set("images", "height", 0), "image 10 .* is 40 x 0"),
    "twice": (_set("images", "id", 11), "has 11 twice"),
    "names": (_set("categories", "name", "cat"), "names the class cat twice"),
    "other names": (_set("categories", "name", "cow"), "class cow of .* is dog in"),
    "no name": (lambda document: document["categories"][0].pop("name"), "row 0 of `categories` .* has no name"),
    "no list": (lambda document: document.pop("annotations"), "has no list `annotations`"),
    "no image": (lambda document: (document["images"].clear(), document["annotations"].clear()), "lists no image"),
    "no box": (lambda document: document["annotations"].clear(), "has no box in any of its 3 images"),
}  # fmt: skip


@pytest.mark.parametrize("case", COCO_REFUSED)
def test_bad_coco_annotations_are_one_line(case: str, tmp_path: Path) -> None:
    change, message = COCO_REFUSED[case]
    write_coco(tmp_path, change)
    with pytest.raises(UserError, match=message) as error:
        coco.read(tmp_path)
    assert "\n" not in str(error.value)
    assert error.value.remedy


def test_bad_coco_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        coco.read(tmp_path / "nowhere")
    write_coco(tmp_path)
    annotations = tmp_path / "annotations"
    shutil.copy(annotations / "instances_train2017.json", annotations / "instances_train2014.json")
    with pytest.raises(UserError, match="several annotations for train"):
        coco.read(tmp_path)
    (annotations / "instances_train2014.json").unlink()
    (annotations / "instances_val2017.json").write_text("{")
    with pytest.raises(UserError, match=r"instances_val2017.json cannot be read"):
        coco.read(tmp_path)
    (annotations / "instances_val2017.json").unlink()
    with pytest.raises(UserError, match="no annotations for val or valid or test"):
        coco.read(tmp_path)


def test_boxes_without_area_are_left_out_and_counted(tmp_path: Path) -> None:
    write_coco(tmp_path, _set("annotations", "bbox", [4, 5, 0, 10]))
    train, _ = coco.read(tmp_path)
    assert len(train.boxes[0]) == 1
    assert "1 boxes of no area left out" in train.note()


def test_a_box_that_rounding_moved_out_is_cut(tmp_path: Path) -> None:
    write_coco(tmp_path, _set("annotations", "bbox", [-0.6, 5, 20.6, 15.4]))
    train, _ = coco.read(tmp_path)
    assert train.boxes[0][0, 0] == 0.0
    assert train.boxes[0][0, 3] == 1.0


def test_yolo_rows_and_polygons_are_boxes(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    train, test = yolo.read(tmp_path)
    assert train.names == ("cat", "dog")
    assert train.boxes[0] == pytest.approx(np.array([[0.1, 0.25, 0.6, 0.75, 1, 0], [0, 0, 1, 1, 0, 0]]))
    assert train.boxes[1].tolist() == [[0.25, 0.1, 0.75, 1.0, 0, 0]]
    assert train.boxes[2].shape == (0, 6)
    assert len(test.paths) == 3


def test_yolo_lists_and_numbered_names_are_read(tmp_path: Path) -> None:
    write_yolo(tmp_path, names="{0: cat, 1: dog}")
    (tmp_path / "few.txt").write_text("images/train/0.png\n\n./images/train/2.png\n")
    text = (tmp_path / "data.yaml").read_text()
    (tmp_path / "data.yaml").write_text(text.replace("train: images/train", "train: few.txt") + "nc: 2\n")
    train, _ = yolo.read(tmp_path)
    assert [path.name for path in train.paths] == ["0.png", "2.png"]
    assert [len(boxes) for boxes in train.boxes] == [2, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("2 0.5 0.5 0.1 0.1\n", "line 1 of .*0.txt has class 2"),
        ("0.5 0.5 0.5 0.1 0.1\n", "line 1 of .*0.txt has class 0.5"),
        ("nan 0.5 0.5 0.1 0.1\n", "line 1 of .*0.txt has class nan"),
        ("\n0 0.95 0.5 0.3 0.1\n", "line 2 of .*0.txt reaches outside its image"),
        ("0 320 240 64 48\n", "line 1 of .*0.txt reaches outside its image"),
        ("0 0.5 0.5 -0.1 0.1\n", "negative width"),
        ("0 0.5 0.5 0.1\n", "has 3 numbers after the class"),
        ("cat 0.5 0.5 0.1 0.1\n", "is `cat 0.5 0.5 0.1 0.1`"),
        ("0 0.5 nan 0.1 0.1\n", "no number"),
    ],
)
def test_bad_yolo_rows_are_one_line(rows: str, message: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, rows)
    with pytest.raises(UserError, match=message) as error:
        yolo.read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train: images/train\n", "", "has no train"),
        ("val: images/val\n", "", "has neither val nor test"),
        ("images/val", "images/none", "val is images/none, which is not there"),
        ("names: [cat, dog]\n", "", "has no names"),
        ("[cat, dog]", "[cat, cat]", "names the class cat twice"),
        ("[cat, dog]", "{0: cat, 2: dog}", "names the classes 0, 2"),
        ("names:", "nc: 3\nnames:", "says nc 3 and names 2 classes"),
        ("path: .", "- path", "data.yaml cannot be read"),
        ("images/val", "labels/val", "val holds no image"),
    ],
)
def test_bad_yolo_files_are_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    write_yolo(tmp_path)
    text = (tmp_path / "data.yaml").read_text()
    assert old in text
    (tmp_path / "data.yaml").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        yolo.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_yolo_folder_without_labels_or_files_is_one_line(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    shutil.rmtree(tmp_path / "labels" / "train")
    with pytest.raises(UserError, match=r"none of the images of .* has labels"):
        yolo.read(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(UserError, match="holds no yaml file"):
        yolo.read(tmp_path)
