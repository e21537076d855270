"""A validation split beside the test split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from pipeline import config
from pipeline.data import fingerprint, load
from pipeline.data.arrays import dataset
from pipeline.data.raw import Raw
from pipeline.data.validation import held_out
from runtime.errors import UserError
from tests.pipeline.data.test_folder import write_images


def counted(*counts: int) -> Raw:
    """So many training images of each class, each with its number as its pixels."""
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.tile(np.arange(len(y), dtype=np.uint8)[:, None, None], (1, 4, 4))
    return Raw("counted", x, y, x[:4], y[:4], None)


def test_without_it_the_test_split_is_chosen_on() -> None:
    data = load(config.Data())
    assert data.validation is None and data.choosing is data.test
    assert load(config.Data(validation=0)).train.labels.tolist() == data.train.labels.tolist()


def test_a_share_of_each_class_leaves_the_training_split() -> None:
    data = held_out(dataset(counted(50, 20, 4, 1), None, ""), 0.1)
    assert data.validation is not None and data.choosing is data.validation
    assert torch.bincount(data.validation.labels, minlength=4).tolist() == [5, 2, 0, 0]
    assert torch.bincount(data.train.labels).tolist() == [45, 18, 4, 1]
    scale, mean, std = 255, data.mean[0], data.std[0]
    numbers = [
        round(scale * (float(x[0, 0, 0]) * std + mean))
        for split in (data.train, data.validation)
        for batch, _ in split.batches(16)
        for x in batch
    ]
    assert sorted(numbers) == list(range(75)), "no image is in both, and none is lost"
    half = held_out(dataset(counted(3, 1), None, ""), 0.9)
    assert half.validation is not None and half.validation.labels.tolist() == [0, 0]
    assert (data.train.name, data.validation.name) == ("train", "validation")


def test_the_same_images_are_held_out_whatever_the_seed_of_the_run() -> None:
    one, two = (load(config.Data(validation=0.2)) for _ in range(2))
    assert one.validation is not None and two.validation is not None
    assert abs(len(one.validation) - 280) <= 5 and len(one.train) + len(one.validation) == 1400
    assert one.validation.labels.tolist() == two.validation.labels.tolist()
    x, y = (next(iter(data.validation.batches(400)))[0] for data in (one, two) if data.validation)
    assert torch.equal(x, y)


def test_a_folder_gives_its_own_val_and_test(tmp_path: Path) -> None:
    write_images(tmp_path)
    source = f"imagefolder:{tmp_path}"
    before = fingerprint(config.Data(source=source))
    for name, level in (("ant", 10), ("bee", 200)):
        (tmp_path / "test" / name).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (10, 12), (level, level, level)).save(tmp_path / "test" / name / f"{k}.png")
    assert fingerprint(config.Data(source=source)) == before
    plain = load(config.Data(source=source))
    assert len(plain.test) == 2 and plain.validation is None
    assert "test is not read, and val/ is the test split" in plain.notes[-1]
    data = load(config.Data(source=source, validation="val"))
    assert data.validation is not None
    assert [len(split) for split in (data.train, data.validation, data.test)] == [5, 2, 6]
    assert torch.equal(next(iter(data.validation.batches(9)))[0], next(iter(plain.test.batches(9)))[0])
    assert fingerprint(config.Data(source=source, validation="val")) != before
    shared = load(config.Data(source=source, validation=0.4))
    assert shared.validation is not None and shared.validation.labels.tolist() == [0, 1]
    assert len(next(iter(shared.validation.batches(9)))[0]) == 2


def test_what_cannot_be_held_out_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.validation 0\.1 of 4 training images in 2 classes is none"):
        held_out(dataset(counted(2, 2), None, ""), 0.1)
    with pytest.raises(UserError, match=r"data\.source digits has no part of that name"):
        load(config.Data(validation="val"))
    write_images(tmp_path)
    with pytest.raises(UserError, match=r"there is no folder .*/test; test/CLASS/ with images; make it"):
        load(config.Data(source=f"imagefolder:{tmp_path}", validation="val"))
    data = load(config.Data())
    with pytest.raises(UserError, match="data whose targets are of the kind own; a source whose images can be divided"):
        held_out(dataclasses.replace(data, train=object(), targets="own"), 0.1)  # type: ignore[arg-type]
    for value in (1.0, -0.1, "test", True, None):
        with pytest.raises(ValidationError, match="expected a share, 0 to less than 1, or val"):
            config.Data.model_validate({"validation": value})
