"""What a rewritten torch call is in ONNX: (operator, name of the new call) -> the change to the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from torch import fx

from pipeline.models.onnx.compact.edit import Edit, HeldError
from pipeline.models.onnx.convert import ALT, VAL, Network
from pipeline.surgery.rules.functions import mean_with_removed, select_channels, with_ones

Patch = Callable[[Edit, Network, int, fx.Node, fx.Node], None]
SELECTION, ONES = select_channels.__name__, with_ones.__name__
INT64_MAX = (1 << 63) - 1


def _int64(values: Any) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def _copied(mine: fx.Node, size: Any, axis: int) -> bool:
    """Whether a size asked for is what axis `axis` of the tensor has, whatever the sizes that vary are."""
    source = mine.args[0]
    assert isinstance(source, fx.Node)
    if not isinstance(size, fx.Node) or axis >= source.meta[VAL].dim():
        return False
    return all(size.meta[key] == source.meta[key].shape[axis] for key in (VAL, ALT))


def reshape(edit: Edit, network: Network, index: int, mine: fx.Node, theirs: fx.Node) -> None:
    """Other sizes; those that vary, or that were copied or left open, stay as the file has them."""
    name = edit.nodes[index].input[1]
    written = network.constants.get(name)
    before, after = list(mine.args[1]), list(theirs.args[1])  # type: ignore[arg-type]
    sizes = []
    for i, (was, now) in enumerate(zip(before, after, strict=True)):
        stays = isinstance(now, fx.Node) or (now == -1 and was == -1)
        if stays:
            sizes.append(int(written[i]) if written is not None else 0 if _copied(mine, was, i) else -1)
        else:
            sizes.append(int(now))
    if sizes.count(-1) > 1:
        raise HeldError(index, "a reshape to several sizes that vary")
    edit.set_input(index, 1, edit.new(name, _int64(sizes)))


def split(edit: Edit, network: Network, index: int, mine: fx.Node, theirs: fx.Node) -> None:
    sizes = [int(n) for n in theirs.args[1]]  # type: ignore[union-attr, arg-type]
    edit.drop_attributes(index, "num_outputs", "split")
    if _opset(edit) < 13:
        edit.set_attribute(index, "split", sizes)
    else:
        edit.set_input(index, 1, edit.new(f"{edit.nodes[index].output[0]}_sizes", _int64(sizes)))


def pieces(edit: Edit, network: Network, index: int, mine: fx.Node, theirs: fx.Node) -> None:
    """A split of channels that lie interleaved now: each piece by its numbers."""
    node, axis, gathers = edit.nodes[index], edit.attribute(index, "axis", 0), []
    for name, part in zip(node.output, theirs.args[0], strict=True):  # type: ignore[arg-type]
        numbers = edit.new(f"{name}_channels", _int64(part.args[2]))
        gathers.append(onnx.helper.make_node("Gather", [node.input[0], numbers], [name], edit.fresh(name), axis=axis))
    edit.instead(index, gathers)


def gather(edit: Edit, network: Network, index: int, mine: fx.Node, theirs: fx.Node) -> None:
    numbers = [int(n) for n in theirs.args[2]]  # type: ignore[union-attr, arg-type]
    if min(numbers) < 0:
        raise HeldError(index, "channels of zeros among those taken")
    edit.set_input(index, 1, edit.new(edit.nodes[index].input[1], _int64(numbers)))


def _choose(edit: Edit, index: int, selection: fx.Node) -> None:
    """Put a Gather of channels before the node."""
    node, axis, numbers = edit.nodes[index], selection.args[1], [int(n) for n in selection.args[2]]  # type: ignore[union-attr, arg-type]
    if min(numbers) < 0:
        raise HeldError(index, "channels of zeros among those taken")
    name = edit.fresh(f"{node.output[0]}_channels")
    inputs = [node.input[0], edit.new(f"{name}_numbers", _int64(numbers))]
    edit.first(index, onnx.helper.make_node("Gather", inputs, [name], name, axis=axis))
    edit.set_input(index, 0, name)


def add_ones(edit: Edit, index: int, rank: int) -> None:
    """Put a Pad before the layer that adds a channel of ones."""
    node = edit.nodes[index]
    name = edit.fresh(f"{node.output[0]}_ones")
    pads = [0] * (rank + 1) + [1] + [0] * (rank - 2)
    if _opset(edit) < 11:
        pad = onnx.helper.make_node("Pad", [node.input[0]], [name], name, mode="constant", pads=pads, value=1.0)
    else:
        one = edit.new(f"{name}_value", np.ones((), dtype=edit.dtype_of(node.input[1])))
        pad = onnx.helper.make_node("Pad", [node.input[0], edit.new(f"{name}_pads", _int64(pads)), one], [name], name)
    edit.first(index, pad)
    edit.set_input(index, 0, name)


def resized(edit: Edit, network: Network, index: int, mine: fx.Node, theirs: fx.Node) -> None:
    """The sizes that a Resize is given name the channels too."""
    inputs = network.model.graph.node[index].input
    channels = theirs.meta["tensor_meta"].shape[1]
    if len(inputs) < 4 or not inputs[3] or channels == mine.meta[VAL].shape[1]:
        return
    name = inputs[3]
    if (sizes := network.constants.get(name)) is not None:
        edit.set_input(index, 3, edit.new(name, _int64([sizes[0], channels, *sizes[2:]])))
        return
    batch, places = (_piece(edit, index, name, *ends) for ends in ((0, 1), (2, mine.meta[VAL].dim())))
    joined = edit.fresh(f"{name}_resized")
    parts = [batch, edit.new(f"{joined}_channels", _int64([channels])), places]
    edit.first(index, onnx.helper.make_node("Concat", parts, [joined], joined, axis=0))
    edit.set_input(index, 3, joined)


def _piece(edit: Edit, index: int, sizes: str, start: int, end: int) -> str:
    """Some of the sizes that the graph computes, by a Slice before the node."""
    piece = edit.fresh(f"{sizes}_{start}_{end}")
    ends = [edit.new(f"{piece}_{role}", _int64([n])) for role, n in (("starts", start), ("ends", end))]
    edit.first(index, onnx.helper.make_node("Slice", [sizes, *ends], [piece], piece))
    return piece


def slice_(edit: Edit, network: Network, index: int, mine: fx.Node, theirs: fx.Node) -> None:
    steps, source = theirs.args[1], theirs.args[0]
    assert isinstance(steps, tuple) and isinstance(source, fx.Node)
    if getattr(source.target, "__name__", "") == SELECTION:  # channels that lie interleaved now
        _choose(edit, index, source)
    starts, ends, axes, strides = [], [], [], []
    for axis, step in enumerate(steps):
        if step == slice(None):
            continue
        if not isinstance(step, slice) or any(isinstance(v, fx.Node) for v in (step.start, step.stop)):
            raise HeldError(index, "a slice between sizes that vary")
        starts.append(step.start or 0)
        ends.append(INT64_MAX if step.stop is None else step.stop)
        axes.append(axis)
        strides.append(step.step or 1)
    if _opset(edit) < 10:
        for name, values in (("starts", starts), ("ends", ends), ("axes", axes)):
            edit.set_attribute(index, name, values)
        return
    names = [edit.new(f"{edit.nodes[index].output[0]}_{n}", _int64(v))
             for n, v in (("starts", starts), ("ends", ends), ("axes", axes), ("steps", strides))]  # fmt: skip
    edit.set_inputs(index, [edit.nodes[index].input[0], *names])


def mean(edit: Edit, network: Network, index: int, mine: fx.Node, theirs: fx.Node) -> None:
    """A mean over channels of which zeros went: the same sum over fewer."""
    dtype = mine.meta[VAL].dtype
    edit.then(index, "Mul", np.array(theirs.args[3], dtype=str(dtype).removeprefix("torch.")))


def expand(edit: Edit, network: Network, index: int, mine: fx.Node, theirs: fx.Node) -> None:
    """Other sizes of a constant shape; one that is computed has no place for them."""
    after = theirs.args[1] if isinstance(theirs.args[1], tuple) else theirs.args[1:]
    pairs = list(zip(mine.args[1:], after, strict=True))
    changed = [not isinstance(now, fx.Node) and was != now for was, now in pairs]
    if not any(changed):
        return
    name = edit.nodes[index].input[1]
    if name not in network.constants:
        raise HeldError(index, "an expansion to sizes of which some vary")
    sizes, off = network.constants[name].copy(), len(pairs) - network.constants[name].size
    for i, (_, now) in enumerate(pairs):
        if changed[i] and i >= off and sizes[i - off] != 1:
            sizes[i - off] = now
    edit.set_input(index, 1, edit.new(name, sizes))


def pad(edit: Edit, network: Network, index: int, mine: fx.Node, theirs: fx.Node) -> None:
    rank = mine.meta[VAL].dim()
    order = [int(n) for n in theirs.args[1]]  # type: ignore[union-attr, arg-type]
    order += [0] * (2 * rank - len(order))
    pads = [order[2 * (rank - 1 - axis)] for axis in range(rank)] + [
        order[2 * (rank - 1 - axis) + 1] for axis in range(rank)
    ]
    if len(edit.nodes[index].input) < 2:
        edit.set_attribute(index, "pads", pads)
        return
    edit.set_input(index, 1, edit.new(edit.nodes[index].input[1], _int64(pads)))
    if len(edit.nodes[index].input) > 3:
        edit.set_inputs(index, list(edit.nodes[index].input)[:3])


def _opset(edit: Edit) -> int:
    return max(int(item.version) for item in edit.model.opset_import if item.domain in ("", "ai.onnx"))


PATCHES: dict[tuple[str, str], Patch] = {
    ("Reshape", "reshape"): reshape,
    ("Split", "split"): split,
    ("Split", "tuple"): pieces,
    ("Gather", SELECTION): gather,
    ("Slice", "getitem"): slice_,
    ("Expand", "expand"): expand,
    ("Expand", "broadcast_to"): expand,
    ("ReduceMean", mean_with_removed.__name__): mean,
    ("Pad", "pad"): pad,
}
