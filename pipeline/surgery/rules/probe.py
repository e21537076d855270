"""Operations without a rule are tried on random data: whether each channel of the result comes from one that enters.

An operation acts channel by channel where `op(x)[some] == op(x[some])` for every choice of channels. Random data show
that for the choices tried; the law, which every cut is held to, guards against what they do not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pipeline.surgery.channels.analysis import Analysis, CutView, Result, Value, leaves, unlabelled
from pipeline.surgery.channels.labels import Field, Ids, Labels, distinct
from pipeline.surgery.trace.copies import deep_copy
from pipeline.surgery.trace.float64 import Double, in_double, widened

PROBED = "probed"  # node.meta key: the axes of the results on which the channels lie, by axis of the operand
LARGEST = 1 << 24  # elements of an operand
CONSTANTS = 16  # different values that are tried; of a channel of another value nothing is known
TOLERANCE = 1e-10  # relative, float64: sums over other widths round differently
Axes = tuple[int, ...]


def probed(a: Analysis, node: fx.Node) -> Result | None:
    """The result of a call of which one operand has channels and that acts on each of them alone; else None."""
    operands = [n for n in node.all_input_nodes if any(x.fields for x in leaves(a.env[n]))]
    if len(operands) != 1 or not isinstance(a.env[operands[0]], Labels) or node.op not in _CALLS:
        return None
    source, x = operands[0], a.env[operands[0]]
    value = source.meta["val"]
    if not value.is_floating_point() or value.numel() > LARGEST:
        return None
    trial = Trial(a, node, source)
    if PROBED not in node.meta:
        node.meta[PROBED] = {axis: trial.axes_of(axis) for f in x.fields for axis in f.axes}
    axes: dict[int, tuple[int, ...] | None] = node.meta[PROBED]
    passing = [f for f in x.fields if all(axes.get(ax) is not None for ax in f.axes)]
    if not passing:
        return None
    for f in x.fields:
        if not any(f is g for g in passing):
            a.freeze(node, "no rule, and not channel by channel on random data", f.ids)
    a.probed.append(node.name)
    return _labelled(a, node, source, passing, axes, trial)


class Trial:
    """A call on random data of the shapes it has in the network."""

    def __init__(self, a: Analysis, node: fx.Node, source: fx.Node) -> None:
        self._a, self._node, self._source = a, node, source
        device = next((x.device for x in pytree.tree_leaves(a.traced.example_inputs) if isinstance(x, Tensor)), "cpu")
        self._device, self._module = device, None
        self.shape = tuple(source.meta["val"].shape)
        if node.op == "call_module":
            self._module = in_double(deep_copy(a.module(node))).eval()

    def data(self, seed: int) -> Tensor:
        """Float64; of both signs where the seed is even, between 0 and 1 where it is odd."""
        generator = torch.Generator().manual_seed(seed)
        draw = torch.rand if seed % 2 else torch.randn
        return draw(self.shape, generator=generator, dtype=torch.float64).to(self._device)

    @torch.no_grad()
    def run(self, x: Tensor) -> list[Tensor] | None:
        """The tensors of the result; None where the call raises, or returns none."""

        def value(n: fx.Node) -> Any:
            return x.clone() if n is self._source else self._other(n)

        node = self._node
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        try:
            with Double(), torch.random.fork_rng(devices=[]):
                match node.op:
                    case "call_function":
                        out = node.target(*args, **kwargs)  # type: ignore[operator]
                    case "call_method":
                        out = getattr(args[0], str(node.target))(*args[1:], **kwargs)
                    case _:
                        out = self._module(*args, **kwargs)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever code of the user raises
            return None
        parts = list(out) if isinstance(out, tuple | list) else [out]
        return parts if all(isinstance(t, Tensor) for t in parts) else None

    def _other(self, n: fx.Node) -> Any:
        val = n.meta.get("val")
        if not isinstance(val, Tensor):
            return val
        if n.op == "get_attr":
            return widened(self._a.tensor(str(n.target)).detach())
        if val.is_floating_point():
            generator = torch.Generator().manual_seed(len(n.name))
            return torch.randn(val.shape, generator=generator, dtype=torch.float64).to(self._device)
        return torch.zeros(val.shape, dtype=val.dtype, device=self._device)

    def axes_of(self, axis: int) -> tuple[int, ...] | None:
        """The axis of each result on which the channels of the operand's `axis` lie; None where they lie on none."""
        size = self.shape[axis]
        axes: list[set[int]] | None = None
        for seed in (0, 1):
            x = self.data(seed)
            whole = self.run(x)
            if not whole or not all(t.isfinite().any() for t in whole):
                return None
            for chosen in _choices(size, seed):
                part = self.run(x.index_select(axis, chosen.to(x.device)))
                if part is None or len(part) != len(whole):
                    return None
                fits = [
                    {o for o in range(w.dim()) if _alike(w, p, o, chosen)} for w, p in zip(whole, part, strict=True)
                ]
                axes = fits if axes is None else [before & now for before, now in zip(axes, fits, strict=True)]
        if axes is None or not all(axes):
            return None
        return tuple(min(where, key=lambda o: (o != axis, o)) for where in axes)

    def constant(self, axes: Axes, outs: Sequence[Axes], value: float) -> list[float]:
        """What each result holds where the channel at the first place of `axes` is `value` everywhere; NaN where it is
        no constant."""
        seen: list[list[float]] = [[] for _ in outs]
        for seed in (0, 1):
            x = self.data(seed)
            x[tuple(0 if ax in axes else slice(None) for ax in range(x.dim()))] = value
            for places, out, t in zip(seen, outs, self.run(x) or [], strict=True):
                channel = t[tuple(0 if ax in out else slice(None) for ax in range(t.dim()))].double()
                places += [float(channel.min()), float(channel.max())]
        return [_one(values) for values in seen]


