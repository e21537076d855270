"""plan.json: which output channels of which layers stay, and of which network; with safetensors, all a reload needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, fx, nn
from typing_extensions import TypeAliasType

from pipeline.surgery.channels.analysis import Analysis
from pipeline.surgery.channels.labels import Ids
from pipeline.surgery.cut.carry import Cut
from runtime.errors import UserError
from runtime.files import read_bounded

PLAN, WEIGHTS, CERTIFICATE = "plan.json", "weights.safetensors", "certificate.json"
MAX_PLAN_BYTES = 64 << 20
MAX_ELEMENTS = 1 << 28  # of one example input
DTYPES = {str(t): t for t in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
)}  # fmt: skip
META = "demport"  # key of fx.GraphModule.meta under which a compact network carries its plan


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Input(Strict):
    """One example input of the network the plan is for."""

    shape: tuple[int, ...]
    dtype: str


# One input, or several in a container.
Example = TypeAliasType("Example", "Input | tuple[Example, ...] | dict[str, Example] | None")


class Source(Strict):
    """How to build the network the plan is for: the arguments of `pipeline.models.networks.network`."""

    name: str
    args: dict[str, Any]
    num_classes: Annotated[int, Field(ge=1, le=1 << 24)] | None
    input_shape: tuple[int, int, int]


class Plan(Strict):
    """`layers`: weight name -> indices of the output channels that stay, for every layer that lost some.

    `streams`: the same for the sums of untied residual streams, by the name of the sum in the traced graph. `widths`:
    channels before, of layers and streams. `biases`: biases that a layer gained by folding constants. `computed`: calls
    of the traced graph whose results became parameters (`pipeline.surgery.cut.computed`). `ones`: weights of layers
    that read a channel of ones behind their other inputs, for the constants that entered them. `gather`: convolutions
    in gather form, by module, and how many kernels an output of them reads. `branches`: sides of additions that were
    constant and went, by the name of the call, and whether their constants are still added. `sized`: only for images of
    the size of `inputs`.
    """

    schema_: int = Field(1, alias="schema", ge=1, le=1)
    network: str
    source: Source | None
    inputs: tuple[Example, ...]
    residual: Literal["tied", "untied"]
    layers: dict[str, tuple[int, ...]]
    streams: dict[str, tuple[int, ...]]
    widths: dict[str, int]
    biases: tuple[str, ...]
    computed: tuple[str, ...] = ()
    ones: tuple[str, ...] = ()
    gather: dict[str, Annotated[int, Field(ge=1, le=1 << 16)]] = Field(default_factory=dict)
    branches: dict[str, bool] = Field(default_factory=dict)
    sized: bool = False


@dataclass(frozen=True)
class Compact:
    """`model` computes what the network given does, with fewer channels; `certificate` says what was done."""

    model: fx.GraphModule
    plan: Plan
    certificate: dict[str, Any]


def plan_of(analysis: Analysis, cut: Cut, network: str, before: Plan | None) -> Plan:
    """The plan of a cut; of a network that was cut before, against the network it was first cut from."""
    own = before or Plan(
        schema=1, network=network, source=None, inputs=(), residual="tied", layers={}, streams={}, widths={}, biases=()
    )
    gone, traced = analysis.traced.gone.keys(), analysis.traced
    widths = {name: width for name, width in own.widths.items() if name not in gone}
    old = {name: indices for name, indices in own.layers.items() if name not in gone}
    layers = _remaining({x.weight: x.ids for x in analysis.layers}, old, widths, cut)
    streams = _remaining(analysis.streams, own.streams, widths, cut)
    biases = {w.removesuffix("weight") + "bias" for w, (_, bias, _) in cut.folds.items() if bias is None}
    ones = {weight for weight, merged in cut.merged.items() if merged.into is None}
    lost = {weight.removesuffix("weight") + "bias" for weight in gone}
    computed = [name[len("computed_") : -len(".weight")] for name in traced.computed if name.startswith("computed_")]
    return own.model_copy(
        update={
            "inputs": tuple(map(_described, traced.example_inputs)),
            "residual": "untied" if analysis.residual == "untied" else "tied",
            "layers": layers, "streams": streams, "widths": widths,
            "biases": tuple(sorted((biases | set(own.biases)) - lost)), "computed": (*own.computed, *computed),
            "ones": tuple(sorted((ones | set(own.ones)) - gone)), "gather": {},
            "branches": {**own.branches, **traced.branches}, "sized": own.sized or analysis.at_this_size > 0,
        }
    )  # fmt: skip


def _remaining(
    producers: Mapping[str, Ids], before: Mapping[str, tuple[int, ...]], widths: dict[str, int], cut: Cut
) -> dict[str, tuple[int, ...]]:
    """What stays of each that lost channels, counted in the network first cut; their widths are entered in `widths`."""
    channels = dict(before)
    for name, ids in producers.items():
        indices = np.flatnonzero(cut.keep[ids])
        if len(indices) < len(ids) or name in channels:
            before_that = channels.get(name)
            widths.setdefault(name, len(ids))
            channels[name] = tuple((indices if before_that is None else np.array(before_that)[indices]).tolist())
    return channels


def read_plan(path: Path) -> Plan:
    """Read and check a plan; UserError says what does not fit."""
    try:
        plan = Plan.model_validate_json(read_bounded(path, MAX_PLAN_BYTES))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "a plan", "cut the network again") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _no_plan(path, f"{'.'.join(str(x) for x in first['loc']) or 'content'}: {first['msg']}") from None
    channels = {**plan.layers, **plan.streams}
    if set(channels) != set(plan.widths) or len(channels) < len(plan.layers) + len(plan.streams):
        raise _no_plan(path, "layers, streams and widths name different layers")
    for name, indices in channels.items():
        if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= plan.widths[name]:
            raise _no_plan(path, f"the channels of {name} are no rising numbers below {plan.widths[name]}")
    for i, x in enumerate(_tensors(plan.inputs)):
        if not len(x.shape) <= 8 or min(x.shape, default=1) < 1 or prod(x.shape) > MAX_ELEMENTS:
            raise _no_plan(path, f"inputs.{i}.shape is no shape of 1 to {MAX_ELEMENTS} elements")
        if x.dtype not in DTYPES:
            raise _no_plan(path, f"inputs.{i}.dtype is none of {', '.join(DTYPES)}")
    return plan


def _described(x: Any) -> Example:
    """Shapes and dtypes of an example input, in the containers it has."""
    if isinstance(x, Tensor):
        return Input(shape=tuple(x.shape), dtype=str(x.dtype))
    if isinstance(x, Mapping):
        return {str(key): _described(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return tuple(map(_described, x))
    if x is None:
        return None
    raise UserError(
        f"an example input is a {type(x).__name__}", "tensors, None, or dicts and lists of them", "pass those"
    )


def _tensors(inputs: Example) -> list[Input]:
    """The tensors among example inputs, in order."""
    if isinstance(inputs, Input):
        return [inputs]
    parts = inputs.values() if isinstance(inputs, dict) else inputs or ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _no_plan(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}", "a plan of schema 1 as demport writes it", "cut the network again")


def class_name(model: nn.Module) -> str:
    """Module and name of the network's class; of a compact network, of the one it was cut from."""
    before = plan_before(model)
    return before.network if before is not None else f"{type(model).__module__}.{type(model).__qualname__}"


def plan_before(model: nn.Module) -> Plan | None:
    """The plan a compact network carries."""
    return model.meta.get(META) if isinstance(model, fx.GraphModule) else None


def example_of(shape: tuple[int, ...], batch: int = 2) -> tuple[Tensor, ...]:
    """Zeros (batch, *shape), float32: inputs to trace a network of one image input with."""
    return (torch.zeros((batch, *shape)),)
