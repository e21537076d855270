"""What rules read and write: the labels of every node and parameter of a traced graph, and the ledger of channels.

A rule maps the labels of a node's inputs to the labels of its output, and returns with them a *recast*: how the same
node looks once channels are gone. What no rule covers freezes the channels that touch it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.surgery.channels.labels import Field, Ids, Labels
from pipeline.surgery.channels.ledger import Flags, Floats, Ledger
from pipeline.surgery.trace import Traced
from pipeline.surgery.trace.copies import modules_by_path, named_tensors

Value = Any  # Labels for a tensor, tuples and dicts of values, or the plain value itself
Recast = Callable[["CutView"], Value]
Result = tuple[Value, Recast]
Rule = Callable[["Analysis", fx.Node], "Result | None"]
OUTPUT, ASKED = "output of the network", "frozen as asked"  # reasons of a freeze
WHOLE = "the network"  # where nothing of it could be followed
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
    ledger: Ledger = field(default_factory=Ledger)
    env: dict[fx.Node, Value] = field(default_factory=dict)
    recasts: dict[fx.Node, Recast] = field(default_factory=dict)
    parameters: dict[str, Labels] = field(default_factory=dict)
    axes: dict[tuple[str, int], Ids] = field(default_factory=dict)  # (parameter, axis) -> channels of its entries
    layers: list[Layer] = field(default_factory=list)
    streams: dict[str, Ids] = field(default_factory=dict)  # sums of an untied residual stream, by node name
    heads: dict[tuple[fx.Node, int], Ids] = field(default_factory=dict)  # (product, batch axis) -> what goes as a whole
    uses: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, str] = field(default_factory=dict)  # path of a module whose inside no rule follows -> reason
    probed: list[str] = field(default_factory=list)  # calls without a rule that act channel by channel on random data
    bordered: bool = False  # whether a layer with zero padding makes channels of constants alone
    at_this_size: int = 0  # channels that are constant for images of the example's size

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

    def call(self, node: fx.Node, *names: str) -> dict[str, Any]:
        """The arguments of a call by name, as labels or plain values; `names` are those it may be given in order."""
        named: dict[str, Any] = self.value(named_arguments(node, *names))
        return named

    def tensor(self, name: str) -> Tensor:
        entry = self._tensors.get(name)
        return attrgetter(name)(self.traced.module) if entry is None else entry

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
            data = self.traced.computed.get(name, self.tensor(name)).detach()  # exact, where the network rounds it
            fields = []
            for axis, size in enumerate(data.shape):
                if size > 1 and (name, axis) not in self.axes:
                    values = _uniform(data, axis) if name in self._fetched else np.full(size, np.nan)
                    self.axes[name, axis] = self.ledger.fresh(values)
                if size > 1:
                    fields.append(Field((axis,), self.axes[name, axis]))
            self.parameters[name] = Labels(tuple(data.shape), tuple(fields), name)
        return self.parameters[name]

    def axis_ids(self, name: str, axis: int) -> Ids:
        """Ids of one axis of a parameter, shape (size,); an axis of size 1 has an id that is never removed."""
        entry = self.parameter(name).at(axis)
        return entry.ids if entry is not None else self.ledger.varying((self.tensor(name).shape[axis],))

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
        entry = x.at(axis)
        for f in x.fields:
            if (f is not entry and not others) or (f is entry and f.axes != (axis,)):
                self.freeze(node, "channels spread over two axes meet here", f.ids)
        return entry.ids if entry is not None and entry.axes == (axis,) else None

    def freeze(self, node: fx.Node, reason: str, ids: Ids) -> None:
        self.ledger.freeze(where_of(node), reason, ids)


def where_of(node: fx.Node) -> str:
    """What a reader knows a call by."""
    return str(node.target) if node.op == "call_module" else node.name


class CutView(Protocol):
    """What a recast may ask of a cut and enter in it; `pipeline.surgery.cut.carry.Cut` says what each does."""

    analysis: Analysis
    keep: Flags

    def value(self, x: Any) -> Any: ...
    def remaining(self, ids: Ids) -> Ids: ...
    def widths(self, node: fx.Node) -> Ids: ...
    def slice(self, parameter: str, axis: int, index: Ids, ids: Ids) -> None: ...
    def regroup(self, parameter: str, rows: Ids, columns: Ids) -> None: ...
    def set_groups(self, node: fx.Node, groups: int) -> None: ...
    def fold(self, node: fx.Node, weight: str, bias: str | None, delta: Floats) -> None: ...
    def merge(
        self, node: fx.Node, weight: str, axis: int, kernel: Tensor, into: int | None, constants: int
    ) -> None: ...
    def rewrite(
        self, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> None: ...
    def freeze_numbers(self, node: fx.Node) -> None: ...
    def attribute(self, name: str | None) -> fx.Node | str | None: ...
    def call(self, target: Any, args: tuple[Any, ...]) -> tuple[str, Any, tuple[Any, ...]]: ...
    def size(self, source: Any, axis: int) -> tuple[str, Any, int]: ...


def _uniform(data: Tensor, axis: int) -> Any:
    """Per index of `axis`, the value that all entries share, or NaN; float64 (size,)."""
    values = np.full(data.shape[axis], np.nan)
    if not data.is_floating_point() or not data.numel():
        return values
    lines = data.detach().movedim(axis, 0).unsqueeze(-1)
    first = last = lines
    while first.dim() > 1:
        first, last = first[..., 0], last[..., -1]
    few = (first == last).nonzero().ravel()  # all else is not looked at, for large tensors are weights as a rule
    flat = lines.index_select(0, few).flatten(1)
    same = (flat == flat[:, :1]).all(1)
    values[few[same].cpu().numpy()] = flat[same, 0].to(torch.float64).cpu().numpy()
    return values


def named_arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """The arguments of a call by name, as the graph has them; those that are left to their defaults are not there."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


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

    def recast(cut: CutView) -> Value:
        cut.freeze_numbers(node)
        return out

    return out, recast
