"""Torch functions with the meaning of ONNX operators that torch has not under one name.

Surgery knows a call by its name: a function here bears the name of torch's where it treats channels alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.nn import functional

MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
AVERAGE_POOLS: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def sides(pads: Sequence[int]) -> list[int]:
    """ONNX pads (begin of each axis, then end of each) in the order of torch: the last axis first."""
    rank = len(pads) // 2
    return [p for axis in reversed(range(rank)) for p in (pads[axis], pads[rank + axis])]


def ceil_ends(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pads: Sequence[int]) -> list[int]:
    """Padding behind each axis that makes the last, partial window whole; a window must start before the end padding.

    `kernel`: extents, dilation counted.
    """
    rank, ends = len(kernel), []
    for axis in range(rank):
        whole = sizes[axis] + pads[axis] + pads[rank + axis] - kernel[axis]
        steps = -(-whole // stride[axis])
        if steps * stride[axis] >= sizes[axis] + pads[axis]:
            steps -= 1
        ends.append(max(0, steps * stride[axis] - whole))
    return ends


def max_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], pads: Sequence[int], dilation: Sequence[int], ceil: bool
) -> Tensor:
    """MaxPool over the last len(kernel) axes, each side padded by itself; padding never wins."""
    rank, pads = len(kernel), list(pads)
    if ceil:
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        ends = ceil_ends(x.shape[-rank:], extents, stride, pads)
        pads = [*pads[:rank], *(p + e for p, e in zip(pads[rank:], ends, strict=True))]
    if any(pads):
        x = functional.pad(x, sides(pads), value=-torch.inf)
    return MAX_POOLS[rank](x, list(kernel), list(stride), 0, list(dilation))


def avg_pool2d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor:
    """AveragePool over the last len(kernel_size) axes; `padding` as ONNX has it.

    What ceil_mode adds behind the padding is never counted.
    """
    rank, ends = len(kernel_size), [0] * len(kernel_size)
    if ceil_mode:
        ends = ceil_ends(x.shape[-rank:], kernel_size, stride, padding)
    if not any(padding) and not any(ends):
        return AVERAGE_POOLS[rank](x, list(kernel_size), list(stride))  # type: ignore[no-any-return]
    counted = torch.ones((1, 1, *x.shape[-rank:]), dtype=x.dtype, device=x.device)
    counted = functional.pad(counted, sides(padding), value=float(count_include_pad))
    behind = sides([0] * rank + ends)
    total = AVERAGE_POOLS[rank](
        functional.pad(functional.pad(x, sides(padding)), behind), list(kernel_size), list(stride)
    )
    share = AVERAGE_POOLS[rank](functional.pad(counted, behind), list(kernel_size), list(stride))
    return total / share  # type: ignore[no-any-return]


def fixed(x: Tensor) -> Tensor:
    """`x`, whose channels stay."""
    return x


# without a rule surgery would try it on random data, and find that its channels could go
fixed.opaque = True  # type: ignore[attr-defined]


def statistics_norm(x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNormalization over the last axes; surgery has no rule for it under this name, so its channels stay."""
    return functional.layer_norm(x, shape, weight, bias, eps)


def groups_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, repeats: int) -> Tensor:
    """GroupNormalization; each entry of weight and bias is for `repeats` channels. Surgery has no rule for it."""
    return functional.group_norm(x, groups, weight.repeat_interleave(repeats), bias.repeat_interleave(repeats), eps)


def joint_softmax(x: Tensor, axis: int, log: bool) -> Tensor:
    """Softmax over all axes from `axis` on together, as it was before operator set 13."""
    flat = x.flatten(axis)
    return (torch.log_softmax if log else torch.softmax)(flat, axis).reshape(x.shape)


def full(*sizes: int, fill: float, dtype: torch.dtype) -> Tensor:
    """A tensor of one number, of sizes that may be known when the network runs alone."""
    return torch.full(sizes, fill, dtype=dtype)


def arange(start: int, stop: int, step: int) -> Tensor:
    """int64 numbers, ends that may be known when the network runs alone."""
    return torch.arange(start, stop, step)


class Reference:
    """One ONNX operator as onnx's reference evaluator computes it. Surgery has no rule for it: what it reads stays."""

    def __init__(self, node: onnx.NodeProto, opset: int, constants: dict[int, Any]) -> None:
        """`constants`: inputs by position that are no tensors of the network; raises NotImplementedError."""
        self.__name__, self.__qualname__, self.__module__ = node.op_type, node.op_type, __name__
        self._constants, self._count = constants, len(node.input)
        inputs = [f"x{i}" if name else "" for i, name in enumerate(node.input)]
        outputs = [f"y{i}" if name else "" for i, name in enumerate(node.output)]
        self._positions = [i for i, name in enumerate(inputs) if name]
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(outputs)
        unknown = onnx.TypeProto()
        graph = onnx.helper.make_graph(
            [copy],
            "one",
            [onnx.helper.make_value_info(inputs[i], unknown) for i in self._positions],
            [onnx.helper.make_value_info(name, unknown) for name in outputs if name],
        )
        self._node = ReferenceEvaluator(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        )

    def arrays(self, feeds: dict[str, Any]) -> list[Any]:
        """Outputs for the inputs x0, x1, ... as NumPy arrays."""
        return [np.asarray(y) for y in self._node.run(None, feeds)]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        feeds, device = {}, tensors[0].device
        for i in self._positions:
            if i in self._constants:
                feeds[f"x{i}"] = self._constants[i]
            else:
                x = next(rest)
                feeds[f"x{i}"] = (torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else x.detach().cpu()).numpy()
        return tuple(torch.from_numpy(np.array(y, order="C")).to(device) for y in self.arrays(feeds))

    def __deepcopy__(self, memo: dict[int, Any]) -> Reference:
        return self
