"""How many nodes of a graph compute in a lower precision."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto

from export.onnx.rounded import LOW, value_types
from export.precision.int8 import WEIGHTED
from runtime.errors import UserError

Precision = Literal["fp16", "bf16", "int8"]


def low_nodes(model: onnx.ModelProto, precision: Precision, kinds: Collection[str] | None = None) -> list[str]:
    """Nodes that compute in the precision: by the type of their output, or by reading a dequantised activation."""
    if precision == "int8":
        dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        low = [n for n in model.graph.node if n.op_type != "DequantizeLinear" and not dequantised.isdisjoint(n.input)]
    else:
        types = value_types(model)
        skipped = ("Cast", "Constant")
        low = [n for n in model.graph.node if n.op_type not in skipped and types.get(n.output[0]) in LOW]
    return [node.name for node in low if kinds is None or node.op_type in kinds]


def counts(model: onnx.ModelProto, precision: Precision) -> tuple[int, int, int, int]:
    """Nodes in the precision, nodes in fp32, layers in the precision, conversions."""
    types, low = value_types(model), set(low_nodes(model, precision))
    skipped = ("Cast", "Constant", "QuantizeLinear", "DequantizeLinear")
    work = [n for n in model.graph.node if n.op_type not in skipped and n.name not in low]
    full = sum(types.get(node.output[0]) == TensorProto.FLOAT for node in work)
    conversion = "QuantizeLinear" if precision == "int8" else "Cast"
    conversions = sum(node.op_type == conversion for node in model.graph.node)
    return len(low), full, len(low_nodes(model, precision, WEIGHTED)), conversions


def demand_layers(model: onnx.ModelProto, precision: Precision, source: Path) -> None:
    """UserError where no layer of `model`, which was made of `source`, computes in the precision."""
    if not low_nodes(model, precision, WEIGHTED):
        raise UserError(
            f"no convolution or matrix product of {source} ended in {precision}",
            f"at least one of {', '.join(WEIGHTED)}", f"leave {precision} out for this network",
        )  # fmt: skip
