"""The law on networks nobody thought of: hypothesis writes them, and shrinks one that breaks to its smallest form."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.surgery import shrink
from pipeline.surgery.watch import anatomy
from tests.pipeline.surgery.graphs import grow
from tests.pipeline.surgery.laws import difference, reasons, untouched

QUICK = settings(
    max_examples=300, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


def alive_in_canary(program: Any) -> int:
    """Channels of the last hidden layer that nothing makes constant by itself."""
    conv, norm = program.parts["canary"], program.parts["canary_norm"]
    return int(((norm.weight != 0) & conv.weight.flatten(1).ne(0).any(1)).sum())


@QUICK
@given(st.randoms(use_true_random=False))
def test_a_random_network_keeps_its_function_and_loses_what_is_dead(rng: Random) -> None:
    model, example = grow(rng)
    with untouched(model):
        compact = shrink(model, example)
    assert difference(model, compact.model, example) < 1e-9
    left = compact.model.get_submodule("parts.canary").weight
    assert 1 <= len(left) <= max(1, alive_in_canary(model))  # type: ignore[arg-type]
    assert not [r for r in reasons(compact.certificate) if r.startswith("no rule")]
    counts = compact.certificate["channels"]
    assert counts["before"] >= counts["after"] >= counts["before"] - counts["dead"]


@settings(QUICK, max_examples=100)
@given(st.randoms(use_true_random=False))
def test_measured_masks_of_any_kind_hold_the_law_in_every_layout(rng: Random) -> None:
    """`shrink` itself holds the law: the compact network against the network with the removed channels held."""
    model, example = grow(rng)
    watch = anatomy(model, example).watch
    dead = {name: torch.tensor([rng.random() < 0.4 for _ in range(n)]) for name, n in watch.items()}
    align, residual = rng.choice([1, 1, 4]), rng.choice(["tied", "untied"])
    with untouched(model):
        compact = shrink(model, example, dead, align=align, residual=residual)  # type: ignore[arg-type]
    law = compact.certificate["law"]
    assert law["max_rel_diff"] <= law["tolerance"] == 1e-9
    again = shrink(compact.model, example)
    assert difference(compact.model, again.model, example) < 1e-9
