"""Digits on canvases."""

from __future__ import annotations

import numpy as np

from pipeline.data.canvases import pasted


def test_a_box_is_tight_around_the_ink_of_its_digit() -> None:
    digits = np.zeros((2, 8, 8), np.float32)
    digits[0, :, 3:5] = 1.0
    digits[1, 3:5, :] = 1.0
    canvases = pasted(digits, np.array([0, 1]), 30, 48, seed=3)
    assert canvases.images.shape == canvases.classes.shape == (30, 48, 48)
    for classes, boxes in zip(canvases.classes, canvases.boxes, strict=True):
        assert 1 <= len(boxes) <= 4
        inside = np.zeros((48, 48), bool)
        for x1, y1, x2, y2, digit in boxes.astype(int):
            ink = classes[y1:y2, x1:x2]
            assert set(np.unique(ink)) <= {0, digit + 1}, "another digit lies in the box"
            marked = ink == digit + 1
            assert marked[0].any() and marked[-1].any() and marked[:, 0].any() and marked[:, -1].any()
            assert (y2 - y1 > x2 - x1) == (digit == 0)
            assert not inside[y1:y2, x1:x2].any()
            inside[y1:y2, x1:x2] = True
        assert not classes[~inside].any()


def test_the_seed_decides_the_canvases() -> None:
    digits, labels = np.random.RandomState(0).rand(5, 8, 8).astype(np.float32), np.arange(5)
    one, two, other = (pasted(digits, labels, 3, 40, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.images, two.images)
    assert not np.array_equal(one.images, other.images)
    assert len({tuple(boxes[0]) for boxes in one.boxes}) == 3
