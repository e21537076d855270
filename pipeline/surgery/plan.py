"""plan.json: which output channels of which layers stay, and of which network; with safetensors, all a reload needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, fx, nn

from export.files import replacing
from pipeline.surgery.analysis import Analysis
from pipeline.surgery.computed import settle
from pipeline.surgery.cut import Cut
from pipeline.surgery.labels import Ids
from pipeline.surgery.rebuild import rebuild
from pipeline.surgery.select import Choice, choose
from pipeline.surgery.trace import trace
from runtime.errors import UserError
from runtime.files import read_bounded

PLAN, WEIGHTS, CERTIFICATE = "plan.json", "weights.safetensors", "certificate.json"
MAX_PLAN_BYTES = 64 << 20
MAX_ELEMENTS = 1 << 28  # of one example input
DTYPES = {
    str(t): t
    for t in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
}
META = "demport"  # key of fx.GraphModule.meta under which a compact network carries its plan


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Input(Strict):
    """One example input of the network the plan is for."""

    shape: tuple[int, ...]
    dtype: str


class Source(Strict):
    """How to build the network the plan is for: the arguments of `pipeline.models.build`."""

    name: str
    args: dict[str, Any]
    num_classes: Annotated[int, Field(ge=1, le=1 << 24)] | None
    input_shape: tuple[int, int, int]


class Plan(Strict):
    """`layers`: weight name -> indices of the output channels that stay, for every layer that lost some.

    `streams`: the same for the sums of untied residual streams, by the name of the sum in the traced graph. `widths`:
    channels before, of layers and streams. `biases`: biases that a layer gained by folding constants. `computed`: calls
    of the traced graph whose results became parameters (`pipeline.surgery.computed`).
    """

    schema_: int = Field(1, alias="schema", ge=1, le=1)
    network: str
    source: Source | None
    inputs: tuple[Input, ...]
    residual: Literal["tied", "untied"]
    layers: dict[str, tuple[int, ...]]
    streams: dict[str, tuple[int, ...]]
    widths: dict[str, int]
    biases: tuple[str, ...]
    computed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compact:
    """`model` computes what the network given does, with fewer channels; `certificate` says what was done."""

    model: fx.GraphModule
    plan: Plan
    certificate: dict[str, Any]


def plan_of(analysis: Analysis, cut: Cut, network: str, before: Plan | None) -> Plan:
    """The plan of a cut; of a network that was cut before, against the network it was first cut from."""
    widths = {} if before is None else dict(before.widths)
    old_layers, old_streams = ({}, {}) if before is None else (before.layers, before.streams)
    layers = _kept({x.weight: x.ids for x in analysis.layers}, old_layers, widths, cut)
    streams = _kept(analysis.streams, old_streams, widths, cut)
    biases = {w.removesuffix("weight") + "bias" for w, (_, bias, _) in cut.folds.items() if bias is None}
    computed = tuple(name.removeprefix("computed_").removesuffix(".weight") for name in analysis.traced.computed)
    inputs = tuple(Input(shape=tuple(x.shape), dtype=str(x.dtype)) for x in analysis.traced.example_inputs)
    return Plan(
        schema=1, network=before.network if before else network, source=before.source if before else None,
        inputs=inputs, residual="untied" if analysis.residual == "untied" else "tied",
        layers=layers, streams=streams, widths=widths,
        biases=tuple(sorted(biases | set(() if before is None else before.biases))),
        computed=(() if before is None else before.computed) + computed,
    )  # fmt: skip


def _kept(
    made: Mapping[str, Ids], before: Mapping[str, tuple[int, ...]], widths: dict[str, int], cut: Cut
) -> dict[str, tuple[int, ...]]:
    """What stays of each that lost channels, counted in the network first cut; their widths are entered in `widths`."""
    kept = dict(before)
    for name, ids in made.items():
        left = np.flatnonzero(cut.keep[ids])
        if len(left) < len(ids) or name in kept:
            before_that = kept.get(name)
            widths.setdefault(name, len(ids))
            kept[name] = tuple((left if before_that is None else np.array(before_that)[left]).tolist())
    return kept


def read_plan(path: Path) -> Plan:
    """Read and check a plan; UserError says what does not fit."""
    try:
        plan = Plan.model_validate_json(read_bounded(path, MAX_PLAN_BYTES))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "a plan", "cut the network again") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _no_plan(path, f"{'.'.join(str(x) for x in first['loc']) or 'content'}: {first['msg']}") from None
    kept = {**plan.layers, **plan.streams}
    if set(kept) != set(plan.widths) or len(kept) < len(plan.layers) + len(plan.streams):
        raise _no_plan(path, "layers, streams and widths name different layers")
    for name, left in kept.items():
        if not left or list(left) != sorted(set(left)) or left[0] < 0 or left[-1] >= plan.widths[name]:
            raise _no_plan(path, f"the channels of {name} are no rising numbers below {plan.widths[name]}")
    for i, x in enumerate(plan.inputs):
        if not 0 < len(x.shape) <= 8 or min(x.shape) < 1 or prod(x.shape) > MAX_ELEMENTS:
            raise _no_plan(path, f"inputs.{i}.shape is no shape of 1 to {MAX_ELEMENTS} elements")
        if x.dtype not in DTYPES:
            raise _no_plan(path, f"inputs.{i}.dtype is none of {', '.join(DTYPES)}")
    return plan


def _no_plan(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}", "a plan of schema 1 as demport writes it", "cut the network again")


def apply_plan(model: nn.Module, plan: Plan) -> fx.GraphModule:
    """The compact network of `plan` with the weights that `model` happens to have; UserError where it does not fit."""
    found = class_name(model)
    if found != plan.network:
        raise UserError(
            f"the plan is for a {plan.network}, the network is a {found}",
            "the network the plan was made for",
            "build that network",
        )
    example = tuple(torch.zeros(1, dtype=DTYPES[x.dtype]).expand(x.shape) for x in plan.inputs)
    traced = settle(trace(model, example), only=plan.computed)
    analysis = Analysis(traced, residual=plan.residual).run()
    if analysis.traced.frozen is not None and plan.widths:
        raise UserError(
            analysis.traced.frozen, "the network the plan was made for", "use the library versions of the cut"
        )
    made = {layer.weight: layer.ids for layer in analysis.layers} | analysis.streams
    kept = {**plan.layers, **plan.streams}
    have = {name: len(ids) for name, ids in made.items()}
    for name, width in plan.widths.items():
        if have.get(name) != width:
            raise UserError(
                f"the plan cuts {name} of {width} channels, the network has {have.get(name, 'no such layer')}",
                "the network the plan was made for", "use the same model, arguments and library versions",
            )  # fmt: skip
    strange = set(plan.biases) - {layer.weight.removesuffix("weight") + "bias" for layer in analysis.layers}
    if strange:
        raise UserError(f"the plan adds {min(strange)}", "biases of the network's layers", "cut the network again")
    choice, cut = choose(analysis, 1, lambda choice: _follow(made, kept, choice))
    for name, ids in made.items():
        wanted = kept.get(name, tuple(range(len(ids))))
        if tuple(np.flatnonzero(choice.keep_ids()[ids]).tolist()) != wanted:
            raise UserError(
                f"the plan's channels of {name} cannot be cut so in this network",
                "a plan made for it",
                "cut the network again",
            )
    cut.folds.clear()
    compact = rebuild(analysis, cut, gained=plan.biases)
    compact.meta[META] = plan
    return compact


def _follow(made: Mapping[str, Ids], kept: Mapping[str, tuple[int, ...]], choice: Choice) -> None:
    """Take the plan's decision instead of one from the weights."""
    choice.keep[:] = True
    for name, left in kept.items():
        gone = np.ones(len(made[name]), bool)
        gone[list(left)] = False
        choice.keep[choice.classes[made[name][gone]]] = False


