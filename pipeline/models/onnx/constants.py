"""What an ONNX graph computes before any input comes: constants, and sizes of its tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from pipeline.models.onnx.convert import ALT, MAX_ELEMENTS, VAL, Array, Call, UnsupportedError, Value
from pipeline.models.onnx.functions import Reference

INT32, INT64 = 6, 7  # onnx.TensorProto.DataType
# Their results are no larger than their inputs together, or bounded by `_bound`.
FOLDED = frozenset(
    "Add Sub Mul Div Mod Pow Neg Abs Sqrt Reciprocal Exp Log Floor Ceil Round Sign Min Max Sum Cast Identity Reshape "
    "Transpose Squeeze Unsqueeze Flatten Concat Split Slice Gather Equal Greater Less GreaterOrEqual LessOrEqual Where "
    "Not And Or Xor ConstantOfShape Range Expand Tile Shape Size ReduceProd ReduceSum ReduceMean ReduceMax ReduceMin "
    "ReduceL2 Sin Cos Tanh Sigmoid Relu Clip Erf MatMul Gemm Trilu CumSum OneHot Pad GatherElements GatherND "
    "ScatterND Softmax BatchNormalization Dropout CastLike EyeLike".split()
)
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.floordiv, "Mod": operator.mod,
    "Max": max, "Min": min,
}  # fmt: skip
JOINED = frozenset((*ARITHMETIC, "Equal", "Where", "Concat"))
MOVED = frozenset("Cast Identity Shape Gather Unsqueeze Reshape Squeeze Slice ReduceProd Split".split())


def constant_node(call: Call) -> Array:
    """Constant: whichever attribute holds it."""
    import onnx

    for name, value in call.attributes.items():
        if name == "value":
            return onnx.numpy_helper.to_array(value)
        if name in ("value_float", "value_floats"):
            return np.array(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.array(value, np.int64)
    raise ValueError("a Constant of strings or sparse tensors")


def folded(call: Call) -> list[Value] | None:
    """The node's outputs where all its inputs are constants; None where they are not."""
    node = call.node
    if node.op_type == "Constant":
        return [constant_node(call)]
    inputs = [call.value(i) for i in range(len(call)) if call.has(i)]
    if not inputs or any(isinstance(x, fx.Node) for x in inputs):
        return None
    if any(isinstance(x, np.ndarray) and x.dtype == object for x in inputs):
        return None
    if node.op_type not in FOLDED or node.domain not in ("", "ai.onnx"):
        raise UnsupportedError("it computes with constants alone, which is not followed")
    _bound(call)
    constants = {i: call.c.values[name] for i, name in enumerate(node.input) if name}
    with np.errstate(all="ignore"):
        out = Reference(node, call.opset, {}).arrays({f"x{i}": x for i, x in constants.items()})
    if any(isinstance(x, np.ndarray) and x.size > MAX_ELEMENTS for x in out):
        raise ValueError("its result is too large")
    return list(out)


def _bound(call: Call) -> None:
    """Raises ValueError before an operator makes more than there is room for."""
    op, sizes = call.node.op_type, [float(call.constant(i).size) for i in range(len(call)) if call.has(i)]  # type: ignore[union-attr]
    count = sum(sizes)
    if op in ("ConstantOfShape", "Expand"):
        shape = call.fixed_ints(len(call) - 1)
        count = float(np.prod([float(abs(n)) for n in shape])) * (max(sizes[0], 1.0) if op == "Expand" else 1.0)
    elif op == "Tile":
        count = sizes[0] * float(np.prod([float(abs(n)) for n in call.fixed_ints(1)]))
    elif op == "Range":
        start, stop, step = (float(call.constant(i).reshape(-1)[0]) for i in range(3))  # type: ignore[union-attr]
        count = abs(stop - start) / abs(step) if step else float("inf")
    elif op == "Pad":
        pads = call.fixed_ints(1) if call.has(1) else list(call.attr("pads", []))
        ends = zip(call.shape(0), pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True)
        count = float(np.prod([float(n + abs(a) + abs(b)) for n, a, b in ends]))
    elif op == "OneHot":
        count = sizes[0] * float(call.fixed_ints(1)[0])
    elif op in ("MatMul", "Gemm"):
        count = sizes[0] * sizes[1] / max(1.0, float((call.shape(0) or (1,))[-1]))
    elif op in ("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Where", "Min", "Max", "Sum", "Equal", "Greater", "Less"):
        count = float(np.prod([float(n) for n in np.broadcast_shapes(*map(call.shape, range(len(call))))]))
    if not count <= MAX_ELEMENTS:
        raise ValueError(f"its result would have {count:.3g} elements")


