"""Inputs, outputs, parameters read by name, and numbers: what carries or asks for shapes, not channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from pipeline.surgery.channels.analysis import (
    OUTPUT,
    Analysis,
    CutView,
    Recast,
    Result,
    Rule,
    Value,
    leaves,
    opaque,
    unlabelled,
)  # fmt: skip
from pipeline.surgery.channels.labels import Field, Labels, LayoutError


def placeholder(a: Analysis, node: fx.Node) -> Result:
    out = unlabelled(node.meta["val"])
    return out, lambda cut: out


def output(a: Analysis, node: fx.Node) -> Result:
    out = a.value(node.args)
    for labels in leaves(out):
        for f in labels.fields:
            a.freeze(node, OUTPUT, f.ids)
    return out, lambda cut: cut.value(node.args)


def get_attr(a: Analysis, node: fx.Node) -> Result:
    val = node.meta["val"]
    if not isinstance(val, Tensor) or not val.is_floating_point() or not isinstance(a.tensor(str(node.target)), Tensor):
        out = unlabelled(val)
        return out, lambda cut: out
    labels = a.parameter(str(node.target))

    def recast(cut: CutView) -> Labels:
        fields, shape = [], list(labels.shape)
        for f in labels.fields:
            staying = cut.remaining(f.ids)
            cut.slice(labels.parameter or "", f.axes[0], staying, f.ids)
            fields.append(Field(f.axes, f.ids[staying]))
            shape[f.axes[0]] = len(staying)
        return Labels(tuple(shape), tuple(fields), labels.parameter)

    return labels, recast


def number(a: Analysis, node: fx.Node) -> Result | None:
    """Arithmetic on sizes: nothing but plain values goes in."""
    val = node.meta["val"]
    if isinstance(val, Tensor):
        out = unlabelled(val)

        def recast(cut: CutView) -> Value:
            cut.freeze_numbers(node)
            return out

        return out, recast
    return val, _again(node)


def size(a: Analysis, node: fx.Node) -> Result:
    """`shape`, `size`, `dim`, `numel`, `dtype` ... of a tensor."""
    return node.meta["val"], _again(node)


def factory(a: Analysis, node: fx.Node) -> Result | None:
    """new_zeros and its kin: a tensor of given sizes, of which it only takes dtype and device from another."""
    if any(labels.fields for labels in leaves(a.value((node.args[1:], node.kwargs)))):
        return None
    return number(a, node)


def answer(a: Analysis, node: fx.Node) -> Result:
    """A container of a library's own class that the network answers with."""
    return opaque(a, node, OUTPUT)


def demanded(a: Analysis, node: fx.Node) -> Result:
    """An input whose size the network insists on."""
    return a.value(node.args[0]), lambda cut: cut.value(node.args[0])


def attribute(a: Analysis, node: fx.Node) -> Result | None:
    if node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad"):
        return size(a, node)
    val = node.args[0].meta["val"] if isinstance(node.args[0], fx.Node) else None
    if isinstance(val, tuple) and not isinstance(val, torch.Size):  # a named one, as torch.max returns
        place = [v is getattr(val, str(node.args[1])) for v in val].index(True)
        return a.value(node.args[0])[place], lambda cut: cut.value(node.args[0])[place]
    if node.args[1] in ("T", "mT"):
        return _transposed(a, node)
    return None


def _again(node: fx.Node) -> Recast:
    """Recompute a plain value from the sizes that remain."""

    def recast(cut: CutView) -> Value:
        args, kwargs = cut.value(node.args), cut.value(node.kwargs)
        if node.op == "call_method":
            return _of_labels(args[0], str(node.target), *args[1:], val=node.meta["val"])
        if getattr(node.target, "__name__", "") == "getattr" and isinstance(args[0], Labels):
            return _of_labels(args[0], args[1], val=node.meta["val"])
        try:
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except ArithmeticError as error:  # a width smaller than what the code divides it by
            raise LayoutError(f"{node.name} cannot be computed ({error})", cut.widths(node)) from None

    return recast


def _of_labels(x: Any, name: str, *args: Any, val: Any) -> Value:
    if not isinstance(x, Labels):
        return getattr(torch.Size(x) if isinstance(x, tuple) else x, name)(*args)
    if name in ("shape", "size"):
        return x.shape[args[0]] if args else x.shape
    if name == "numel":
        from math import prod

        return prod(x.shape)
    return val


def _transposed(a: Analysis, node: fx.Node) -> Result | None:
    from pipeline.surgery.rules.moves import permute as movement

    axes = list(range(len(node.meta["val"].shape)))
    return movement.moved_axes(a, node, axes[::-1] if node.args[1] == "T" else [*axes[:-2], *axes[:-3:-1]])


FUNCTIONS: dict[str, Rule] = {
    "size": size, "dim": size, "numel": size, "ndimension": size, "is_floating_point": size, "getattr": attribute,
    "element_size": size, "demand_size": demanded,
    "len": size, **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), factory),
}  # fmt: skip
