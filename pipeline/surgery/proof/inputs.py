"""What the law is asked on: random inputs, no larger than it takes for every weight to count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pipeline.surgery.trace import Traced
from pipeline.surgery.trace.float64 import widened

STRIDE = 32  # image sizes that are tried: multiples of what networks divide an image by
SHOWN = 4  # axes of a batch of images


def random_sets(example: Sequence[Any], seed: int, sizes: bool = False) -> list[tuple[str, tuple[Any, ...]]]:
    """Standard normal inputs of the example's batch and of another one, each with a name; with `sizes` it says the
    sizes of the image."""
    own = batch_of(example)
    where = f" of {'x'.join(str(n) for n in example[0].shape[2:])}" if sizes else ""
    return [(f"random, batch {b}{where}", fresh_inputs(example, b, seed + b)) for b in (own, 3 if own == 2 else 2)]


def smaller(traced: Traced) -> tuple[Tensor, ...] | None:
    """An example of smaller images on which every entry of every kernel counts, for a network whose forward took no
    number from their size; None where the example's own is the one to take."""
    inputs = traced.example_inputs
    x = inputs[0] if len(inputs) == 1 else None
    if traced.sized or traced.frozen is not None or not isinstance(x, Tensor) or x.dim() != SHOWN:
        return None
    height, width = x.shape[2:]
    if height % STRIDE or width % STRIDE:
        return None
    kernels = [kernel for node in traced.module.graph.nodes for kernel in _kernels(traced, node)]
    for parts in range(2, height // STRIDE):  # keeps the image's shape
        low, wide = height * parts // (height // STRIDE), width * parts // (height // STRIDE)
        if wide % STRIDE == 0 and all(
            kernel.whole((low if kernel.axis == 2 else wide) / x.shape[kernel.axis]) for kernel in kernels
        ):
            return (x.new_zeros((1, 1, 1, 1)).expand(*x.shape[:2], low, wide),)
    return None


@dataclass(frozen=True)
class Kernel:
    """A kernel along one axis of a map of `size`: `taps` entries, `dilation` apart."""

    axis: int
    size: int
    taps: int
    dilation: int
    stride: int
    padding: int

    def whole(self, share: float) -> bool:
        """Whether each entry lies on the map somewhere, where the map has that share of its size."""
        size, reach = int(self.size * share + 1e-6), self.dilation * (self.taps - 1)
        starts = range(-self.padding, size + self.padding - reach, self.stride)
        return all(any(0 <= start + t * self.dilation < size for start in starts) for t in range(self.taps))


def _kernels(traced: Traced, node: fx.Node) -> list[Kernel]:
    """Those of a call, along height and width; none where it has none."""
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    x = None if source is None else source.meta.get("val")
    if not isinstance(x, Tensor) or x.dim() != SHOWN:
        return []
    sizes: Any = None
    dilation, stride, padding = (1, 1), (1, 1), (0, 0)
    if node.op == "call_module":
        m: Any = traced.module.get_submodule(str(node.target))
        sizes = getattr(m, "kernel_size", None)
        if sizes is not None and not getattr(m, "transposed", False):
            dilation, stride = _pair(getattr(m, "dilation", 1)), _pair(getattr(m, "stride", 1))
            padding = (0, 0) if isinstance(m.padding, str) else _pair(getattr(m, "padding", 0))
    elif "conv" in getattr(node.target, "__name__", ""):  # by function: as if without padding
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        val = weight.meta.get("val") if isinstance(weight, fx.Node) else None
        sizes = tuple(val.shape[2:]) if isinstance(val, Tensor) and val.dim() == SHOWN else None
    if sizes is None:
        return []
    rows = zip(_pair(sizes), dilation, stride, padding, strict=True)
    return [Kernel(axis, x.shape[axis], k, d, s, p) for axis, (k, d, s, p) in enumerate(rows, 2)]


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) else (int(value), int(value))


def batch_of(inputs: Any) -> int:
    """The first size of the first tensor that has one, else 1."""
    return next((len(x) for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()), 1)


def fresh_inputs(example: Sequence[Any], batch: int, seed: int) -> tuple[Any, ...]:
    """Standard normal inputs of the example's shapes; tensors whose first size is the example's batch get `batch`.

    Integers, booleans and single numbers are the example's own.
    """
    generator, own = torch.Generator().manual_seed(seed), batch_of(example)

    def sample(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.dim():
            return x
        size = batch if len(x) == own else len(x)
        if not x.is_floating_point():
            return x if size == len(x) else x[:1].expand(size, *x.shape[1:])
        return torch.randn((size, *x.shape[1:]), generator=generator).to(device=x.device, dtype=x.dtype)

    return tuple(pytree.tree_map(sample, tuple(example)))


def widened_all(inputs: Any) -> Any:
    """The inputs with their tensors in float64."""
    return pytree.tree_map(lambda x: widened(x) if isinstance(x, Tensor) else x, inputs)
