"""Policies of torchvision, balanced order, and blended batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.distributions import Beta

from pipeline import config
from pipeline.data import Dataset, load
from pipeline.data.arrays import dataset
from pipeline.data.augment import auto_augmented, batch_stream, mixing, order_of, varied
from pipeline.data.raw import Raw
from runtime.errors import UserError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(config.Data())


def skewed(channels: int = 3) -> Dataset:
    """90, 9 and 3 training images of three classes."""
    random = np.random.RandomState(0)
    x = random.randint(0, 256, (102, 16, 16, channels)).astype(np.uint8)
    y = np.repeat([0, 1, 2], [90, 9, 3])
    return dataset(Raw("skewed", x, y, x[::10], y[::10], None), None, "")


def test_a_balanced_epoch_has_as_many_of_each_class_and_uses_all_of_a_class_before_one_twice() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [2] * 3)
    order = order_of(102, 5, 3, labels)
    assert torch.bincount(labels[order]).tolist() == [34, 34, 34]
    times = torch.bincount(order, minlength=102)
    assert times[:90].max() == 1
    assert sorted(times[90:99].tolist()) == [3] * 2 + [4] * 7 and sorted(times[99:].tolist()) == [11, 11, 12]
    assert torch.equal(order, order_of(102, 5, 3, labels))
    assert not torch.equal(order, order_of(102, 5, 4, labels))
    assert sorted(torch.bincount(labels[order_of(100, 5, 3, labels[:100])]).tolist()) == [33, 33, 34]


def test_a_balanced_split_gives_balanced_batches_and_census_samples_stay_as_they_were() -> None:
    data = skewed()
    balanced = varied(data, "balanced", "none")
    batches = [y for _, y in balanced.batches(17, seed=1)]
    assert len(batches) == 6 and torch.bincount(torch.cat(batches)).tolist() == [34, 34, 34]
    again = [y for _, y in balanced.batches(17, seed=1, first=4)]
    assert [y.tolist() for y in again] == [y.tolist() for y in batches[4:]]
    halves = [[y for _, y in balanced.batches(17, seed=1, part=(k, 2))] for k in (0, 1)]
    assert [torch.stack([a, b]).shape for a, b in zip(*halves, strict=True) if len(a) == len(b)] == []
    assert torch.equal(halves[0][0], batches[0][::2]) and torch.equal(halves[1][0], batches[0][1::2])
    plain = torch.cat([y for _, y in data.train.batches(17, seed=1)])
    assert torch.bincount(plain).tolist() == [90, 9, 3]


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_each_image_is_changed_for_itself_as_seed_epoch_and_place_say(policy: str) -> None:
    data = skewed()
    split = varied(data, "shuffled", policy)  # type: ignore[arg-type]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one = [x for x, _ in split.batches(20, seed=1, epoch=2)]
    assert torch.equal(torch.get_rng_state(), state), "torch's own random state is left alone"
    torch.manual_seed(4)
    two = [x for x, _ in split.batches(20, seed=1, epoch=2, first=3)]
    assert torch.equal(torch.stack(one[3:]), torch.stack(two))
    third = [x for x, _ in split.batches(20, seed=1, epoch=2, part=(1, 2))]
    assert torch.equal(third[0], one[0][1::2])
    plain = torch.cat([x for x, _ in data.train.batches(20, seed=1, epoch=2)])
    changed = (torch.cat(one) != plain).flatten(1).any(1)
    assert changed.float().mean() > 0.6
    whole = torch.cat([x for x, _ in split.batches(20)])
    assert torch.equal(whole, torch.cat([x for x, _ in data.train.batches(20)])), "in order nothing is changed"
    pixels = torch.cat(one) * 255 * torch.tensor(data.std).view(3, 1, 1) + 255 * torch.tensor(data.mean).view(3, 1, 1)
    assert (pixels - pixels.round()).abs().max() < 1e-3
    assert pixels.min() > -1e-3 and pixels.max() < 255.001


def test_float_pixels_stay_in_their_range(digits: Dataset) -> None:
    """The digits run from 0 to 16."""
    raw = torch.linspace(0, 16, 64).reshape(1, 1, 8, 8).repeat(40, 1, 1, 1)
    changed = auto_augmented(raw, "trivialaugment", batch_stream(0, 0, 0, 1), (0.0, 16.0), 40)
    assert changed.min() >= 0 and changed.max() <= 16 and (changed != raw).flatten(1).any(1).sum() > 20
    split = varied(digits, "shuffled", "randaugment")
    x, _ = next(split.batches(64, seed=0))
    pixels = x * torch.tensor(digits.std).view(1, 1, 1) + torch.tensor(digits.mean).view(1, 1, 1)
    assert float(pixels.min()) > -1e-4 and float(pixels.max()) < 16.0001


def test_mixup_blends_images_and_labels_by_one_share() -> None:
    x, y = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(7)
    mix = mixing(0.4, 0.0, 3)
    assert mix is not None
    blended, soft = mix(x, y)
    torch.manual_seed(7)
    share = float(Beta(torch.tensor([0.4]), torch.tensor([0.4])).sample())
    torch.testing.assert_close(blended, share * x + (1 - share) * x.roll(1, 0))
    hot = torch.eye(3)[y]
    torch.testing.assert_close(soft, share * hot + (1 - share) * hot.roll(1, 0))


def test_cutmix_takes_a_patch_and_its_share_of_the_label() -> None:
    x = torch.arange(4.0)[:, None, None, None].expand(4, 1, 10, 10).clone()
    torch.manual_seed(1)
    mix = mixing(0.0, 1.0, 4)
    assert mix is not None and mixing(0.0, 0.0, 4) is None
    blended, soft = mix(x, torch.arange(4))
    own = (blended == x).flatten(1).double().mean(1)
    assert 0 < own[0] < 1
    torch.testing.assert_close(soft.diagonal().double(), own, atol=1e-6, rtol=0)
    torch.testing.assert_close(soft.sum(1), torch.ones(4))


def test_with_both_each_batch_has_one_of_the_two() -> None:
    mix, x = mixing(1.0, 1.0, 4), torch.arange(4.0)[:, None, None, None].expand(4, 1, 10, 10).clone()
    assert mix is not None
    torch.manual_seed(0)
    whole = [not bool((mix(x, torch.arange(4))[0] % 1).any()) for _ in range(40)]
    assert 8 < sum(whole) < 32, "cutmix leaves the pixels of one of two images; mixup none"


def test_what_cannot_be_drawn_so_is_one_line() -> None:
    with pytest.raises(UserError, match="auto_augment trivialaugment and images of 2 channels; 1 or 3 channels"):
        varied(skewed(2), "shuffled", "trivialaugment")
    data = skewed()

    @dataclasses.dataclass(frozen=True)
    class Own:
        labels: tuple[int, ...] = ()

        def __len__(self) -> int:
            return 4

    with pytest.raises(UserError, match="sampling balanced and data of the kind Own; images with one class each"):
        varied(dataclasses.replace(data, train=Own()), "balanced", "none")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cutmix 1, and images that have no one class; task classification"):
        mixing(0.0, 1.0, None)
