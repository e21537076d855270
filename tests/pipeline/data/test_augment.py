"""Order and augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.data import load
from pipeline.data.augment import augmented, batch_stream, random_crops


def test_without_a_seed_batches_come_in_order_and_the_last_is_kept() -> None:
    data = load(config.Data())
    sizes = [len(y) for _, y in data.test.batches(100)]
    assert sizes == [100, 100, 100, 97]
    assert torch.equal(torch.cat([y for _, y in data.test.batches(100)]), data.test.labels)


def test_with_a_seed_order_follows_from_seed_and_epoch_and_a_partial_batch_is_dropped() -> None:
    split = load(config.Data()).test

    def run(seed: int, epoch: int, augment: Any = "none") -> torch.Tensor:
        return torch.cat([x for x, _ in split.batches(100, seed=seed, epoch=epoch, augment=augment)])

    assert len(run(1, 0)) == 300
    assert torch.equal(run(1, 2), run(1, 2))
    assert torch.equal(run(1, 2, "shift"), run(1, 2, "shift"))
    assert not torch.equal(run(1, 2), run(1, 3))
    assert not torch.equal(run(1, 2), run(2, 2))
    assert [len(y) for _, y in split.batches(500, seed=1)] == [397]
    labels = torch.cat([y for _, y in split.batches(397, seed=5)])
    assert torch.equal(labels.sort().values, split.labels.sort().values)


def test_shift_moves_by_at_most_an_eighth_and_fills_with_zero_pixels() -> None:
    x = torch.zeros(200, 1, 16, 8)
    x[:, :, 8, 4] = 1.0
    y = augmented(x, "shift", np.random.Generator(np.random.PCG64(0)))
    assert y.shape == x.shape
    assert torch.equal(y.sum((1, 2, 3)), torch.ones(200))
    rows, columns = y[:, 0].nonzero()[:, 1], y[:, 0].nonzero()[:, 2]
    assert set(rows.tolist()) == {6, 7, 8, 9, 10}
    assert set(columns.tolist()) == {3, 4, 5}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_reflects_at_the_border_and_mirrors_half(dtype: torch.dtype) -> None:
    row = torch.arange(8, dtype=dtype)
    x = row.repeat(400, 1, 8, 1)
    y = augmented(x, "crop_flip", np.random.Generator(np.random.PCG64(0)))
    seen = {tuple(line) for line in y[:, 0, 0].tolist()}
    plain = {(1, 0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 4, 5, 6, 7, 6)}
    assert seen == plain | {tuple(reversed(line)) for line in plain}
    mirrored = (y[:, 0, 0, 2] > y[:, 0, 0, 5]).float().mean().item()
    assert 0.4 < mirrored < 0.6
    assert y.dtype == dtype


def test_an_image_of_one_pixel_survives_augmentation() -> None:
    x = torch.full((4, 2, 1, 1), 3.0)
    random = np.random.Generator(np.random.PCG64(0))
    assert torch.equal(augmented(x, "shift", random), x)
    assert torch.equal(augmented(x, "crop_flip", random), x)


def test_augmentation_happens_on_raw_pixels_before_normalisation() -> None:
    data = load(config.Data())
    x, _ = next(iter(data.train.batches(1400, seed=3, augment="shift")))
    zero_pixel = (0.0 - data.mean[0]) / data.std[0]
    assert x.min().item() == pytest.approx(zero_pixel, abs=1e-6)
    plain, _ = next(iter(data.train.batches(1400, seed=3)))
    assert not torch.equal(x, plain)


@pytest.mark.parametrize("augment", ["none", "shift", "crop_flip", "zero_crop_flip"])
def test_parts_of_a_batch_are_its_rows_and_batches_start_anywhere(augment: Any) -> None:
    split = load(config.Data()).test
    whole = list(split.batches(60, seed=4, epoch=2, augment=augment))
    for rank in range(3):
        part = list(split.batches(60, seed=4, epoch=2, augment=augment, part=(rank, 3)))
        assert len(part) == len(whole) == 6
        for (x, y), (all_x, all_y) in zip(part, whole, strict=True):
            assert torch.equal(x, all_x[rank::3])
            assert torch.equal(y, all_y[rank::3])
    later = list(split.batches(60, seed=4, epoch=2, augment=augment, first=4))
    assert [torch.equal(a, b) for (a, _), (b, _) in zip(later, whole[4:], strict=True)] == [True, True]


def test_zero_crop_flip_fills_with_zero_pixels() -> None:
    x = torch.full((300, 1, 8, 8), 5.0)
    y = augmented(x, "zero_crop_flip", np.random.Generator(np.random.PCG64(0)))
    assert {float(value) for value in y.flatten()} == {0.0, 5.0}
    moved = (y == 0).any(1).any(1).any(1).float().mean().item()
    assert 0.8 < moved < 0.97, "one image in nine stays where it is"


def test_random_crops_of_imagenet_are_256_to_480_for_224() -> None:
    crops = random_crops(224, batch_stream(0, 0, 0), 4000)
    assert (crops.side.min(), crops.side.max()) == (256, 480)
    assert 0.45 < crops.mirrored.mean() < 0.55
    assert 0 <= crops.down.min() < crops.down.max() < 1
    some = random_crops(224, batch_stream(0, 0, 0), 4000, (1, 4))
    assert np.array_equal(some.side, crops.side[1::4])
    assert not np.array_equal(some.side, random_crops(224, batch_stream(0, 0, 1), 4000, (1, 4)).side)
