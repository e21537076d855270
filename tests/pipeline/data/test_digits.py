"""The embedded digits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.data import fingerprint, load
from pipeline.data.arrays import ArraySplit
from tests.pipeline.data.sets import whole


def test_digits_are_the_real_scans_in_a_fixed_order() -> None:
    data = load(config.Data())
    assert (len(data.train), len(data.test), data.input_shape) == (1400, 397, (1, 8, 8))
    assert data.names == tuple("0123456789")
    assert data.scale == 1.0
    assert isinstance(data.train, ArraySplit)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    assert torch.equal(data.train.images[7, 0], torch.tensor(bunch.images[order[7]], dtype=torch.float32))
    assert data.test.labels[3] == bunch.target[order[1403]]
    assert float(data.train.images.max()) == 16.0


def test_digits_are_normalised_by_the_training_split() -> None:
    data = load(config.Data())
    x, y = whole(data)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    assert isinstance(data.train, ArraySplit)
    assert data.mean[0] == pytest.approx(data.train.images.double().mean().item(), rel=1e-12)


def test_fingerprint_of_digits_needs_neither_torch_nor_sklearn() -> None:
    code = (
        "import sys; from pipeline import config; from pipeline.data import fingerprint;"
        "print(fingerprint(config.Data()), 'torch' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [fingerprint(config.Data()), "False", "False"]
    assert load(config.Data()).fingerprint == fingerprint(config.Data())
