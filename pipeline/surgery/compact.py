"""A compact network from its plan: written to a folder, and loaded from it bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pipeline.surgery.channels.analysis import Analysis, Rule
from pipeline.surgery.channels.labels import Ids
from pipeline.surgery.cut.choose import Choice, choose
from pipeline.surgery.cut.computed import settled_weights
from pipeline.surgery.cut.constant import planned_constants
from pipeline.surgery.cut.rebuild import rebuild
from pipeline.surgery.gather import demand_channels, take_form
from pipeline.surgery.plan import (
    CERTIFICATE,
    DTYPES,
    META,
    PLAN,
    WEIGHTS,
    Compact,
    Example,
    Input,
    Plan,
    Source,
    class_name,
    read_plan,
)
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import trace, unwrapped
from runtime.errors import UserError
from runtime.files import replacing

OPTIONAL = ("ones", "gather", "branches", "sized")  # of a plan: not written where there is nothing to say
# Modules of networks that plans name as they were called when the plans were written.
MOVED = {
    "pipeline.networks.cifar": "pipeline.models.cifar", "pipeline.networks.demo": "pipeline.models.demo",
}  # fmt: skip


def save_compact(compact: Compact, folder: Path | str, source: Source | None = None) -> None:
    """Write plan.json, weights.safetensors and certificate.json; with `source`, `load_compact` builds the network."""
    from pipeline.models.weights import save_weights

    folder = Path(folder)
    plan = compact.plan if source is None else compact.plan.model_copy(update={"source": source})
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(compact.model, folder / WEIGHTS)
    document = plan.model_dump(mode="json", by_alias=True, exclude={key for key in OPTIONAL if not getattr(plan, key)})
    texts: Mapping[str, Any] = {PLAN: document, CERTIFICATE: compact.certificate}
    for name, content in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_compact(
    folder: Path | str,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    rules: Mapping[Any, Rule] | None = None,
) -> fx.GraphModule:
    """The compact network saved in `folder`, in eval mode, bit for bit.

    `model`: the network before the cut, or its maker, where the plan names none. `rules`: as in `shrink`. Raises
    UserError where the files do not fit it.
    """
    from pipeline.models.weights import load_weights, network

    folder = Path(folder)
    plan = read_plan(folder / PLAN)
    if model is None and plan.source is None:
        raise UserError(
            f"{folder / PLAN} names no network", "a plan with a source", "pass the network: load_compact(folder, model)"
        )
    if model is None and plan.source is not None:
        s = plan.source
        model = network(s.name, s.args, num_classes=s.num_classes, input_shape=s.input_shape, classifies=False)
    whole = model if isinstance(model, nn.Module) else model()  # type: ignore[misc]
    compact = apply_plan(whole, plan, rules)
    load_weights(compact, folder / WEIGHTS)
    demand_channels(compact, str(folder / WEIGHTS))
    return compact.eval()


def apply_plan(model: nn.Module, plan: Plan, rules: Mapping[Any, Rule] | None = None) -> fx.GraphModule:
    """The compact network of `plan` with the weights that `model` happens to have; UserError where it does not fit."""
    model = unwrapped(model)
    actual = class_name(model)
    if actual != renamed(plan.network):
        raise UserError(
            f"the plan is for a {plan.network}, the network is a {actual}",
            "the network the plan was made for",
            "build that network",
        )
    example: Any = tuple(map(_zeros, plan.inputs))
    traced, _ = settled_weights(replace(trace(model, example, rules), probes=True), only=plan.computed)
    traced = planned_constants(traced, plan.branches, plan.sized)
    analysis = analyse(traced, residual=plan.residual, planned=plan.layers)
    if analysis.traced.frozen is not None and plan.widths:
        raise UserError(
            analysis.traced.frozen, "the network the plan was made for", "use the library versions of the cut"
        )
    producers = {layer.weight: layer.ids for layer in analysis.layers} | analysis.streams
    channels = {**plan.layers, **plan.streams}
    _demand_layers(plan, analysis, producers)
    choice, cut = choose(analysis, 1, lambda choice: _follow(producers, channels, choice))
    for name, ids in producers.items():
        expected = channels.get(name, tuple(range(len(ids))))
        if tuple(np.flatnonzero(choice.keep_ids()[ids]).tolist()) != expected:
            raise UserError(
                f"the plan's channels of {name} cannot be cut so in this network",
                "a plan made for it",
                "cut the network again",
            )
    cut.folds.clear()
    cut.merged.clear()
    compact = rebuild(analysis, cut, gained=plan.biases, ones=plan.ones)
    take_form(compact, plan)
    compact.meta[META] = plan
    return compact


def _demand_layers(plan: Plan, analysis: Analysis, producers: Mapping[str, Ids]) -> None:
    """UserError where the network lacks a layer of the plan, or has it of another width."""
    have = {name: len(ids) for name, ids in producers.items()}
    for name, width in plan.widths.items():
        if have.get(name) != width:
            raise UserError(
                f"the plan cuts {name} of {width} channels, the network has {have.get(name, 'no such layer')}",
                "the network the plan was made for", "use the same model, arguments and library versions",
            )  # fmt: skip
    strange = set(plan.biases) - {layer.weight.removesuffix("weight") + "bias" for layer in analysis.layers}
    if strange:
        raise UserError(f"the plan adds {min(strange)}", "biases of the network's layers", "cut the network again")
    strange = set(plan.ones) - {layer.weight for layer in analysis.layers if analysis.tensor(layer.weight).dim() > 2}
    if strange:
        raise UserError(
            f"the plan gives a channel of ones to {min(strange)}",
            "convolutions of the network",
            "cut the network again",
        )


def _follow(producers: Mapping[str, Ids], channels: Mapping[str, tuple[int, ...]], choice: Choice) -> None:
    """Take the plan's decision instead of one from the weights."""
    choice.keep[:] = True
    for name, indices in channels.items():
        gone = np.ones(len(producers[name]), bool)
        gone[list(indices)] = False
        choice.keep[choice.classes[producers[name][gone]]] = False


def renamed(network: str) -> str:
    """The class of a plan under the name it has today."""
    module, _, name = network.rpartition(".")
    return f"{MOVED.get(module, module)}.{name}"


def _zeros(x: Example) -> Any:
    if isinstance(x, Input):
        return (
            torch.zeros(1, dtype=DTYPES[x.dtype]).expand(x.shape) if x.shape else torch.zeros((), dtype=DTYPES[x.dtype])
        )
    if isinstance(x, dict):
        return {key: _zeros(value) for key, value in x.items()}
    return None if x is None else tuple(map(_zeros, x))
