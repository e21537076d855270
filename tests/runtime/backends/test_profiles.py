"""Which optimisation profile takes which shapes."""

from __future__ import annotations

import pytest

from runtime.backends.profiles import Limits, bounds, choose_profile, shapes_text
from runtime.errors import UserError

ONE = {"x": Limits((1, 3), (1, 3), (1, 3))}
SMALL = {"x": Limits((1, 3), (4, 3), (8, 3))}
LARGE = {"x": Limits((1, 3), (64, 3), (256, 3))}


@pytest.mark.parametrize(("batch", "index"), [(1, 0), (2, 1), (8, 1), (9, 2), (256, 2)])
def test_the_one_tuned_nearest(batch: int, index: int) -> None:
    assert choose_profile("net", [ONE, SMALL, LARGE], {"x": (batch, 3)}) == index
    assert choose_profile("net", [LARGE], {"x": (batch, 3)}) == 0
    assert choose_profile("net", [LARGE, SMALL, ONE], {"x": (batch, 3)}) == 2 - index


def test_every_input_must_fit() -> None:
    both = {"x": Limits((1,), (2,), (4,)), "y": Limits((1,), (1,), (2,))}
    other = {"x": Limits((1,), (8,), (8,)), "y": Limits((3,), (8,), (8,))}
    assert choose_profile("net", [both, other], {"x": (4,), "y": (2,)}) == 0
    assert choose_profile("net", [both, other], {"x": (4,), "y": (3,)}) == 1
    with pytest.raises(UserError, match=r"fed the shapes x \(5,\), y \(1,\)"):
        choose_profile("net", [both, other], {"x": (5,), "y": (1,)})


def test_none_lists_them() -> None:
    with pytest.raises(UserError) as caught:
        choose_profile("net", [ONE, SMALL], {"x": (9, 3)})
    assert "(0: x (1, 3) to (1, 3); 1: x (1, 3) to (8, 3))" in caught.value.expected
    assert shapes_text(SMALL) == "x (1, 3) to (8, 3)"
    assert bounds([SMALL, LARGE], "x") == ((1, 3), (256, 3))
