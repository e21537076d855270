"""A linear layer whose weights are held as compressed sparse rows; no dense tensor of the weights' shape is made.

Its arrays keep their length for the whole training, so that checkpoints fit: connections that are given up leave room
at the end, which `starts[-1]` says.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

ROOM = 1.2
"""Draws for each place that is looked for, as some are taken."""


class SparseLinear(nn.Module):
    """(N, inputs) -> (N, outputs). `values` (places,) is trained, `columns` (places,) int32 and `starts` (outputs + 1,)
    int32 say where they lie: the connections of output r are those from starts[r] to starts[r + 1]. `closed`
    (outputs,): units that lost their inputs for good."""

    values: Tensor
    bias: Tensor | None
    columns: Tensor
    starts: Tensor
    closed: Tensor
    order: Tensor
    rows: Tensor
    ends: Tensor

    def __init__(self, inputs: int, outputs: int, keys: Tensor, values: Tensor, bias: Tensor | None) -> None:
        """`keys` (places,) int64, sorted: output * inputs + input of each connection."""
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.values = nn.Parameter(values.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        device = values.device
        self.register_buffer("columns", torch.zeros(len(keys), dtype=torch.int32, device=device))
        self.register_buffer("starts", torch.zeros(outputs + 1, dtype=torch.int32, device=device))
        self.register_buffer("closed", torch.zeros(outputs, dtype=torch.bool, device=device))
        self.register_load_state_dict_post_hook(_rearranged)  # type: ignore[no-untyped-call]
        _hear_of_beta()
        self.place(keys)

    @property
    def living(self) -> int:
        return int(self.starts[-1])

    @property
    def keys(self) -> Tensor:
        """Of the connections, (living,) int64, sorted."""
        outputs = torch.arange(self.out_features, device=self.starts.device)
        return outputs.repeat_interleave(self.starts.diff()) * self.in_features + self.columns[: self.living]

    def place(self, keys: Tensor) -> None:
        """The connections lie here from now on; `values` are left to the caller."""
        self.columns.zero_()
        self.columns[: len(keys)] = keys % self.in_features
        outputs = torch.arange(self.out_features + 1, device=keys.device)
        self.starts.copy_(torch.searchsorted(keys, outputs * self.in_features))
        self.transpose()

    def transpose(self) -> None:
        """The same connections by input, which the way back reads: `order` of the values, `rows`, `ends`."""
        columns, keys = self.columns[: self.living].long(), self.keys
        order = columns.argsort(stable=True)
        inputs = torch.arange(self.in_features + 1, device=keys.device)
        for name, value in (
            ("order", order), ("rows", (keys // self.in_features)[order].int()),
            ("ends", torch.searchsorted(columns[order].contiguous(), inputs).int()),
        ):  # fmt: skip
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = _Product.apply(x.float(), self.values, self)
            return y if self.bias is None else y + self.bias

    def dense(self) -> nn.Linear:
        """The same layer as every other tool knows it."""
        device = self.values.device
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=device)
        with torch.no_grad():
            flat = layer.weight.zero_().view(-1)
            flat[self.keys] = self.values[: self.living]
            if self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer.train(self.training)


@functools.cache
def _hear_of_beta() -> None:
    """torch warns once that CSR tensors are in beta, which a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.eye(1).to_sparse_csr()


def _rearranged(module: Any, _: object) -> None:
    module.transpose()


class _Product(torch.autograd.Function):
    """x W^T over the connections, and gradients of x and of the connections alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, layer: SparseLinear) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.layer = layer
        living = values[: layer.living]
        return _gathered(x, layer.columns[: len(living)], layer.starts, living)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, values = ctx.saved_tensors
        layer: SparseLinear = ctx.layer
        count = layer.living
        before = None
        if ctx.needs_input_grad[0]:
            before = _gathered(delta, layer.rows, layer.ends, values[:count][layer.order])
        gradient = torch.zeros_like(values)
        if count:
            pattern = torch.sparse_csr_tensor(
                layer.starts, layer.columns[:count], gradient[:count], (layer.out_features, layer.in_features),
                check_invariants=False,
            )  # fmt: skip
            sampled = torch.sparse.sampled_addmm(pattern, delta.T.contiguous(), x, beta=0.0)
            gradient[:count] = sampled.values()
        return before, gradient, None


def _gathered(x: Tensor, columns: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """x (N, inputs) -> (N, outputs): of each output the sum of its connections.

    As a bag of rows of x^T, which takes a third of the time of torch's product with a CSR tensor on a CPU.
    """
    if not len(values):
        return x.new_zeros(len(x), len(starts) - 1)
    bags = F.embedding_bag(
        columns, x.T.contiguous(), starts, mode="sum", per_sample_weights=values, include_last_offset=True
    )
    return bags.T.contiguous()


def free_places(
    taken: Tensor, size: int, count: int, generator: torch.Generator, shut: Tensor | None = None, inputs: int = 1
) -> Tensor:
    """`count` keys at random, int64, sorted, of 0..size-1 that are not in `taken` (sorted); none of the outputs (keys
    // inputs) that are `shut`, bool. Fewer where there is no room."""
    room = size - len(taken)
    if shut is not None:
        held = torch.bincount(taken // inputs, minlength=len(shut))
        room = int((inputs - held)[~shut.cpu()].sum())
    chosen, count = taken.new_zeros(0), min(count, room)
    while len(chosen) < count:
        draws = torch.randint(size, (int(ROOM * (count - len(chosen))) + 8,), generator=generator)
        every = torch.cat([taken, chosen]).sort().values
        if len(every):
            nearest = torch.searchsorted(every, draws).clamp_max(len(every) - 1)
            draws = draws[every[nearest] != draws]
        if shut is not None:
            draws = draws[~shut.cpu()[draws // inputs]]
        first = torch.ones(len(draws), dtype=torch.bool)
        ordered, order = draws.sort(stable=True)
        first[order[1:][ordered.diff() == 0]] = False  # of equal draws the first
        chosen = torch.cat([chosen, draws[first][: count - len(chosen)]])
    return chosen.sort().values


@register_flop_formula([torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only])
def _bag_flops(
    rows: Any, indices: Any, offsets: Any, scale: bool = False, mode: int = 0, sparse: bool = False,
    weights: Any = None, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """A bag with weights multiplies and adds each entry of each row that it reads; one without only adds."""
    return 0 if weights is None else 2 * int(indices[0]) * int(rows[1])
