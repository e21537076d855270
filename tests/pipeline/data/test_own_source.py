"""A data source is one class and one row: this file adds one, and nothing in the project changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.config.file import config_from_overrides
from pipeline.data import fingerprint, load
from pipeline.data.arrays import dataset
from pipeline.data.dataset import Dataset, Settings
from pipeline.data.raw import Raw
from pipeline.data.sources import SOURCES
from runtime.errors import UserError


class Stripes:
    """`stripes:N`: N images a class, 4x4, with stripes across or upright."""

    def __init__(self, text: str, section: Settings) -> None:
        self.count, self.section = int(text), section

    def fingerprint(self) -> str:
        return f"stripes {self.count}"

    def load(self, fingerprint: str) -> Dataset:
        rows = np.indices((4, 4)) % 2 * 200
        x, y = np.concatenate([rows] * self.count).astype(np.uint8), np.arange(2 * self.count) % 2
        return dataset(Raw("stripes", x, y, x, y, ("across", "upright")), self.section, fingerprint)


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "stripes:N", f"{__name__}:Stripes")


def test_it_is_named_in_a_config_and_read() -> None:
    settings = config_from_overrides(["data.source=stripes:3"])
    data = load(settings.data)
    assert (len(data.train), data.names, data.input_shape) == (6, ("across", "upright"), (1, 4, 4))
    assert data.fingerprint == fingerprint(settings.data) == "stripes 3"
    ((x, y),) = data.test.batches(6)
    assert torch.equal(x[0, 0, :, 0], x[0, 0, :, 3]) and torch.equal(x[1, 0, 0], x[1, 0, 3])
    assert y.tolist() == [0, 1] * 3


@pytest.mark.parametrize("source", ["stripes", "stripes:", "stripe:3"])
def test_another_form_of_its_name_is_refused(source: str) -> None:
    with pytest.raises(UserError, match="names no data") as caught:
        config_from_overrides([f"data.source='{source}'"])
    assert "imagefolder:DIR" in caught.value.expected


def test_normalisation_can_be_set() -> None:
    data = load(config.Data(source="stripes:2", mean=(0.5,), std=(0.25,)))
    ((x, _),) = data.train.batches(4)
    assert sorted(set(x.flatten().tolist())) == pytest.approx([-2.0, (200 / 255 - 0.5) / 0.25])
    assert (data.mean, data.std) == ((0.5,), (0.25,))
    with pytest.raises(UserError, match=r"data\.mean has 3 values, and images of stripes 1 channels"):
        load(config.Data(source="stripes:2", mean=(0.5,) * 3, std=(0.25,) * 3))
