"""Random inputs of a session's own shapes. (Feeds that do not fit are in the conformance suite.)"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from runtime.backends import TensorSpec
from runtime.backends.feeds import random_feeds
from runtime.errors import UserError


@dataclass
class Inputs:
    """As much of a session as random_feeds looks at."""

    inputs: tuple[TensorSpec, ...]
    name: str = "net"


def test_shapes_types_and_ranges() -> None:
    specs = (
        TensorSpec("image", (None, 3, 32, 32), "uint8"),
        TensorSpec("fixed", (2, 500), "float16"),
        TensorSpec("mask", (None, 1000), "int64"),
    )
    feeds = random_feeds(Inputs(specs), 4)  # type: ignore[arg-type]
    assert {name: (array.shape, str(array.dtype)) for name, array in feeds.items()} == {
        "image": ((4, 3, 32, 32), "uint8"),
        "fixed": ((2, 500), "float16"),
        "mask": ((4, 1000), "int64"),
    }
    assert feeds["image"].max() > 250
    assert set(np.unique(feeds["mask"])) == {0, 1}
    assert abs(float(feeds["fixed"].astype(np.float64).std()) - 1) < 0.1


def test_the_seed_decides() -> None:
    session = Inputs((TensorSpec("x", (None, 8), "float32"),))
    first, again, other = (random_feeds(session, 2, seed)["x"] for seed in (1, 1, 2))  # type: ignore[arg-type]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_dynamic_axis_that_is_not_the_batch() -> None:
    with pytest.raises(UserError) as caught:
        random_feeds(Inputs((TensorSpec("x", (None, 3, None), "float32"),)), 2)  # type: ignore[arg-type]
    assert "(batch, 3, axis2)" in caught.value.found
    assert "every axis but the first" in caught.value.expected
