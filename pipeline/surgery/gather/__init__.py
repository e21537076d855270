"""The gather form of a convolution whose outputs read few whole kernels: Gather, depthwise convolution, sum.

With `fan_in` kernels for each output it costs fan_in / inputs of the multiply-accumulates. It computes the same sums in
another order, so it is held to the law once more, against the compact network it was made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.surgery.plan import META, Compact, Plan
from pipeline.surgery.proof.certificate import elements
from pipeline.surgery.proof.equivalence import doubled, relative
from pipeline.surgery.proof.inputs import fresh_inputs, widened_all
from pipeline.surgery.trace.float64 import Double
from runtime.errors import UserError

MOST = 16  # kernels an output: each is a Gather, a convolution and an Add of the whole layer
LEAST_GAIN = 2  # times fewer multiply-accumulates


class GatherConv2d(nn.Module):
    """x (N, I, H, W) -> (N, O, H', W'): `fan_in` times channels by number, each with a kernel of its own, summed.

    `index_J` (O,), int64, are the channels that the outputs read in turn J; `taps[J]` holds the kernels (O, 1, kh, kw),
    the first one also the bias.
    """

    def __init__(self, conv: nn.Conv2d, fan_in: int) -> None:
        """All kernels are zero; `conv` gives sizes, dtype and device."""
        super().__init__()
        self.in_channels, self.out_channels, self.fan_in = conv.in_channels, conv.out_channels, fan_in
        like = conv.weight
        self.taps = nn.ModuleList()
        for turn in range(fan_in):
            self.register_buffer(f"index_{turn}", torch.zeros(conv.out_channels, dtype=torch.int64, device=like.device))
            tap = nn.utils.skip_init(  # type: ignore[no-untyped-call]
                nn.Conv2d, conv.out_channels, conv.out_channels, conv.kernel_size,
                stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.out_channels,
                bias=conv.bias is not None and turn == 0, padding_mode=conv.padding_mode, device=like.device,
                dtype=like.dtype,
            )  # fmt: skip
            for parameter in tap.parameters():
                nn.init.zeros_(parameter)
            self.taps.append(tap)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.taps[0](x.index_select(1, self.get_buffer("index_0")))
        for turn in range(1, self.fan_in):
            out = out + self.taps[turn](x.index_select(1, self.get_buffer(f"index_{turn}")))
        return out


@torch.no_grad()
def gather_form(conv: nn.Conv2d) -> GatherConv2d:
    """The same function; outputs that read fewer kernels than the most read zeros beside them."""
    reads = kernels_read(conv.weight)
    order = (~reads).to(torch.int8).sort(dim=1, stable=True).indices  # what is read comes first, by number
    form = GatherConv2d(conv, max(1, int(reads.sum(1).max())))
    outputs = torch.arange(conv.out_channels, device=conv.weight.device)
    for turn, tap in enumerate(form.taps):
        channels = order[:, turn]
        form.get_buffer(f"index_{turn}").copy_(channels)
        kernels = conv.weight[outputs, channels] * reads[outputs, channels][:, None, None]
        tap.get_parameter("weight").copy_(kernels.unsqueeze(1))
    if conv.bias is not None:
        form.taps[0].get_parameter("bias").copy_(conv.bias)
    return form


def kernels_read(weight: Tensor) -> Tensor:
    """bool (out, in): whether any entry of the kernel is not zero."""
    return weight.detach().ne(0).flatten(2).any(2)


def candidates(network: nn.Module) -> dict[str, int]:
    """Name of each convolution that the gather form would do less in -> the most kernels that an output of it reads."""
    modules = dict(network.named_modules())
    uses = Counter(id(m.weight) for m in modules.values() if isinstance(m, nn.Conv2d))
    layers: dict[str, int] = {}
    for name, module in modules.items():
        if type(module) is not nn.Conv2d or module.groups > 1 or uses[id(module.weight)] > 1:
            continue
        fan_in = max(1, int(kernels_read(module.weight).sum(1).max()))
        if fan_in <= MOST and LEAST_GAIN * fan_in <= module.in_channels:
            layers[name] = fan_in
    return layers


def put(network: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put modules in the places of others; those that were there."""
    before = {name: network.get_submodule(name) for name in modules}
    for name, module in modules.items():
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, module)
    return before


