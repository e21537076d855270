"""Which layers of an engine compute in which type, and whether that is the precision that was asked for.

Read from the engine itself where a GPU can load it (`inspector.py`), else from the strongly typed network that the
builder got (`trt_network.py`): TensorRT may not change the types of that. Layers are weighed by their
multiply-accumulates for one image where all of them are known, else counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.errors import UserError

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Source = Literal["engine", "network"]
NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "float8", "int4": "int4"}
DOMINANT = 0.5  # of the multiply-accumulates must be in the precision asked for; fp32 must hold for all of them


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product; `precision` is None where TensorRT does not say."""

    name: str
    precision: str | None
    macs: int


@dataclass(frozen=True)
class Proof:
    """`products` by precision, `share` the part of the multiply-accumulates in the precision asked for (0 to 1).

    `others` names up to 20 products in another precision, the largest first. Reformats change only the layout in
    memory, casts the type, quantizes go to or from int8; all three cost time and compute nothing. `unknown` counts
    products whose type TensorRT did not tell.
    """

    source: Source
    precision: Precision
    share: float
    products: dict[str, int]
    others: tuple[str, ...]
    unknown: int
    reformats: int
    casts: int
    quantizes: int


def prove(
    source: Source, precision: Precision, products: Sequence[Product], *, reformats: int, casts: int, quantizes: int
) -> Proof:
    """Counts; judges nothing."""
    typed = [product for product in products if product.precision is not None]
    weights = Counter[str]()
    weighed = all(product.macs > 0 for product in typed)  # one without would count for nothing beside the others
    for product in typed:
        weights[str(product.precision)] += product.macs if weighed else 1
    total = weights.total()
    others = sorted((p for p in typed if p.precision != precision), key=lambda p: (-p.macs, p.name))
    return Proof(
        source=source,
        precision=precision,
        share=round(weights[precision] / total, 6) if total else 1.0,
        products=dict(sorted(Counter(str(product.precision) for product in typed).items())),
        others=tuple(product.name[:200] for product in others[:20]),
        unknown=len(products) - len(typed),
        reformats=reformats,
        casts=casts,
        quantizes=quantizes,
    )


def check(proof: Proof, name: str) -> None:
    """`UserError` where the dominant products are in another precision than the one asked for; `name` is the file's.

    For fp32 none may be lower; fp16, bf16 and int8 may leave sensitive layers in a higher one, up to half of the work.
    """
    expected = NAMES[proof.precision]
    enough = proof.share == 1.0 if proof.precision == "fp32" else proof.share >= DOMINANT
    if enough:
        return
    wrong = {kind: count for kind, count in proof.products.items() if kind != proof.precision}
    types = " and ".join(f"{count} in {NAMES.get(kind, kind)}" for kind, count in sorted(wrong.items()))
    limit = "all of them" if proof.precision == "fp32" else f"at least {DOMINANT:.0%} of the multiply-accumulates"
    raise UserError(
        f"{name} has convolutions or matrix products of another type: {types}, "
        f"{1 - proof.share:.0%} of the multiply-accumulates, first {proof.others[0]!r}",
        f"{limit} in {expected} for an engine in {proof.precision}",
        "give the graph that was written for this precision",
    )


def document(proof: Proof) -> dict[str, Any]:
    """As JSON."""
    return {**vars(proof), "others": list(proof.others)}
