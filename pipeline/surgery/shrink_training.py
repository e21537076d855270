"""Cut dead channels out between two training steps: network, optimizer state, averaged copies and schedule go along.

The law: the next step of the compact network, on the batch given, equals that of the network given in every entry that
is kept. So do the steps after it for as long as the removed channels would have stayed dead: without a gradient their
parameters move by momentum and weight decay alone. What it does not cover: optimizers whose step for one entry depends
on others (Muon, LARS, LAMB).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, fx, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel

from pipeline.surgery.channels.analysis import Analysis, leaves
from pipeline.surgery.cut.carry import Cut
from pipeline.surgery.cut.choose import Choice, choose
from pipeline.surgery.cut.slices import cut_tensor
from pipeline.surgery.gather import demand_none
from pipeline.surgery.plan import Compact, plan_before
from pipeline.surgery.proof.gradients import Step, check_step, keep_what_learns, step_of
from pipeline.surgery.shrink import cut_of, finish, held
from pipeline.surgery.trace import Traced, trace, unwrapped
from pipeline.surgery.trace.copies import plain_name
from runtime.errors import UserError


@dataclass(frozen=True)
class Resumed:
    """Everything a training goes on with; `step_rel_diff` is the law's figure, None where it was not checked.

    `averages` are the averaged copies given, cut alike. Their kept entries are as before; what they compute is not,
    where the channels removed were alive in the average.
    """

    compact: Compact
    optimizer: Optimizer
    averages: tuple[nn.Module, ...]
    scheduler: LRScheduler | None
    step_rel_diff: float | None


def shrink_training(
    model: nn.Module,
    batch: tuple[Tensor, ...],
    optimizer: Optimizer,
    dead: Mapping[str, Tensor] | None = None,
    *,
    averages: Sequence[nn.Module] = (),
    scheduler: LRScheduler | None = None,
    pinned: Mapping[str, Tensor] | None = None,
    align: int = 1,
    residual: Literal["tied", "untied"] = "tied",
    verify: bool = True,
    tolerance: float = 1e-6,
) -> Resumed:
    """Cut the channels of `model` that are dead in eval mode (`dead` and `align` as in `shrink`) and do not learn.

    `batch`: the network's inputs, at least 2 samples, best the next training batch: channels that fire on it, or that
    a gradient reaches, stay. `averages`: AveragedModel or modules of the model's class. `pinned`: parameter name ->
    bool mask of its shape, True where the training puts an entry back to what it is after every step, so that a
    gradient there teaches nothing. Whatever is given stays untouched. The compact network has the model's training
    modes, its optimizer the same groups, options and sliced state, its scheduler the same position. Raises UserError
    where the network does something else in training mode that a graph cannot hold, where the law does not hold
    (`verify`), or where optimizer state cannot be sliced.
    """
    model = unwrapped(model)
    pinned = {plain_name(name): mask for name, mask in (pinned or {}).items()}
    demand_none(model)
    before = plan_before(model)
    if before is not None and before.residual == "untied":
        residual = "untied"  # as in `shrink`: one plan against the first network holds both cuts
    dense = step_of(model, batch)

    def attempt(traced: Traced) -> tuple[Compact, Cut, dict[str, str], float | None]:
        analysis, choice, cut = _cut_what_rests(model, traced, _unpinned(dense, pinned), dead, align, residual)
        compact = finish(model, analysis, choice, cut, verify=verify)
        _copy_modes(model, compact.model)
        names = graph_names(model, analysis)
        if not verify:
            return compact, cut, names, None
        return compact, cut, names, check_step(_renamed(dense, names), step_of(compact.model, batch), cut, tolerance)

    compact, cut, names, difference = held(trace(model, batch), attempt)
    fresh = resumed_optimizer(optimizer, model, compact.model, names, cut)
    return Resumed(
        compact,
        fresh,
        tuple(cut_average(average, model, compact.model, names, cut) for average in averages),
        None if scheduler is None else resumed_scheduler(scheduler, optimizer, fresh),
        difference,
    )


def _cut_what_rests(
    model: nn.Module,
    traced: Traced,
    dense: Step,
    dead: Mapping[str, Tensor] | None,
    align: int,
    residual: str,
) -> tuple[Analysis, Choice, Cut]:
    """The cut of what is dead and gets no gradient, and that needs no constant folded into a bias."""
    analysis, choice, cut = cut_of(traced, dead, align=align, residual=residual)
    keep_what_learns(analysis, _renamed(dense, graph_names(model, analysis)).gradients)
    while True:
        choice, cut = choose(analysis, align)
        if not cut.folds and not cut.merged:
            return analysis, choice, cut
        for node in [*(node for node, _, _ in cut.folds.values()), *(merged.node for merged in cut.merged.values())]:
            for labels in leaves(analysis.value(node.args[0])):
                ids = labels.all_ids()
                folded = ids[~cut.keep[ids] & (analysis.ledger.constant(ids) != 0)]
                analysis.ledger.read(folded, np.zeros(len(folded), bool))


def graph_names(model: nn.Module, analysis: Analysis) -> dict[str, str]:
    """Names of the model's parameters and buffers -> names in the graph, of those the graph uses."""
    used = analysis.traced.module
    by_identity: dict[int, str] = {}
    for name, tensor in [*used.named_parameters(), *used.named_buffers()]:
        by_identity.setdefault(id(tensor), name)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: by_identity[id(tensor)] for name, tensor in named if id(tensor) in by_identity}


def _renamed(step: Step, names: Mapping[str, str]) -> Step:
    return Step(
        step.outputs,
        {names[n]: g for n, g in step.gradients.items() if n in names},
        {names[n]: b for n, b in step.buffers.items() if n in names},
    )


