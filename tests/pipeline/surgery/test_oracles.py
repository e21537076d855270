"""Networks that know what is left of them: shapes, parameters, MACs, function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.surgery import shrink
from tests.pipeline.surgery import nets, nets_shapes, nets_tokens
from tests.pipeline.surgery.laws import difference, macs, parameters, reasons, untouched
from tests.pipeline.surgery.nets import Oracle

ORACLES = (*nets.ALL, *nets_shapes.ALL, *nets_tokens.ALL)


def exact(oracle: Oracle) -> Oracle:
    """The network in float64: a folded constant is rounded to the bias it is added to."""
    return replace(oracle, model=oracle.model.double(), example=tuple(x.double() for x in oracle.example))


@pytest.mark.parametrize("make", ORACLES, ids=lambda make: str(make.__name__))
def test_what_is_left_is_what_was_worked_out_by_hand(make: Callable[[], Oracle]) -> None:
    oracle = exact(make())
    with untouched(oracle.model):
        compact = shrink(oracle.model, oracle.example)
    left = {name: tuple(tensor.shape) for name, tensor in compact.model.state_dict().items()}
    assert {name: left.get(name) for name in oracle.shapes} == oracle.shapes
    assert parameters(compact.model) == oracle.parameters == compact.certificate["parameters"]["after"]
    assert macs(compact.model, oracle.example) == oracle.macs
    assert difference(oracle.model, compact.model, oracle.example) < 1e-12
    assert reasons(compact.certificate) == set(oracle.frozen)
    assert {row["layer"] for row in compact.certificate["folded"]} == set(oracle.folded)
    assert compact.certificate["law"]["max_rel_diff"] < 1e-12


@pytest.mark.parametrize("make", ORACLES, ids=lambda make: str(make.__name__))
def test_the_certificate_counts_what_the_plan_lists(make: Callable[[], Oracle]) -> None:
    oracle = make()
    compact = shrink(oracle.model, oracle.example, verify=False)
    rows = compact.certificate["layers"]
    assert {row["layer"]: row["before"] for row in rows if row["after"] < row["before"]} == {
        name.removesuffix(".weight"): width for name, width in compact.plan.widths.items()
    }
    assert all(row["before"] - row["dead"] <= row["after"] <= row["before"] for row in rows)
    removed = sum(row["before"] - row["after"] for row in rows)
    assert compact.certificate["evidence"] == {"by_proof": removed, "by_measurement": 0}
    assert compact.certificate["law"] is None
