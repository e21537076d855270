"""Shares by work, and which of them pass for a precision."""

from __future__ import annotations

import pytest

from export.engines.proof import Precision, Product, Proof, check, document, prove
from runtime.errors import UserError


def proof(precision: Precision, *products: tuple[str | None, int]) -> Proof:
    made = [Product(f"layer{number}", kind, macs) for number, (kind, macs) in enumerate(products)]
    return prove("engine", precision, made, reformats=2, casts=1, quantizes=0)


def test_layers_count_by_their_work() -> None:
    told = proof("fp16", ("fp16", 900), ("fp32", 50), ("fp32", 50), (None, 10))
    assert (told.share, told.products, told.unknown) == (0.9, {"fp16": 1, "fp32": 2}, 1)
    assert told.others == ("layer1", "layer2")
    assert (told.reformats, told.casts) == (2, 1)
    assert document(told)["others"] == ["layer1", "layer2"]


def test_without_all_the_work_they_are_counted() -> None:
    assert proof("int8", ("int8", 0), ("fp32", 1000)).share == 0.5
    assert proof("int8", ("int8", 0), ("int8", 0), ("fp32", 1000)).share == 0.666667


@pytest.mark.parametrize(
    ("precision", "products", "words"),
    [
        ("fp16", [("fp16", 49), ("fp32", 51)], "1 in float32, 51% of the multiply-accumulates, first 'layer1'"),
        ("int8", [("fp16", 60), ("fp32", 20), ("int8", 20)], "1 in float16 and 1 in float32, 80%"),
        ("fp32", [("fp32", 999), ("fp16", 1)], "1 in float16, 0% .* all of them in float32"),
        ("bf16", [("fp16", 10)], "at least 50% of the multiply-accumulates in bfloat16"),
    ],
)
def test_another_precision_in_the_dominant_layers_fails(
    precision: Precision, products: list[tuple[str | None, int]], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        check(proof(precision, *products), "x.onnx")
    assert "\n" not in str(caught.value)


def test_sensitive_layers_may_stay_higher() -> None:
    for precision in ("fp16", "bf16", "int8"):
        told = proof(precision, (precision, 60), ("fp32", 40))
        check(told, "x.onnx")
        assert told.share == 0.6
    check(proof("fp32", ("fp32", 5)), "x.onnx")
    nothing = proof("fp16")
    check(nothing, "a network without products")
    assert nothing.share == 1.0
