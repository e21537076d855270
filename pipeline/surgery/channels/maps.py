"""Maps that depend on no input: channels that hold the same picture whatever the network is given.

Zero padding makes them: a convolution that reads constants alone sees less of them at a border. Such a channel is no
constant, but what pooling over all positions makes of it is one, for images of one size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.surgery.channels.ledger import Flags, Floats
from pipeline.surgery.trace.copies import deep_copy
from pipeline.surgery.trace.float64 import Double, in_double, widened

THROUGH: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Flatten,
)  # fmt: skip
"""Modules, and functions and methods, that make no number of what is none."""
NAMES = frozenset(
    "add iadd mul imul sub relu relu_ relu6 leaky_relu silu gelu sigmoid tanh dropout mean flatten view reshape cat "
    "contiguous avg_pool2d max_pool2d adaptive_avg_pool2d adaptive_max_pool2d getitem unsqueeze squeeze "
    "demand_size with_ones".split()
)


@dataclass(frozen=True)
class Maps:
    """By node: `fixed` (C,), whether a channel depends on no input; `values` (C,), float64, the one number that such a
    channel holds everywhere, NaN where it has several."""

    fixed: dict[str, Flags] = field(default_factory=dict)
    values: dict[str, Floats] = field(default_factory=dict)


@torch.no_grad()
def maps_of(module: fx.GraphModule, example_inputs: tuple[Any, ...]) -> Maps:
    """One run in float64 and eval mode on inputs that are no numbers; what depends on them is none either."""
    maps = Maps()
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in example_inputs):
        return maps
    blind = [torch.full_like(widened(x), torch.nan) for x in example_inputs]
    try:
        with Double():
            _Blind(deep_copy(module), maps).run(*blind)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever an operator makes of no number: then nothing is known
        return Maps()
    return maps


class _Blind(fx.Interpreter):
    def __init__(self, module: nn.Module, maps: Maps) -> None:
        super().__init__(in_double(module).eval())
        self._maps = maps

    def run_node(self, n: fx.Node) -> Any:
        out = self._value(n)
        if isinstance(out, Tensor) and out.is_floating_point() and out.dim() > 1:
            rows = out.movedim(1, 0).flatten(1)
            low, high = rows.amin(1), rows.amax(1)  # no number is the smallest and the largest of those it is among
            self._maps.fixed[n.name] = ~low.isnan().cpu().numpy()
            self._maps.values[n.name] = torch.where(low == high, low, torch.nan).cpu().numpy()
        return out

    def _value(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "get_attr", "output"):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        read = [x for x in (*args, *kwargs.values()) for x in (x if isinstance(x, list | tuple) else [x])]
        unknown = any(isinstance(x, Tensor) and bool(x.isnan().any()) for x in read)
        if not unknown:
            return super().run_node(n)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return _mixed(module, args[0])
        name = str(getattr(n.target, "__name__", n.target))
        if isinstance(module, THROUGH) if module is not None else name in NAMES:
            return super().run_node(n)
        value = n.meta.get("val")
        if isinstance(value, Tensor):
            return torch.full(value.shape, torch.nan, dtype=torch.float64)
        raise NotImplementedError(name)


def _mixed(layer: Any, x: Tensor) -> Tensor:
    """What a layer makes of channels of which some are no numbers: outputs with a weight other than 0 for one of those
    are none."""
    weight, linear = layer.weight, isinstance(layer, nn.Linear)
    if not linear and x.dim() != weight.dim():
        raise NotImplementedError("a convolution of one image")
    axis, groups = (x.dim() - 1, 1) if linear else (1, layer.groups)
    unknown = x.movedim(axis, 0).flatten(1).isnan().any(1)
    line = [-1 if at == axis else 1 for at in range(x.dim())]
    out: Tensor = layer(x.masked_fill(unknown.view(line), 0.0))
    taps = (weight != 0).unflatten(0, (groups, -1)).flatten(3).any(3) if weight.dim() > 2 else (weight != 0)[None]
    reached = (taps & unknown.view(groups, 1, -1)).any(2).flatten()
    return out.masked_fill(reached.view(line), torch.nan)
