"""The channels of a network by class: which parameters make each, which read it, and sums over both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.channels.costs import Costs, costs_of
from pipeline.surgery.channels.labels import Ids
from pipeline.surgery.channels.ledger import Flags, Floats
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import Traced
from pipeline.training.steering.prunable import Rows, candidates


@dataclass(frozen=True)
class Site:
    """The output of a module of the network on whose `axis` lie the channels of these classes, not mixed yet: the batch
    norm behind a layer, else the layer."""

    module: str
    axis: int
    classes: Ids


@dataclass(frozen=True)
class Channels:
    """A class is a set of channels that live and go together, one of each layer of its group."""

    traced: Traced
    costs: Costs
    makers: tuple[Rows, ...]
    """Weights by their output axis: where a channel is made."""
    vectors: tuple[Rows, ...]
    """One entry a channel: biases, scales, shifts, slopes."""
    readers: tuple[Rows, ...]
    """Weights by an input axis."""
    names: dict[str, str]
    """Graph's name of a parameter -> the network's."""
    sites: tuple[Site, ...]
    """Where each channel that a layer makes is complete."""
    open_sites: Flags
    """(count,): classes all of whose layers have a site."""

    @property
    def own(self) -> tuple[Rows, ...]:
        """What makes a channel: where it is 0, so is the channel."""
        return self.makers + self.vectors

    @property
    def scales(self) -> tuple[Rows, ...]:
        """Of batch norms, with a shift or without."""
        return tuple(part for part in self.vectors if part.name in self.costs.scales)

    @property
    def everything(self) -> Flags:
        return np.ones(self.costs.count, bool)

    def can_go(self, alive: Flags) -> Flags:
        """(count,): living classes that would leave if all their own entries were 0."""
        return alive & candidates(self.traced, self.costs, self.own, alive)

    def total(self, rows: Sequence[Rows], entries: Callable[[nn.Parameter], Tensor | None]) -> Tensor:
        """(count,) float64: by class the sum over its rows of `entries`, of the parameter's shape; None: nothing."""
        device = rows[0].tensor.device if rows else torch.device("cpu")
        sums = torch.zeros(self.costs.count, dtype=torch.float64, device=device)
        for part in rows:
            values = entries(part.tensor)
            if values is not None:
                each = values.detach().movedim(part.axis, 0).reshape(len(part.classes), -1).sum(1, dtype=torch.float64)
                sums.index_add_(0, index_of(part).to(device), each.to(device))
        return sums

    def count_of(self, rows: Sequence[Rows]) -> Floats:
        """(count,): how many entries of these rows each class has."""
        return numbers(self.total(rows, torch.ones_like))


def index_of(part: Rows) -> Tensor:
    """The class of each row, int64, on the parameter's device."""
    return torch.as_tensor(part.classes, dtype=torch.int64, device=part.tensor.device)


def numbers(sums: Tensor) -> Floats:
    return np.asarray(sums.detach().double().cpu().numpy())


def channels_of(traced: Traced, network: nn.Module, trained: Collection[Tensor]) -> Channels:
    """Of the parameters of `network` that are `trained`; the others stay as they are."""
    analysis = analyse(traced)
    classes = analysis.ledger.classes()
    own_names, ids = {id(p): name for name, p in network.named_parameters()}, {id(p) for p in trained}
    made_on = {(layer.weight, layer.axis) for layer in analysis.layers}
    makers: list[Rows] = []
    vectors: list[Rows] = []
    readers: list[Rows] = []
    names: dict[str, str] = {}
    for (name, axis), channel_ids in analysis.axes.items():
        tensor = analysis.tensor(name)
        if id(tensor) not in ids or id(tensor) not in own_names or len(channel_ids) != tensor.shape[axis]:
            continue
        assert isinstance(tensor, nn.Parameter)
        names[name] = own_names[id(tensor)]
        rows = Rows(name, tensor, axis, classes[channel_ids])
        (vectors if tensor.dim() == 1 else makers if (name, axis) in made_on else readers).append(rows)
    sites, open_sites = _sites(analysis, classes, network)
    costs = costs_of(analysis)
    return Channels(traced, costs, tuple(makers), tuple(vectors), tuple(readers), names, sites, open_sites)


def _sites(analysis: Analysis, classes: Ids, network: nn.Module) -> tuple[tuple[Site, ...], Flags]:
    modules, sites = dict(network.named_modules()), dict[str, Site]()
    open_sites = np.ones(int(classes.max(initial=-1)) + 1, bool)
    for layer in analysis.layers:
        node, own = layer.node, classes[layer.ids]
        axis = 1 if analysis.tensor(layer.weight).dim() > 2 else -1
        while len(node.users) == 1 and _is_batch_norm(analysis, following := next(iter(node.users))):
            node, axis = following, 1
        if node.op == "call_module" and str(node.target) in modules:
            sites[str(node.target)] = Site(str(node.target), axis, own)
        else:
            open_sites[own] = False
    return tuple(sites.values()), open_sites


def _is_batch_norm(analysis: Analysis, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(analysis.module(node), nn.modules.batchnorm._BatchNorm)


class Means:
    """Means over steps of sums by class, from the last removal on; `values` before the division, by what they are."""

    def __init__(self) -> None:
        self.steps, self.values = 0, dict[str, Tensor]()

    def clear(self) -> None:
        self.steps, self.values = 0, {}

    def add(self, **sums: Tensor) -> None:
        for key, value in sums.items():
            self.values[key] = self.values[key] + value if key in self.values else value
        self.steps += 1

    def mean(self, key: str, count: int) -> Floats:
        """(count,); 0 where no step was seen."""
        return numbers(self.values[key]) / self.steps if self.steps else np.zeros(count)

    def saved(self, channels: Channels) -> tuple[dict[str, Tensor], dict[str, int]]:
        """By the weights that make the channels."""
        tensors = {
            f"{key}|{part.name}": value[index_of(part).to(value.device)]
            for key, value in self.values.items()
            for part in channels.makers
        }
        return tensors, {"steps": self.steps}

    def load(self, tensors: Mapping[str, Tensor], document: Mapping[str, int], channels: Channels) -> None:
        self.clear()
        self.steps, makers = int(document["steps"]), {part.name: part for part in channels.makers}
        for name, value in tensors.items():
            key, part = name.split("|")[0], makers[name.split("|")[1]]
            index = index_of(part)
            own = self.values.setdefault(key, torch.zeros(channels.costs.count, dtype=value.dtype, device=index.device))
            own[index] = value.to(index.device)
