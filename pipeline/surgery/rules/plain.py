"""Inputs, outputs, parameters read by name, and numbers: what carries or asks for shapes, not channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from pipeline.surgery.analysis import Analysis, Recast, Result, Rule, Value, leaves, unlabelled
from pipeline.surgery.labels import Field, Labels, LayoutError

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut


def placeholder(a: Analysis, node: fx.Node) -> Result:
    out = unlabelled(node.meta["val"])
    return out, lambda cut: out


def output(a: Analysis, node: fx.Node) -> Result:
    out = a.value(node.args)
    for labels in leaves(out):
        for f in labels.fields:
            a.freeze(node, "output of the network", f.ids)
    return out, lambda cut: cut.value(node.args)


def get_attr(a: Analysis, node: fx.Node) -> Result:
    val = node.meta["val"]
    if not isinstance(val, Tensor) or not val.is_floating_point() or not isinstance(a.tensor(str(node.target)), Tensor):
        out = unlabelled(val)
        return out, lambda cut: out
    labels = a.parameter(str(node.target))

    def recast(cut: Cut) -> Labels:
        fields, shape = [], list(labels.shape)
        for f in labels.fields:
            kept = cut.kept(f.ids)
            cut.slice(labels.parameter or "", f.axes[0], kept, f.ids)
            fields.append(Field(f.axes, f.ids[kept]))
            shape[f.axes[0]] = len(kept)
        return Labels(tuple(shape), tuple(fields), labels.parameter)

    return labels, recast


def number(a: Analysis, node: fx.Node) -> Result | None:
    """Arithmetic on sizes: nothing but plain values goes in."""
    val = node.meta["val"]
    if isinstance(val, Tensor):
        out = unlabelled(val)

        def recast(cut: Cut) -> Value:
            cut.freeze_numbers(node)
            return out

        return out, recast
    return val, _again(node)


def size(a: Analysis, node: fx.Node) -> Result:
    """`shape`, `size`, `dim`, `numel`, `dtype` ... of a tensor."""
    return node.meta["val"], _again(node)


def made(a: Analysis, node: fx.Node) -> Result | None:
    """new_zeros and its kin: a tensor of given sizes, of which it only takes dtype and device from another."""
    if leaves(a.value((node.args[1:], node.kwargs))):
        return None
    return number(a, node)


def attribute(a: Analysis, node: fx.Node) -> Result | None:
    if node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad"):
        return size(a, node)
    if node.args[1] in ("T", "mT"):
        return _transposed(a, node)
    return None


def _again(node: fx.Node) -> Recast:
    """Recompute a plain value from the sizes that remain."""

    def recast(cut: Cut) -> Value:
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
    from pipeline.surgery.rules import movement

    axes = list(range(len(node.meta["val"].shape)))
    return movement.moved_axes(a, node, axes[::-1] if node.args[1] == "T" else [*axes[:-2], *axes[:-3:-1]])


FUNCTIONS: dict[str, Rule] = {
    "size": size, "dim": size, "numel": size, "ndimension": size, "is_floating_point": size, "getattr": attribute,
    "element_size": size, "len": size, **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), made),
}  # fmt: skip
