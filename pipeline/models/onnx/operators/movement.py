"""Operators that move elements: shapes, order, parts, padding, other sizes of images."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional

from pipeline.models.onnx.constants import calculated, shape_of, size_of
from pipeline.models.onnx.convert import ALT, VAL, Array, Call, UnsupportedError, Value
from pipeline.models.onnx.functions import arange, full, sides


def shape(call: Call) -> list[Value]:
    return shape_of(call)


def size(call: Call) -> list[Value]:
    return size_of(call)


def reshape(call: Call) -> Value:
    """0 copies a size; a graph made for one batch size is read as one for any."""
    x, target = call.tensor(0), list(call.ints(1))
    own = call.c.sizes(x)
    if not call.attr("allowzero", 0):
        target = [own[i] if n == 0 and not isinstance(n, fx.Node) else n for i, n in enumerate(target)]
    return call.c.emit(torch.reshape, x, _any_batch(call, x, own, target))


def _any_batch(call: Call, x: fx.Node, own: Any, target: list[Any]) -> list[Any]:
    """The sizes asked for, where those of one batch size were written down."""
    plain = all(isinstance(n, int) for n in target)
    if call.c.batch is None or not plain or not target or not len(own) or not isinstance(own[0], fx.Node):
        return target
    here, there, free = math.prod(x.meta[VAL].shape), math.prod(x.meta[ALT].shape), target.count(-1)
    if free == 0 and (math.prod(target) != here or math.prod(target) != there):
        return [-1, *target[1:]]
    if free == 1 and target[0] == call.c.batch:
        return [own[0], *target[1:]]
    return target


def flatten(call: Call) -> Value:
    x = call.tensor(0)
    rank = x.meta[VAL].dim()
    axis = call.attr("axis", 1)
    axis = axis + rank if axis < 0 else axis
    if axis == 1 and rank > 1:
        return call.c.emit(torch.flatten, x, 1)
    rows: Any = 1
    for n in call.c.sizes(x)[:axis]:
        rows = calculated(call, operator.mul, rows, n)
    return call.c.emit(torch.reshape, x, [rows, -1])


def transpose(call: Call) -> Value:
    x = call.tensor(0)
    order = list(call.attr("perm", list(range(x.meta[VAL].dim()))[::-1]))
    return call.c.emit(torch.permute, x, order)


def _axes(call: Call, rank: int) -> list[int]:
    axes = call.fixed_ints(1) if call.has(1) else list(call.attr("axes", []))
    return [a + rank if a < 0 else a for a in axes]


def squeeze(call: Call) -> Value:
    x = call.tensor(0)
    shape = x.meta[VAL].shape
    axes = _axes(call, len(shape)) or [i for i, n in enumerate(shape) if n == 1]
    for axis in sorted(axes, reverse=True):
        if x.meta[VAL].shape[axis] != 1:
            raise ValueError(f"it takes out axis {axis} of {list(shape)}")
        x = call.c.emit(torch.squeeze, x, axis)
    return x


def unsqueeze(call: Call) -> Value:
    x = call.tensor(0)
    axes = call.fixed_ints(1) if call.has(1) else list(call.attr("axes", []))
    rank = x.meta[VAL].dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = call.c.emit(torch.unsqueeze, x, axis)
    return x


def concat(call: Call) -> Value:
    tensors = [call.tensor(i) for i in range(len(call))]
    rank = tensors[0].meta[VAL].dim()
    tensors = [t for t in tensors if t.meta[VAL].numel()] or tensors
    return call.c.emit(torch.cat, tensors, call.attr("axis") % rank)


def split(call: Call) -> list[Value]:
    x, axis = call.tensor(0), call.attr("axis", 0)
    size, count = x.meta[VAL].shape[axis], len(call.node.output)
    sizes = call.fixed_ints(1) if call.has(1) else list(call.attr("split", []))
    if not sizes:
        each = -(-size // count)
        sizes = [min(each, size - i * each) for i in range(count)]
    parts = call.c.emit(torch.split, x, sizes, axis % x.meta[VAL].dim())
    return [call.c.emit(operator.getitem, parts, i) for i in range(count)]


def slice_(call: Call) -> Value:
    """Starts, ends, axes and steps: attributes before operator set 10."""
    x = call.tensor(0)
    rank = x.meta[VAL].dim()
    if len(call) > 1:
        starts, ends = call.ints(1), call.ints(2)
        axes = call.fixed_ints(3) if call.has(3) else list(range(len(starts)))
        steps = call.fixed_ints(4) if call.has(4) else [1] * len(starts)
    else:
        starts, ends = list(call.attr("starts")), list(call.attr("ends"))
        axes, steps = list(call.attr("axes", range(len(starts)))), [1] * len(starts)
    index = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise UnsupportedError("a slice that goes backwards")
        size = x.meta[VAL].shape[axis]
        whole = isinstance(end, int) and (end >= 1 << 31 or (end >= size and call.c.sizes(x)[axis] == size))
        index[axis % rank] = slice(start or None, None if whole else end, None if step == 1 else step)
    return call.c.emit(operator.getitem, x, tuple(index))


def gather(call: Call) -> Value:
    """One constant index takes an entry out, several make an axis; numbers that come in take rows of a table."""
    axis, index = call.attr("axis", 0), call.constant(1)
    x = call.tensor(0)
    axis %= x.meta[VAL].dim()
    if index is not None and index.ndim == 0:
        return call.c.emit(torch.select, x, axis, int(index))
    if index is not None and index.ndim == 1:
        size = x.meta[VAL].shape[axis]
        rows = torch.from_numpy(np.where(index < 0, index + size, index).astype(np.int64))
        name = f"{call.node.input[1]}:rows{size}"
        call.c.values.setdefault(name, rows.numpy())
        return call.c.emit(torch.index_select, x, axis, call.c.fetch(name))
    if axis == 0 and isinstance(call.value(1), fx.Node) and x.meta[VAL].dim() == 2:
        return call.c.emit(functional.embedding, call.tensor(1), x)
    raise UnsupportedError("entries taken by numbers that come in")


def expand(call: Call) -> Value:
    x, target = call.tensor(0), list(call.ints(1))
    own = list(call.c.sizes(x))
    rank = max(len(own), len(target))
    own, target = [1] * (rank - len(own)) + own, [1] * (rank - len(target)) + target
    sizes = [o if not isinstance(t, fx.Node) and t == 1 else t for o, t in zip(own, target, strict=True)]
    return call.c.method("expand", x, *sizes)


def tile(call: Call) -> Value:
    return call.c.method("repeat", call.tensor(0), *call.ints(1))


def pad(call: Call) -> Value:
    x, mode = call.tensor(0), call.attr("mode", "constant")
    pads = call.fixed_ints(1) if call.has(1) else list(call.attr("pads", []))
    rank, fill = x.meta[VAL].dim(), call.attr("value", 0.0)
    if call.has(2):
        value = call.constant(2)
        if value is None:
            raise UnsupportedError("it pads with a number that comes in")
        fill = value.reshape(-1)[0].item() if value.size else 0.0
    if call.has(3):
        full = [0] * 2 * rank
        for i, axis in enumerate(axes := call.fixed_ints(3)):
            full[axis % rank], full[rank + axis % rank] = pads[i], pads[len(axes) + i]
        pads = full
    if len(pads) != 2 * rank:
        raise ValueError(f"its pads {pads[:16]} do not fit {rank} axes")
    order = sides(pads)
    if mode != "constant":
        if rank < 3 or any(order[2 * (rank - 2) :]):
            raise UnsupportedError("it mirrors the batch or the channels")
        order = order[: 2 * (rank - 2)]
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if not any(order):
        return x
    return call.c.emit(functional.pad, x, order, names[mode], fill if mode == "constant" else None)


def depth_to_space(call: Call) -> Value:
    if call.attr("mode", "DCR") != "CRD":
        raise UnsupportedError("channels that go by blocks first")
    return call.c.emit(functional.pixel_shuffle, call.tensor(0), call.attr("blocksize"))


def resize(call: Call) -> Value:
    """Upsampling as torch has it: nearest by whole factors, linear over pixels' centres or corners."""
    x, mode = call.tensor(0), call.attr("mode", "nearest")
    sizes, rank = call.c.sizes(x), x.meta[VAL].dim()
    how = call.attr("coordinate_transformation_mode", "half_pixel") if call.opset >= 11 else "asymmetric"
    special = ("antialias", "axes", "exclude_outside", "keep_aspect_ratio_policy", "extrapolation_value")
    if rank not in (3, 4, 5) or any(call.attributes.get(k) not in (None, 0, b"stretch") for k in special):
        raise UnsupportedError("a resize of a special kind")
    at = 1 if call.opset < 11 else 2
    scales = call.constant(at) if call.has(at) else None
    if scales is not None and scales.size:
        factors = [[float(s) for s in scales.reshape(-1)]]
    else:
        factors = [_factors(call, key, sizes) for key in (VAL, ALT)]
    if any(len(f) != rank or f[:2] != [1.0, 1.0] or any(not 0 < s < 1 << 10 for s in f) for f in factors):
        raise UnsupportedError("a resize of channels")
    settings = _how(call, mode, how, factors[0][2:], all(s == int(s) for f in factors for s in f))
    if any(one != factors[0] for one in factors):
        del settings["scale_factor"]
        settings["size"] = call.ints(3)[2:]
    return call.c.emit(functional.interpolate, x, **settings)


