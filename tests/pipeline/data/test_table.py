"""A CSV file of images and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import config
from pipeline.config.task import task_of
from pipeline.data import fingerprint, load
from pipeline.data.augment import mixing, varied
from pipeline.stages.train import demand_targets
from pipeline.training.loop import soft_classes
from runtime.errors import UserError

LABELS = """image,split,red,bright
a.png,train,1,1
b.png,train,0,1
sub/c.png,train,1,0
d.png,test,0,0
a.png,val,1,1
"""
CLASSES = """image,label,split
a.png,cat,train
b.png,dog,train
sub/c.png,cat,train
d.png,dog,test
"""


def written(folder: Path, text: str) -> str:
    (folder / "sub").mkdir(exist_ok=True)
    for k, name in enumerate(("a.png", "b.png", "sub/c.png", "d.png")):
        pixels = np.random.RandomState(k).randint(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "set.csv").write_text(text)
    return f"csv:{folder / 'set.csv'}"


def test_columns_of_0_and_1_are_labels(tmp_path: Path) -> None:
    source = written(tmp_path, LABELS)
    data = load(config.Data(source=source))
    assert (data.names, data.input_shape, data.targets) == (("red", "bright"), (3, 8, 8), "labels")
    x, y = next(iter(data.train.batches(8)))
    assert y.tolist() == [[1, 1], [0, 1], [1, 0]] and y.dtype == torch.float32
    first = np.asarray(Image.open(tmp_path / "a.png"))
    assert x[0, 0, 2, 1].item() == pytest.approx((first[2, 1, 0] / 255 - data.mean[0]) / data.std[0], abs=1e-5)
    assert len(data.test) == 1 and data.validation is None
    assert "rows of split val are not read" in data.notes[-1]
    chosen = load(config.Data(source=source, validation="val"))
    assert chosen.validation is not None and next(iter(chosen.validation.batches(8)))[1].tolist() == [[1, 1]]
    held = load(config.Data(source=source, validation=0.34))
    assert held.validation is not None and (len(held.validation), len(held.train)) == (1, 2)
    demand_targets("multilabel", task_of(config.task_section(name="multilabel")), data)
    with pytest.raises(UserError, match=r"task\.name is classification, and the data have any number of labels"):
        demand_targets("classification", task_of(), data)


def test_labels_are_blended_and_images_changed_as_classes_are(tmp_path: Path) -> None:
    data = load(config.Data(source=written(tmp_path, LABELS)))
    task = task_of(config.task_section(name="multilabel"))
    mix = mixing(1.0, 0.0, soft_classes(data, task))
    assert mix is not None
    x, y = next(iter(varied(data, "shuffled", "trivialaugment").batches(3, seed=0)))
    torch.manual_seed(0)
    _, soft = mix(x, y)
    assert soft.shape == (3, 2) and bool((soft >= 0).all() and (soft <= 1).all())
    torch.testing.assert_close(soft.sum(0), y.sum(0))
    with pytest.raises(UserError, match="sampling balanced and data whose targets are of the kind labels"):
        varied(data, "balanced", "none")


def test_a_column_of_names_is_classes(tmp_path: Path) -> None:
    source = written(tmp_path, CLASSES)
    data = load(config.Data(source=source))
    assert (data.names, data.targets, data.train.labels.tolist()) == (("cat", "dog"), "class", [0, 1, 0])
    assert data.test.labels.tolist() == [1]
    before = fingerprint(config.Data(source=source))
    assert fingerprint(config.Data(source=source)) == before
    (tmp_path / "set.csv").write_text(CLASSES.replace("dog,test", "cat,test"))
    assert fingerprint(config.Data(source=source)) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("image,", "file,"), "set.csv has the columns file, split, red, bright; a header"),
        (lambda text: text.replace("a.png,train", "e.png,train"), "set.csv:2: there is no image .*e.png"),
        (lambda text: text.replace("0,1\n", "0,yes\n"), "set.csv:3: bright is 'yes'; 0 or 1"),
        (lambda text: text.replace("b.png,train", "b.png,dev"), "set.csv:3: split is 'dev'; one of train, val, test"),
        (lambda text: text.replace("1,0\n", "1\n"), "set.csv:4 has other cells than the header's 4"),
        (lambda text: text.replace("train", "test"), "has rows of val, test; rows of train, and of test or val"),
        (lambda text: text.replace("red", "label"), "the column label beside bright"),
        (lambda text: text.replace("\xe9", "e") + '"open', "cannot be read"),
        (lambda text: "image,split,red\na.png,train,1\nd.png,test,0\n", "has one label, red; at least two"),
        (lambda text: CLASSES.replace("dog,train", "cat,train"), "class dog of .* has no row of train"),
        (lambda text: "", "has the columns none"),
    ],
)
def test_a_wrong_table_is_one_line_that_names_the_place(
    change: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    source = written(tmp_path, change(LABELS))
    with pytest.raises(UserError, match=message) as caught:
        load(config.Data(source=source))
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which is no file; a CSV file"):
        load(config.Data(source=f"csv:{tmp_path / 'none.csv'}"))
    (tmp_path / "latin.csv").write_bytes("image,split,caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match="a CSV file in UTF-8"):
        load(config.Data(source=f"csv:{tmp_path / 'latin.csv'}"))
