"""The channels of a network while it trains: where they are watched, and which parameters a dead one owns."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from pipeline.surgery.channels.analysis import Analysis, describe
from pipeline.surgery.channels.labels import Labels
from pipeline.surgery.cut.carry import cut_mask
from pipeline.surgery.cut.choose import choose
from pipeline.surgery.rules.elementwise import ACTIVATION_MODULES, ACTIVATIONS, EXACT_ACTIVATIONS
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import Traced, in_place, trace, unwrapped
from pipeline.surgery.trace.copies import modules_by_path
from pipeline.surgery.watch.ownership import Units

Dead = Mapping[str, Tensor]  # watched output -> bool (channels,), True where dead


class Anatomy:
    """The channels of a network while it trains; shares the network's parameters, so it never goes stale.

    `watch`: name of each activation output -> its number of channels. `axis`: name -> channel axis. `exact`: names
    whose zeros are values and not averages (ReLU, ReLU6).
    """

    def __init__(self, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
        self.model = model = unwrapped(model)
        self.traced: Traced = trace(model, example_inputs)
        structure = analyse(self.traced)
        self.watch: dict[str, int] = {}
        self.axis: dict[str, int] = {}
        self.exact: set[str] = set()
        for node in self.traced.module.graph.nodes:
            labels = structure.env[node]
            if _activates(structure, node) and isinstance(labels, Labels) and len(labels.fields) == 1:
                axes = labels.fields[0].axes
                if len(axes) == 1:
                    self.watch[node.name] = labels.shape[axes[0]]
                    self.axis[node.name] = axes[0]
                    if describe(structure, node).lower().rstrip("_") in EXACT_ACTIVATIONS:
                        self.exact.add(node.name)
        self._structure, self._classes = structure, structure.ledger.classes()

    @property
    def layer_channels(self) -> dict[str, int]:
        """Output channels of each layer that makes channels, by weight name; the network's outputs are left out."""
        a = self._structure
        fixed = {int(c) for f in a.ledger.freezes for c in self._classes[f.ids]}
        return {x.weight: len(x.ids) for x in a.layers if not set(self._classes[x.ids].tolist()) <= fixed}

    @property
    def channels(self) -> int:
        """Output channels of all layers whose channels can go."""
        return sum(self.layer_channels.values())

    @torch.no_grad()
    def observe(self, model_inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The watched outputs in eval mode, each (B, ..., C, ...) with channels on `axis[name]`."""
        modes = [(m, m.training) for root in (self.model, self.traced.module) for m in modules_by_path(root).values()]
        for m, _ in modes:
            m.training = False
        try:
            watcher = _Watcher(self.traced.module, set(self.watch))
            watcher.run(*model_inputs)
        finally:
            for m, training in modes:
                m.training = training
        return watcher.seen

    def removable(self, dead: Dead) -> dict[str, Tensor]:
        """Per layer (weight name), which output channels nobody would miss; bool (channels,)."""
        a = analyse(self.traced, dead=dead)
        classes = a.ledger.classes()
        gone = a.ledger.removable(classes)
        return {x.weight: torch.as_tensor(gone[classes[x.ids]]) for x in a.layers if x.weight in self.layer_channels}

    def dead_count(self, dead: Dead) -> int:
        """How many of `channels` nobody would miss."""
        return sum(int(mask.sum()) for mask in self.removable(dead).values())

    def live_masks(self, dead: Dead) -> dict[str, Tensor]:
        """Per parameter a float mask that broadcasts to it: 0 where the entry makes nothing but dead units.

        And 0 where cutting the dead channels removes the entry. A channel of a residual stream is made of several
        units, which die one by one, and is cut with the last; of a layer that is dead as a whole a cut keeps one.
        """
        a = analyse(self.traced, dead=dead)
        _, cut = choose(a, 1)
        gone, names, masks = self._units.gone(dead), a.names, {}
        for name, p in self.model.named_parameters():
            key = a.canonical(name) if name in names else name
            mask = cut_mask(cut, key, p)
            if key in gone:
                live = torch.as_tensor(~gone[key], dtype=p.dtype, device=p.device)
                mask = live if mask is None else _product(mask, live)
            masks[name] = torch.ones((), device=p.device) if mask is None else mask
        return masks

    @cached_property
    def _units(self) -> Units:
        return Units(self._structure, self.axis)


class _Watcher(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
        self._names, self._modules = names, modules_by_path(module, every=True)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Tensor:
        out: Tensor = super().run_node(n)
        if n.name in self._names:
            overwritten = any(in_place(user, self._modules) for user in n.users)
            self.seen[n.name] = out.clone() if overwritten else out
        return out


def _activates(a: Analysis, node: fx.Node) -> bool:
    if node.op == "call_module":
        kinds = (*ACTIVATION_MODULES, nn.PReLU)
        return type(a.module(node)) in kinds
    return node.op in ("call_function", "call_method") and describe(a, node).rstrip("_") in ACTIVATIONS


def _product(mask: Tensor, live: Tensor) -> Tensor:
    """In the memory of `mask` where that is as large: the masks of wide layers have a megabyte. Both of one rank."""
    fits = all(n in (1, size) for n, size in zip(live.shape, mask.shape, strict=True))
    return mask.mul_(live) if fits else mask * live


def anatomy(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Anatomy:
    """The anatomy of `model`; inputs (B, ...) as the network takes them."""
    return Anatomy(model, example_inputs)