def _unpinned(step: Step, pinned: Mapping[str, Tensor]) -> Step:
    """The step with the gradients that teach."""
    taught = {
        name: gradient.masked_fill(pinned[name], 0.0) if name in pinned else gradient
        for name, gradient in step.gradients.items()
    }
    return Step(step.outputs, taught, step.buffers)


def _copy_modes(model: nn.Module, compact: fx.GraphModule) -> None:
    """Every module trains or not as in the model; modules frozen in eval mode stay so."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in compact.named_modules():
        module.training = modes.get(name, model.training)


def resumed_optimizer(
    optimizer: Optimizer, model: nn.Module, compact: nn.Module, names: Mapping[str, str], cut: Cut
) -> Optimizer:
    """The same kind of optimizer over the compact network's parameters, with the same groups and the state sliced.

    Parameters that are not the model's stay in it as they are; those the network never uses leave it.
    """
    after = dict(compact.named_parameters(remove_duplicate=False))
    before = {id(p): name for name, p in model.named_parameters()}
    memo: dict[int, Any] = {}
    gone: set[int] = set()
    for group in optimizer.param_groups:
        for p in group["params"]:
            name = before.get(id(p))
            memo[id(p)] = p if name is None else after[names[name]] if name in names else p
            if name is not None and name not in names:
                gone.add(id(p))
            elif name is not None:
                memo |= _cut_state(optimizer, p, names[name], cut)
    fresh = copy.deepcopy(optimizer, memo)
    for group in fresh.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for p in [p for p in fresh.state if id(p) in gone]:
        del fresh.state[p]
    for old, new in zip(_each(optimizer), _each(fresh), strict=True):
        _copy_flags(old, new)
    return fresh


def _each(optimizer: Optimizer) -> tuple[Optimizer, ...]:
    """It, and the `parts` of one that stands for several."""
    return (optimizer, *getattr(optimizer, "parts", ()))


def _cut_state(optimizer: Optimizer, p: Tensor, name: str, cut: Cut) -> dict[int, Tensor]:
    """Identity of each tensor of the parameter's state -> what is left of it."""
    fresh: dict[int, Tensor] = {}
    for key, value in optimizer.state.get(p, {}).items():
        if isinstance(value, Tensor) and value.shape == p.shape:
            fresh[id(value)] = cut_tensor(value, name, cut)
        elif not _goes_along(value) and cut_tensor(p.detach(), name, cut).shape != p.shape:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"{type(optimizer).__name__} keeps `{key}` {shape} for {name} {list(p.shape)}",
                "optimizer state of the parameter's shape, or single numbers",
                "use SGD, Adam or AdamW, or make a new optimizer after the cut",
            )
    return fresh


def _goes_along(value: Any) -> bool:
    """A number that belongs to the parameter as a whole, such as a step count."""
    return (
        value is None
        or isinstance(value, int | float | bool | str)
        or (isinstance(value, Tensor) and value.numel() == 1)
    )


def _copy_flags(optimizer: Optimizer, fresh: Optimizer) -> None:
    """Plain attributes that a copy of an optimizer loses, and the mark schedulers leave on `step`."""
    for key, value in vars(optimizer).items():
        if isinstance(value, int | float | str | None) and key not in vars(fresh):
            setattr(fresh, key, value)
    if hasattr(optimizer.step, "_wrapped_by_lr_sched") and not hasattr(fresh.step, "_wrapped_by_lr_sched"):
        options = [{k: v for k, v in group.items() if k != "params"} for group in fresh.param_groups]
        LambdaLR(fresh, lambda epoch: 1.0)  # a scheduler's constructor is the only way to set the mark
        for group, option in zip(fresh.param_groups, options, strict=True):
            group.update(option)
        fresh._opt_called = getattr(optimizer, "_opt_called", False)  # type: ignore[attr-defined]


def resumed_scheduler(scheduler: LRScheduler, optimizer: Optimizer, fresh: Optimizer) -> LRScheduler:
    """The schedule at the same position, over the optimizer made."""
    try:
        return copy.deepcopy(scheduler, {id(optimizer): fresh})
    except TypeError as error:
        raise UserError(
            f"{type(scheduler).__name__} cannot be copied ({error})",
            "a scheduler without open files, locks or generators",
            "pass scheduler=None and make one with last_epoch set",
        ) from None


def cut_average(
    average: nn.Module, model: nn.Module, compact: fx.GraphModule, names: Mapping[str, str], cut: Cut
) -> nn.Module:
    """An averaged copy of the model with the same entries removed, in the compact network's form."""
    inner = average.module if isinstance(average, AveragedModel) else average
    assert isinstance(inner, nn.Module)
    tensors = [*inner.named_parameters(), *inner.named_buffers()]
    have: dict[str, Tensor] = {plain_name(name): tensor for name, tensor in tensors}
    shapes = {name: t.shape for name, t in [*model.named_parameters(), *model.named_buffers()]}
    memo: dict[int, Any] = {}
    fresh = {**dict(compact.named_parameters()), **dict(compact.named_buffers())}
    for name, to in names.items():
        own = have.get(name)
        if own is None or own.shape != shapes[name]:
            shape = "no such tensor" if own is None else list(own.shape)
            raise UserError(
                f"{name} is {list(shapes[name])} in the network and {shape} in the averaged copy",
                "an AveragedModel or a copy of the network",
                "average this network, or leave the copy out",
            )
        if to in fresh:
            part = cut_tensor(own.detach(), to, cut)
            memo[id(fresh[to])] = nn.Parameter(part, own.requires_grad) if isinstance(fresh[to], nn.Parameter) else part
    network = copy.deepcopy(compact, memo)
    _copy_modes(inner, network)
    return copy.deepcopy(average, {id(inner): network}) if inner is not average else network