_CALLS = ("call_function", "call_method", "call_module")


def _one(values: list[float]) -> float:
    low, high = min(values), max(values)
    if not high - low <= TOLERANCE * max(1.0, abs(high)):
        return float("nan")
    return 0.0 if max(abs(low), abs(high)) <= TOLERANCE else low


def _choices(size: int, seed: int) -> Iterator[Tensor]:
    """Channels that stay: a random half, the first, all but the first, and the last two."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    for chosen in (order[: max(1, size // 2)].sort().values, torch.tensor([0]), torch.arange(1, size)):
        if len(chosen):
            yield chosen
    yield torch.arange(max(0, size - 2), size)


def _alike(whole: Tensor, part: Tensor, axis: int, chosen: Tensor) -> bool:
    if int(chosen.max()) >= whole.shape[axis]:
        return False
    picked = whole.index_select(axis, chosen.to(whole.device))
    if picked.shape != part.shape:
        return False
    if not picked.is_floating_point():
        return torch.equal(picked, part)
    return torch.allclose(picked, part, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def _labelled(
    a: Analysis, node: fx.Node, source: fx.Node, passing: list[Field], axes: dict[int, Any], trial: Trial
) -> Result | None:
    """Labels of the results, each with channels of its own that live and go with those of the operand."""
    val = node.meta["val"]
    shapes = [tuple(t.shape) for t in (val if isinstance(val, tuple | list) else [val])]
    tables: list[list[tuple[Field, Axes, Ids, Ids]]] = [[] for _ in shapes]
    for f in passing:
        outs = [tuple(axes[ax][i] for ax in f.axes) for i in range(len(shapes))]
        if any(list(out) != sorted(set(out)) for out in outs):
            a.freeze(node, "channels change the order of their axes", f.ids)
            continue
        unique, _ = distinct(f.ids)
        values = _constants(a.ledger.constant(unique), partial(trial.constant, f.axes, outs))
        for table, out, constants in zip(tables, outs, values.T, strict=True):
            ids = a.ledger.fresh(constants, a.ledger.measured(unique), like=unique)
            table.append((f, out, unique, ids))

    def value(x: Labels) -> Value:
        results = []
        for shape, table in zip(shapes, tables, strict=True):
            sizes, fields = list(shape), []
            for f, out, unique, ids in table:
                entering = x.at(f.axes[0])
                assert entering is not None
                fields.append(Field(out, ids[np.searchsorted(unique, entering.ids)]))
                for ax, n in zip(out, entering.ids.shape, strict=True):
                    sizes[ax] = n
            results.append(Labels(tuple(sizes), tuple(fields)))
        return tuple(results) if isinstance(val, tuple | list) else results[0]

    def recast(cut: CutView) -> Value:
        cut.freeze_numbers(node)
        return value(cut.value(source))

    if not any(tables):
        out = unlabelled(val)
        return out, lambda cut: out
    return value(a.env[source]), recast


def _constants(inputs: Any, value_of: Callable[[float], list[float]]) -> Any:
    """(channels, results): what becomes of each constant, NaN where it is none or one value too many."""
    values, at = np.unique(inputs, return_inverse=True, equal_nan=True)
    order = np.argsort(np.abs(values), kind="stable")[:CONSTANTS]  # zero first
    results = {i: value_of(float(values[i])) for i in order if np.isfinite(values[i])}
    count = len(next(iter(results.values()))) if results else len(value_of(0.0))
    nothing = [float("nan")] * count
    return np.array([results.get(i, nothing) for i in range(len(values))])[at.ravel()]
