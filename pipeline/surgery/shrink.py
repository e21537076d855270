"""`shrink`: one call from a network with dead channels to the compact one, its plan and its certificate."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, fx, nn

from pipeline.surgery.analysis import Analysis
from pipeline.surgery.certificate import certificate
from pipeline.surgery.computed import settled
from pipeline.surgery.cut import Cut
from pipeline.surgery.law import check_law
from pipeline.surgery.plan import META, Compact, class_name, plan_before, plan_of
from pipeline.surgery.rebuild import rebuild
from pipeline.surgery.select import Choice, choose
from pipeline.surgery.trace import Traced, trace
from runtime.collector import collector_paused
from runtime.errors import UserError


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
) -> Compact:
    """Cut the dead channels out of `model`, which is left untouched.

    `dead`: watched output (see `Anatomy.watch`) -> bool (channels,), True where a census saw only zeros; None takes
    proof from the weights alone. `align`: dead channels are kept up to this multiple, per group of layers, the most
    alive first. `real`: inputs the law is checked on beside random ones. `verify=False` leaves the law unchecked, and
    the certificate says so. Raises UserError where the law does not hold, and ValueError where a mask does not fit.
    """
    before = plan_before(model)
    if before is not None and before.residual == "untied":
        residual = "untied"  # one plan against the first network holds both cuts
    traced, known = settled(trace(model, example_inputs))
    if known is None or dead or residual != known.residual:
        analysis, choice, cut = cut_of(traced, dead, align=align, residual=residual)
    else:
        analysis, (choice, cut) = known, choose(known, align)
    return finish(model, analysis, choice, cut, real=real, tolerance=tolerance, verify=verify)


def cut_of(
    traced: Traced, dead: Mapping[str, Tensor] | None, *, align: int | Mapping[str, int] = 1, residual: str = "tied"
) -> tuple[Analysis, Choice, Cut]:
    """Analysis, choice and cut of a traced network."""
    unknown = set(dead or ()) - {n.name for n in traced.module.graph.nodes}
    if unknown:
        raise UserError(
            f"no tensor of the network is named {min(unknown)}",
            "names from Anatomy.watch",
            "take the census on this network",
        )
    analysis = Analysis(traced, residual=residual, dead=dead or {}).run()
    choice, cut = choose(analysis, align)
    return analysis, choice, cut


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
    return Compact(compact, plan, certificate(analysis, choice, cut, compact, law))


def whole(model: nn.Module, traced: Traced) -> fx.GraphModule:
    """A copy of a network of which nothing could be traced."""
    return fx.GraphModule(copy.deepcopy(traced.module), copy.deepcopy(traced.module.graph), type(model).__name__)
