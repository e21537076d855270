"""Walk the traced graph once and enter every channel in the ledger; rules say what each operation does to channels.

A rule maps the labels of a node's inputs to the labels of its output, and returns with them a *recast*: how the same
node looks once channels are gone. What no rule covers freezes the channels that touch it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.surgery.copies import modules_by_path, named_tensors
from pipeline.surgery.labels import Field, Ids, Labels
from pipeline.surgery.ledger import Ledger
from pipeline.surgery.trace import Traced
from pipeline.surgery.tracer import OPAQUE, first_line

if TYPE_CHECKING:
    from pipeline.surgery.cut import Cut

Value = Any  # Labels for a tensor, tuples and dicts of values, or the plain value itself
Recast = Callable[["Cut"], Value]
Result = tuple[Value, Recast]
Rule = Callable[["Analysis", fx.Node], "Result | None"]
# What a rule raises on a call that it was not written for.
UNEXPECTED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Layer:
    """A layer that makes channels: its output ids (O,), and the parameter axis they lie on."""

    node: fx.Node
    name: str
    weight: str
    axis: int
    ids: Ids


@dataclass
class Analysis:
    """`env`: node -> its value in labels; `recasts`: node -> what becomes of it; `layers`: the makers of channels."""

    traced: Traced
    residual: str = "tied"
    dead: Mapping[str, Tensor] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    env: dict[fx.Node, Value] = field(default_factory=dict)
    recasts: dict[fx.Node, Recast] = field(default_factory=dict)
    parameters: dict[str, Labels] = field(default_factory=dict)
    axes: dict[tuple[str, int], Ids] = field(default_factory=dict)  # (parameter, axis) -> channels of its entries
    layers: list[Layer] = field(default_factory=list)
    streams: dict[str, Ids] = field(default_factory=dict)  # sums of an untied residual stream, by node name
    uses: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, str] = field(default_factory=dict)  # path of a module whose inside no rule follows -> reason

    def __post_init__(self) -> None:
        self._names: dict[int, str] = {}
        module = self.traced.module
        self.modules = modules_by_path(module, every=True)
        named = named_tensors(self.modules)
        self._tensors = dict(named)
        for name, tensor in named:
            self._names.setdefault(id(tensor), name)
        self._fetched: set[str] = set()
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self._fetched.add(self.canonical(str(node.target)))
                self.uses[self.canonical(str(node.target))] += len(node.users)
            elif node.op == "call_module" and isinstance(getattr(self.module(node), "weight", None), Tensor):
                self.uses[self.canonical(f"{node.target}.weight")] += 1

    def value(self, x: Any) -> Any:
        """The labels (or plain value) of an argument, nested containers included."""
        return fx.node.map_aggregate(x, lambda n: self.env[n] if isinstance(n, fx.Node) else n)

    def tensor(self, name: str) -> Tensor:
        found = self._tensors.get(name)
        return attrgetter(name)(self.traced.module) if found is None else found

    def module(self, node: fx.Node) -> Any:
        """The module that a `call_module` node calls."""
        return self.modules[str(node.target)]

    def canonical(self, name: str) -> str:
        """One name per tensor: tied parameters answer to the first."""
        return self._names.get(id(self.tensor(name)), name)

    @property
    def names(self) -> set[str]:
        """Every parameter and buffer the traced network uses."""
        return set(self._names.values())

    def parameter(self, name: str) -> Labels:
        """Labels of a parameter or buffer: every axis longer than 1 has ids, its own where none were bound to it."""
        name = self.canonical(name)
        if name not in self.parameters:
            data = self.tensor(name).detach()
            fields = []
            for axis, size in enumerate(data.shape):
                if size > 1 and (name, axis) not in self.axes:
                    known = _uniform(data, axis) if name in self._fetched else np.full(size, np.nan)
                    self.axes[name, axis] = self.ledger.fresh(known)
                if size > 1:
                    fields.append(Field((axis,), self.axes[name, axis]))
            self.parameters[name] = Labels(tuple(data.shape), tuple(fields), name)
        return self.parameters[name]

    def axis_ids(self, name: str, axis: int) -> Ids:
        """Ids of one axis of a parameter, shape (size,); an axis of size 1 has an id that is never removed."""
        found = self.parameter(name).at(axis)
        return found.ids if found is not None else self.ledger.varying((self.tensor(name).shape[axis],))

    def bind(self, name: str, axis: int, ids: Ids) -> None:
        """The entries along one axis of a parameter belong to the channels `ids`, shape (size,)."""
        name = self.canonical(name)
        if (name, axis) in self.axes or name in self._fetched:
            self.ledger.tie(ids, self.axis_ids(name, axis))
        elif len(ids) > 1:
            self.axes[name, axis] = ids

    def channels(self, node: fx.Node, x: Labels, axis: int, others: bool = False) -> Ids | None:
        """Ids along `axis` of `x`, shape (size,), or None. Fields on other axes are frozen unless `others`."""
        axis %= len(x.shape)
        found = x.at(axis)
        for f in x.fields:
            if (f is not found and not others) or (f is found and f.axes != (axis,)):
                self.freeze(node, "channels spread over two axes meet here", f.ids)
        return found.ids if found is not None and found.axes == (axis,) else None

    def freeze(self, node: fx.Node, reason: str, ids: Ids) -> None:
        where = str(node.target) if node.op == "call_module" else node.name
        self.ledger.freeze(where, reason, ids)

    def run(self) -> Analysis:
        """Visit every node once, in order."""
        from pipeline.surgery.rules import rule_for

        for node in self.traced.module.graph.nodes:
            rule = None if OPAQUE in node.meta else rule_for(self, node)
            self.env[node], self.recasts[node] = self._result(node, rule)
            if node.name in self.dead:
                self._hold(node, self.dead[node.name])
        return self

    def _result(self, node: fx.Node, rule: Rule | None) -> Result:
        """What the rule says; without one, or where it cannot take what the node has, all channels here are frozen."""
        layers = len(self.layers)
        try:
            result = None if rule is None else rule(self, node)
            if result is None:
                return opaque(self, node, str(node.meta.get(OPAQUE, f"no rule for {describe(self, node)}")))
            if _fits(result[0], node.meta.get("val")):
                return result
            why = "its result has another shape"
        except torch.OutOfMemoryError:
            raise
        except UNEXPECTED as error:
            why = first_line(error)
        del self.layers[layers:]  # and what the rule tied or froze meanwhile stays so, which keeps more
        if node.op == "call_module":
            for name, _ in self.module(node).named_parameters():
                for f in self.parameter(f"{node.target}.{name}").fields:
                    self.freeze(node, "read by a call that no rule takes", f.ids)
        return opaque(self, node, f"the rule for {describe(self, node)} cannot take this call ({why})")

    def _hold(self, node: fx.Node, mask: Tensor) -> None:
        labels = self.env[node]
        assert isinstance(labels, Labels)
        fits = [f for f in labels.fields if f.ids.shape == tuple(mask.shape)]
        if len(fits) != 1:
            raise ValueError(f"dead mask of {node.name} has shape {tuple(mask.shape)}; its channels do not")
        ids, dead = fits[0].ids, mask.cpu().numpy().astype(bool)
        self.ledger.hold(np.setdiff1d(ids[dead], ids[~dead]))  # flattened, one channel is several entries


def _fits(value: Value, val: Any) -> bool:
    return not isinstance(value, Labels) or not isinstance(val, Tensor) or value.shape == tuple(val.shape)


def _uniform(data: Tensor, axis: int) -> Any:
    """Per index of `axis`, the value that all entries share, or NaN; float64 (size,)."""
    size = data.shape[axis]
    if not data.is_floating_point() or data.numel() > 64 * size:  # large tensors are weights, never uniform
        return np.full(size, np.nan)
    flat = data.detach().to(torch.float64).movedim(axis, 0).reshape(size, -1).cpu()
    low, high = flat.amin(1), flat.amax(1)
    return torch.where(low == high, low, torch.nan).numpy()


def describe(a: Analysis, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(a.module(node)).__name__
    return str(getattr(node.target, "__name__", node.target))


def leaves(value: Any) -> list[Labels]:
    """Every Labels inside nested containers."""
    if isinstance(value, Labels):
        return [value]
    if isinstance(value, Mapping):
        return [x for v in value.values() for x in leaves(v)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [x for v in value for x in leaves(v)]
    return []


def unlabelled(val: Any) -> Value:
    """The value of a node whose tensors have no channels that can be cut."""
    if isinstance(val, Tensor):
        return Labels(tuple(val.shape))
    if isinstance(val, Mapping):
        return {k: unlabelled(v) for k, v in val.items()}
    if isinstance(val, list | tuple) and any(isinstance(v, Tensor | list | tuple | Mapping) for v in val):
        return tuple(unlabelled(v) for v in val)
    return val


def opaque(a: Analysis, node: fx.Node, reason: str) -> Result:
    """Freeze all channels that enter; nothing that comes out can be cut."""
    if node.op == "call_module":
        a.unknown[str(node.target)] = reason
    for labels in leaves(a.value((node.args, node.kwargs))):
        for f in labels.fields:
            a.freeze(node, reason, f.ids)
    out = unlabelled(node.meta.get("val"))

    def recast(cut: Cut) -> Value:
        cut.freeze_numbers(node)
        return out

    return out, recast
