"""The part `engines[].proof` of report.json: in which type an engine's layers compute, and how that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from . import numbers
from .parts import Part

Json = Mapping[str, Any]


class EngineProof(Part):
    """`products`: convolutions and matrix products by the precision they compute in."""

    source: Literal["engine", "network"] = Field(
        description="engine: TensorRT's inspector; network: the strongly typed network that the builder got."
    )
    share: float = Field(description="Of the multiply-accumulates, in the precision asked for.")
    products: dict[str, int]
    others: list[str] = Field(description="Up to 20 products in another precision, the largest first.")
    unknown: int
    reformats: int
    casts: int
    quantizes: int


def with_proofs(engines: Iterable[Json], built: Json | None) -> list[dict[str, Any]]:
    """Each entry with the `proof` of its engine in stage 60's result `built`, null where none was built."""

    def key(entry: Json) -> tuple[Any, ...]:
        return entry.get("model"), entry.get("precision"), entry.get("target")

    proofs = {key(entry): entry["engine"].get("proof") for entry in (built or {}).get("engines", ()) if entry["engine"]}
    return [{**entry, "proof": proofs.get(key(entry))} for entry in engines]


def proven(proof: EngineProof | None) -> str:
    """`54 fp16; 2 casts; from the network`."""
    if proof is None:
        return ""
    layers = ", ".join(f"{count} {kind}" for kind, count in proof.products.items())
    share = f" ({numbers.percent(proof.share, 1)} of the work)" if proof.share < 1 else ""
    counted = {"casts": proof.casts, "quantisations": proof.quantizes, "reformats": proof.reformats}
    if proof.source == "network":
        del counted["reformats"]  # the builder adds those later
    told = [f"{count} {name}" for name, count in counted.items() if count]
    unknown = [f"{proof.unknown} not told"] if proof.unknown else []
    return "; ".join([f"{layers}{share}", *unknown, *told, f"from the {proof.source}"])