def class_name(model: nn.Module) -> str:
    """Module and name of the network's class; of a compact network, of the one it was cut from."""
    before = plan_before(model)
    return before.network if before is not None else f"{type(model).__module__}.{type(model).__qualname__}"


def plan_before(model: nn.Module) -> Plan | None:
    """The plan a compact network carries."""
    return model.meta.get(META) if isinstance(model, fx.GraphModule) else None


def save_compact(compact: Compact, folder: Path | str, source: Source | None = None) -> None:
    """Write plan.json, weights.safetensors and certificate.json; with `source`, `load_compact` builds the network."""
    from pipeline.models import save_weights

    folder = Path(folder)
    plan = compact.plan if source is None else compact.plan.model_copy(update={"source": source})
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(compact.model, folder / WEIGHTS)
    texts: Mapping[str, Any] = {PLAN: plan.model_dump(mode="json", by_alias=True), CERTIFICATE: compact.certificate}
    for name, content in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_compact(folder: Path | str, model: nn.Module | Callable[[], nn.Module] | None = None) -> fx.GraphModule:
    """The compact network saved in `folder`, in eval mode, bit for bit.

    `model`: the network before the cut, or its maker, where the plan names none. Raises UserError where the files do
    not fit it.
    """
    from pipeline.config import Model
    from pipeline.models import build, load_weights

    folder = Path(folder)
    plan = read_plan(folder / PLAN)
    if model is None and plan.source is None:
        raise UserError(
            f"{folder / PLAN} names no network", "a plan with a source", "pass the network: load_compact(folder, model)"
        )
    if model is None and plan.source is not None:
        s = plan.source
        model = build(Model(name=s.name, args=s.args), num_classes=s.num_classes, input_shape=s.input_shape)
    network = model if isinstance(model, nn.Module) else model()  # type: ignore[misc]
    compact = apply_plan(network, plan)
    load_weights(compact, folder / WEIGHTS)
    return compact.eval()


def example_of(shape: tuple[int, ...], batch: int = 2) -> tuple[Tensor, ...]:
    """Zeros (batch, *shape), float32: inputs to trace a network of one image input with."""
    return (torch.zeros((batch, *shape)),)
