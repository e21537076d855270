"""Which blocks go: worked out by hand, and beside the plain way of one block after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.surgery.channels.groups import Group
from pipeline.training.steering.selection import NEAR, Block, Limits, Route, blocks_of


def route(sizes: list[tuple[str, float]], asked: float) -> Route:
    """A network of size 1, of which each block takes its share; blocks are classes 0, 1, ..."""
    shares = np.array([size for _, size in sizes])
    rest = 1 - float(shares.sum())
    blocks = [Block(group, np.array([i])) for i, (group, _) in enumerate(sizes)]
    return Route(blocks, np.ones(len(sizes), bool), lambda left: rest + float(shares[left].sum()), asked)


def gone(made: Route) -> list[int]:
    return [int(block.classes[0]) for block in made.whole()]


def test_fine_blocks_go_in_order_until_the_target_is_reached() -> None:
    assert gone(route([("a", 0.01)] * 90, 0.5)) == list(range(50))
    assert gone(route([("a", 0.01)] * 90, 1.0)) == []


def test_a_wide_block_goes_at_its_turn_where_it_does_not_pass_the_target() -> None:
    sizes = [("wide", 0.3), *[("fine", 0.05)] * 5]
    assert gone(route(sizes, 0.5)) == [0, 1, 2, 3, 4]
    assert gone(route(sizes, 0.8)) == [1, 2, 3, 4], "0.7 would pass 0.8"


def test_where_only_a_wide_block_is_left_it_goes_and_what_mattered_most_comes_back() -> None:
    """All fine ones leave 0.8, the wide one with them 0.5; without the last two of them 0.6."""
    assert gone(route([*[("fine", 0.05)] * 4, ("wide", 0.3)], 0.6)) == [0, 1, 4]
    two = [("fine", 0.05), ("other", 0.1), ("fine", 0.05), ("wide", 0.3)]
    assert gone(route(two, 0.55)) == [0, 1, 3], "one of 0.05 comes back"
    assert gone(route(two, 0.6)) == [1, 3], "with the 0.1 it would be 0.65: the other 0.05 comes back instead"


def test_what_cannot_be_reached_ends_as_near_as_it_can() -> None:
    assert gone(route([("a", 0.3)], 0.65)) == [0]
    assert gone(route([("a", 0.3)], 0.9)) == []
    assert gone(route([("a", 0.1)] * 2, 0.5)) == [0, 1], "a floor stays"


def test_a_waypoint_takes_the_first_of_the_whole_way() -> None:
    made = route([*[("fine", 0.05)] * 4, ("wide", 0.3)], 0.6)
    assert made.until(0.95).tolist() == [True, False, False, False, False]
    assert made.until(0.85).tolist() == [True, True, False, False, True], "2 and 3 are not on the way"
    assert made.until(1.0).tolist() == [False] * 5


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.005, 0.08)), min_size=1, max_size=12), st.floats(0.05, 0.98)
)
def test_groups_lose_their_least_and_the_plain_way_is_never_nearer(
    sizes: list[tuple[str, float]], asked: float
) -> None:
    made = route(sizes, asked)
    mine = gone(made)
    assert mine == sorted(set(mine))
    for name in "abc":
        members = [i for i, (group, _) in enumerate(sizes) if group == name]
        chosen = [i for i in mine if sizes[i][0] == name]
        assert chosen == members[: len(chosen)]
    plain: list[int] = []
    stuck: set[str] = set()
    size = 1.0
    for i, (group, share) in enumerate(sizes):
        if size <= (1 + NEAR) * asked:
            break
        if group in stuck or size - share < (1 - NEAR) * asked:
            stuck.add(group)
            continue
        plain.append(i)
        size -= share
    found = 1 - sum(sizes[i][1] for i in mine)
    assert abs(found - asked) <= abs(size - asked) + 1e-9
    if size <= (1 + NEAR) * asked:
        assert found == pytest.approx(size)


def test_rows_that_keep_equal_numbers_lose_one_class_each_at_once() -> None:
    """Two heads of three, and two classes beside them; the least of each head go together, and one of each stays."""
    rows = np.array([[0, 1, 2], [3, 4, 5]])
    group = Group("attention", ("attention",), np.arange(8), (rows,))
    matters = np.array([3.0, 1.0, 9.0, 2.0, 8.0, 7.0, 0.5, 6.5])
    limits = Limits({"attention": 8}, 0.1)
    blocks = blocks_of([group], np.ones(8, bool), matters, np.ones(8), limits)
    assert [block.classes.tolist() for block in blocks] == [[6], [1, 3], [0, 5], [7]]
    held = blocks_of([group], np.arange(8) != 1, matters, np.ones(8), limits)
    assert [block.classes.tolist() for block in held] == [[6], [0, 3], [7], [2, 5]]
    aligned = blocks_of([group], np.ones(8, bool), matters, np.ones(8), Limits({"attention": 8}, 0.1, 2))
    assert [block.classes.tolist() for block in aligned] == [[6, 1, 3, 0, 5, 7]], "6 - 1 - 2 - 2 is odd, 7 less is even"
