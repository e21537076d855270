"""`shrink`: one call from a network with dead channels to the compact one, its plan and its certificate."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from torch import Tensor, fx, nn

from pipeline.surgery.channels.analysis import ASKED, Analysis, Rule
from pipeline.surgery.cut.carry import Cut
from pipeline.surgery.cut.choose import Choice, choose
from pipeline.surgery.cut.computed import settled
from pipeline.surgery.cut.rebuild import rebuild
from pipeline.surgery.gather import demand_none
from pipeline.surgery.plan import META, Compact, class_name, plan_before, plan_of
from pipeline.surgery.proof.certificate import certificate
from pipeline.surgery.proof.equivalence import check_law
from pipeline.surgery.rules.probe import PROBED
from pipeline.surgery.rules.walk import analyse
from pipeline.surgery.trace import Traced, trace, unwrapped
from pipeline.surgery.trace.copies import modules_by_path
from runtime.errors import UserError
from runtime.measure import collector_paused

Outcome = TypeVar("Outcome")


@collector_paused()
def shrink(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    dead: Mapping[str, Tensor] | None = None,
    *,
    align: int = 1,
    residual: Literal["tied", "untied"] = "tied",
    real: Sequence[tuple[Tensor, ...]] = (),
    tolerance: float = 1e-9,
    verify: bool = True,
    rules: Mapping[Any, Rule] | None = None,
    freeze: Sequence[str] = (),
    constants: bool = True,
) -> Compact:
    """Cut the dead channels out of `model`, which is left untouched.

    `dead`: watched output (see `Anatomy.watch`) -> bool (channels,), True where a census saw only zeros; None takes
    proof from the weights alone. `align`: dead channels are kept up to this multiple, per group of layers, the most
    alive first. `real`: inputs the law is checked on beside random ones. `verify=False` leaves the law unchecked, and
    the certificate says so. `rules`: rules of your own, by function, method's name or module type. `freeze`: names of
    modules in which nothing is cut. `constants`: whether parts that carry only constants go as a whole
    (`cut.constant`). Raises UserError where the law does not hold, and ValueError where a mask does not fit.
    """
    model = unwrapped(model)
    demand_none(model)
    before = plan_before(model)
    if before is not None and before.residual == "untied":
        residual = "untied"  # one plan against the first network holds both cuts
    traced, prepared = settled(replace(trace(model, example_inputs, rules), probes=True), constants and not freeze)
    demand_modules(traced, freeze)

    def attempt(traced: Traced) -> Compact:
        if prepared is None or not traced.probes or dead or freeze or residual != prepared.residual:
            analysis, choice, cut = cut_of(traced, dead, align=align, residual=residual, freeze=freeze)
        else:
            analysis, (choice, cut) = prepared, choose(prepared, align)
        return finish(model, analysis, choice, cut, real=real, tolerance=tolerance, verify=verify)

    return held(traced, attempt)


def held(traced: Traced, attempt: Callable[[Traced], Outcome]) -> Outcome:
    """The attempt with calls without a rule tried on random data; where the law does not hold then, with those frozen.

    Such a call may do on other data what it did not do on those it was tried with.
    """
    try:
        return attempt(replace(traced, probes=True))
    except UserError:
        if not any(PROBED in node.meta for node in traced.module.graph.nodes):
            raise
    return attempt(replace(traced, probes=False))


def demand_modules(traced: Traced, names: Sequence[str]) -> None:
    """UserError where a name is that of no module."""
    paths = modules_by_path(traced.module, every=True)
    for name in [n for n in names if n not in paths]:
        near = difflib.get_close_matches(name, paths, 1, 0.0)[0]
        raise UserError(
            f"no module of the network is named {name}",
            f"names of modules, such as {near}",
            "see model.named_modules()",
        )


def cut_of(
    traced: Traced, dead: Mapping[str, Tensor] | None, *, align: int | Mapping[str, int] = 1, residual: str = "tied",
    freeze: Sequence[str] = (),
) -> tuple[Analysis, Choice, Cut]:  # fmt: skip
    """Analysis, choice and cut of a traced network."""
    dead = {name: mask for name, mask in (dead or {}).items() if name not in traced.erased}
    unknown = set(dead) - {n.name for n in traced.module.graph.nodes}
    if unknown:
        raise UserError(
            f"no tensor of the network is named {min(unknown)}",
            "names from Anatomy.watch",
            "take the census on this network",
        )
    analysis = analyse(traced, residual=residual, dead=dead)
    freeze_modules(analysis, freeze)
    choice, cut = choose(analysis, align)
    return analysis, choice, cut


def freeze_modules(analysis: Analysis, names: Sequence[str]) -> None:
    """Every channel of a parameter inside the modules stays."""
    for name in names:
        inside = [n for n in analysis.names if n.startswith(f"{name}.") or not name]
        layers = [layer.ids for layer in analysis.layers if layer.weight in inside]
        for ids in [*layers, *(analysis.parameter(n).all_ids() for n in inside)]:
            analysis.ledger.freeze(name or "the network", ASKED, ids)


def finish(
    model: nn.Module, analysis: Analysis, choice: Choice, cut: Cut, *, real: Sequence[tuple[Tensor, ...]] = (),
    tolerance: float = 1e-9, verify: bool = True,
) -> Compact:  # fmt: skip
    """Rebuild, hold the law, and write plan and certificate."""
    traced = analysis.traced
    compact = rebuild(analysis, cut) if traced.frozen is None else whole(model, traced)
    law = check_law(model, cut, compact, real=real, tolerance=tolerance) if verify else None
    plan = plan_of(analysis, cut, class_name(model), plan_before(model))
    compact.meta[META] = plan
    return Compact(compact, plan, certificate(analysis, choice, cut, compact, law, model))


def whole(model: nn.Module, traced: Traced) -> fx.GraphModule:
    """A copy of a network of which nothing could be traced."""
    return fx.GraphModule(copy.deepcopy(traced.module), copy.deepcopy(traced.module.graph), type(model).__name__)