def gathered(
    compact: Compact, example_inputs: tuple[Tensor, ...], names: list[str] | None = None, tolerance: float = 1e-9
) -> Compact:
    """The compact network with these layers in gather form (None: all `candidates`), in place.

    Raises UserError where its answers differ from the compact network's by more than `tolerance`, relative, in float64.
    """
    fan_in = candidates(compact.model)
    chosen = fan_in if names is None else {name: fan_in[name] for name in names}
    if not chosen:
        return compact
    exact, mode = doubled(compact.model), Double()
    forms = {name: gather_form(_conv(compact.model, name)) for name in chosen}
    sets = [widened_all(fresh_inputs(example_inputs, batch, batch)) for batch in (1, 3)]
    with torch.no_grad(), mode:
        expected = [exact(*x) for x in sets]
        put(exact, {name: doubled(form) for name, form in forms.items()})
        worst = max(relative(exact(*x), answer) for x, answer in zip(sets, expected, strict=True))
    if not worst <= tolerance:
        raise UserError(
            f"the gather form differs by {worst:.2g} (relative, float64)", f"at most {tolerance:g}",
            "set surgery.gather to off, and report it with the network's code",
        )  # fmt: skip
    put(compact.model, forms)
    plan = compact.plan.model_copy(update={"gather": {**compact.plan.gather, **chosen}})
    compact.model.meta[META] = plan
    rows = [{"layer": name, "fan_in": n} for name, n in chosen.items()]
    document = {"layers": rows, "max_rel_diff": worst, "tolerance": tolerance}
    counts = {**compact.certificate["parameters"], "after": elements(compact.model)}
    return replace(compact, plan=plan, certificate={**compact.certificate, "gather": document, "parameters": counts})


def _conv(network: nn.Module, name: str) -> nn.Conv2d:
    module = network.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def take_form(network: fx.GraphModule, plan: Plan) -> None:
    """Give layers the gather form that a plan says, without values. UserError where the network lacks such a layer."""
    modules = dict(network.named_modules())
    forms: dict[str, nn.Module] = {}
    for name, fan_in in plan.gather.items():
        conv: Any = modules.get(name)
        if type(conv) is not nn.Conv2d or conv.groups > 1 or not 1 <= fan_in <= conv.in_channels:
            raise UserError(
                f"the plan gathers {fan_in} inputs for {name}",
                "an ungrouped convolution with as many",
                "cut the network again",
            )
        forms[name] = GatherConv2d(conv, fan_in)
    put(network, forms)


def demand_channels(network: nn.Module, where: str) -> None:
    """UserError where a layer in gather form reads a channel that does not enter it."""
    for name, module in network.named_modules():
        if not isinstance(module, GatherConv2d):
            continue
        for buffer in module.buffers(recurse=False):
            if bool(((buffer < 0) | (buffer >= module.in_channels)).any()):
                raise UserError(
                    f"{where}: {name} reads channels that are not there", f"numbers below {module.in_channels}",
                    "cut the network again",
                )  # fmt: skip


def demand_none(model: nn.Module) -> None:
    """UserError where a network that is to be cut has layers in gather form."""
    plan: Any = model.meta.get(META) if isinstance(model, fx.GraphModule) else None
    if isinstance(plan, Plan) and plan.gather:
        raise UserError(
            f"{min(plan.gather)} has the gather form, which is not cut again", "a network without",
            "cut the network with surgery.gather off, and gather at the end",
        )  # fmt: skip