def shape_of(call: Call) -> list[Value]:
    """Shape, with start and end from operator set 15 on."""
    value = call.value(0)
    sizes = call.c.sizes(value) if isinstance(value, fx.Node) else np.array(value.shape, object)
    return [_tidy(sizes[slice(call.attr("start", 0), call.attr("end"))])]


def size_of(call: Call) -> list[Value]:
    total: Any = 1
    for n in call.c.sizes(call.tensor(0)):
        total = calculated(call, operator.mul, total, n)
    return [_tidy(np.array(total, object))]


def calculated(call: Call, function: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """`function` of two sizes: a number, or a node where one of them varies."""
    if not isinstance(a, fx.Node) and not isinstance(b, fx.Node):
        return function(a, b)
    node = call.c.emit(function, a, b)
    return node.meta[VAL] if node.meta[VAL] == node.meta[ALT] and function is operator.floordiv else node


def of_sizes(call: Call) -> list[Value] | None:
    """Arithmetic on sizes that vary; None where the node is something else."""
    inputs = [call.value(i) for i in range(len(call)) if call.has(i)]
    varying = [isinstance(x, np.ndarray) and x.dtype == object for x in inputs]
    op = call.node.op_type
    if (
        not any(varying)
        or any(isinstance(x, fx.Node) for x in inputs)
        or not (op in JOINED or (op in MOVED and varying[0]))
    ):
        return None
    arrays = [np.asarray(x, object) for x in inputs]
    if op in ARITHMETIC and len(arrays) == 2:
        function = ARITHMETIC[op]
        sizes = np.frompyfunc(lambda a, b: calculated(call, function, a, b), 2, 1)(*arrays)
        return [_tidy(np.asarray(sizes, object))]
    if op == "Cast" and call.attr("to") not in (INT32, INT64):
        raise UnsupportedError("it makes another type of sizes that vary")
    if op in ("Identity", "Cast"):
        return [arrays[0]]
    if op == "Equal":
        return [np.frompyfunc(_equal, 2, 1)(*arrays).astype(bool)]
    if op == "Where":
        return [_tidy(np.where(arrays[0].astype(bool), arrays[1], arrays[2]))]
    if op == "Concat":
        return [_tidy(np.concatenate([np.atleast_1d(a) for a in arrays]))]
    return _moved(call, op, arrays[0])


def _moved(call: Call, op: str, x: Array) -> list[Value]:
    if op == "Shape":
        return [np.array(x.shape, np.int64)]
    if op == "Gather":
        return [_tidy(np.asarray(x.take(call.fixed_ints(1) if call.shape(1) else call.fixed_ints(1)[0], 0), object))]
    if op in ("Unsqueeze", "Reshape"):
        return [x.reshape(-1)]
    if op == "Squeeze":
        return [x.reshape(()) if x.size == 1 else x]
    if op == "Slice":
        ends = [call.fixed_ints(i) if call.has(i) else list(call.attr(n)) for i, n in ((1, "starts"), (2, "ends"))]
        return [_tidy(x[ends[0][0] : ends[1][0] : call.fixed_ints(4)[0] if call.has(4) else 1])]
    if op == "ReduceProd":
        total: Any = 1
        for n in x.reshape(-1):
            total = calculated(call, operator.mul, total, n)
        return [_tidy(np.array([total] if call.attr("keepdims", 1) else total, object))]
    counts = call.fixed_ints(1) if call.has(1) else call.attr("split", [1] * len(call.node.output))
    return [_tidy(part) for part in np.split(x, np.cumsum(counts)[:-1])]


def _equal(a: Any, b: Any) -> bool:
    values = [{n.meta[VAL], n.meta[ALT]} if isinstance(n, fx.Node) else {n} for n in (a, b)]
    if values[0] == values[1] and len(values[0]) > 1:
        return a is b
    return values[0] == values[1]


def _tidy(sizes: Array) -> Array:
    """Sizes of which none varies are plain numbers."""
    if any(isinstance(n, fx.Node) for n in sizes.reshape(-1)):
        return sizes
    return sizes.astype(np.int64)