def _factors(call: Call, key: str, sizes: Array) -> list[float]:
    """Of each axis, for one of the two sizes of those that vary; 1 of the batch, which a file may fix here alone."""
    now, target = ([n.meta[key] if isinstance(n, fx.Node) else n for n in one] for one in (sizes, call.ints(3)))
    if any(n < 1 or n > 1 << 16 for n in target[2:]):
        raise UnsupportedError("a resize to sizes out of range")
    return [1.0, *(w / o for w, o in zip(target[1:], now[1:], strict=True))]


def _how(call: Call, mode: str, how: str, factors: list[float], ints: bool) -> dict[str, Any]:
    if mode == "nearest":
        floor = call.attr("nearest_mode", "round_prefer_floor" if call.opset >= 11 else "floor") == "floor"
        if not ints or not (how == "half_pixel" or (how == "asymmetric" and floor)):
            raise UnsupportedError("another kind of nearest neighbours")
        return {"scale_factor": factors, "mode": "nearest"}
    corners = {"align_corners": True, "half_pixel": False, "pytorch_half_pixel": False}.get(how)
    if (
        corners is None
        or (not ints and any(f < 1 for f in factors))
        or (mode == "cubic" and call.attr("cubic_coeff_a", -0.75) != -0.75)
    ):
        raise UnsupportedError("another kind of interpolation")
    kinds = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}
    kind = kinds.get((mode, len(factors)))
    if kind is None:
        raise UnsupportedError(f"{mode} interpolation over {len(factors)} axes")
    return {"scale_factor": factors, "mode": kind, "align_corners": corners}


def constant_of_shape(call: Call) -> Value:
    """A tensor of one number, of sizes that vary."""
    import onnx

    array = onnx.numpy_helper.to_array(call.attr("value")) if "value" in call.attributes else np.zeros(1, np.float32)
    dtype = torch.from_numpy(array.copy()).dtype
    return call.c.emit(full, *call.ints(0), fill=array.reshape(-1)[0].item(), dtype=dtype)


def range_(call: Call) -> Value:
    """Numbers up to one that varies."""
    ends = [call.ints(i) for i in range(3)]
    if any(len(n) != 1 for n in ends):
        raise ValueError("its ends are no single numbers")
    return call.c.emit(arange, *(n[0] for n in ends))
