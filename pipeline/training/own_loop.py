"""A sparsifier for a training loop of one's own: any loss, optimizer and schedule; five lines beside it.

sparse = sparsify(network, optimizer, (x,), method="demp", steps=1000, target={"macs": 0.5})
loss = criterion(sparse.network(x), y) + sparse.penalty(); loss.backward()
sparse.optimizer.step(); sparse.step(x)
compact = sparse.finish()
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.config import Distill
from pipeline.config.section import Section
from pipeline.config.sparse import function_of, options_of
from pipeline.surgery import Compact, shrink
from pipeline.surgery.compact import apply_plan
from pipeline.surgery.plan import Plan, plan_before
from pipeline.tasks.classification import apart
from pipeline.training.compute import Compute
from pipeline.training.compute.distributed import ALONE, Ranks
from pipeline.training.followers import average_of, demand_plain, joined, over_names, overflowed, taught, unscale
from pipeline.training.hooks import Hooks, Training
from pipeline.training.modes import keep_frozen, modes_of, put_modes
from pipeline.training.optimizer import Optimizer
from pipeline.training.optimizer.together import as_one, parts_of
from pipeline.training.snapshots.checkpoint import moments_of
from pipeline.training.sparsifier import Sparsifier as Core
from pipeline.training.state import Inputs, TrainState
from runtime.errors import UserError

EPOCHS = 20
"""Parts that the steps are taken to fall into, where a method does something once an epoch."""
RECENT = 8
"""Batches that a census of dead channels looks at."""
IDLE = 20
"""Calls of `step` in a row without a step of the optimizer: a gradient scaler that looks for its scale needs fewer."""


Distance = Callable[[Any, Any, float], Tensor]


class Sparsifier:
    """`network` and `optimizer` are replaced by a removal: follow them."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, example: Inputs, steps: int) -> None:
        self._first, self._example = copy.deepcopy(network), example
        self._recent: deque[Inputs] = deque([example], maxlen=RECENT)
        self._rates: list[float] = []  # of the first group, step by step
        self._hooked: list[RemovableHandle] = []
        self._stepped: bool | None = None  # whether an optimizer made a step since the last call of `step`
        self._usual: list[float] | None = None  # rates of all groups before that step
        self._idle = 0  # calls in a row without one
        self._teacher: tuple[nn.Module, Distill] | None = None
        self._ranks = Ranks(dist.get_rank(), dist.get_world_size()) if joined() else ALONE
        self._training = Training(
            first=weakref.ref(network),
            steps=steps,
            steps_per_epoch=max(1, steps // EPOCHS),
            rate=lambda step: self._rates[step] if step < len(self._rates) else optimizer.param_groups[0]["lr"],
            samples=self._samples,
            example=example,
            ranks=self._ranks,
        )
        self._wrapped = Optimizer(optimizer, tuple(p for g in optimizer.param_groups for p in g["params"]), 0.0)
        self._core: Core

    @property
    def network(self) -> nn.Module:
        return self._core.network

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of several all as one: its `step` makes a step of each."""
        return self._core.state.optimizer.inner

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """In the order in which `sparsify` was given them."""
        return parts_of(self.optimizer)

    @property
    def steps(self) -> int:
        """That the method takes in all: rounds, where it has some, included."""
        return self._core.steps

    @property
    def averages(self) -> tuple[nn.Module, ...]:
        """The averaged copies that `sparsify` was given, cut as the network was."""
        return tuple(self._core.averages)

    def start(self, hooks: Hooks, averages: Sequence[nn.Module], teacher: tuple[nn.Module, Distill] | None) -> None:
        """Join the training with what the method does."""

        def begin(state: TrainState) -> None:
            self._follow(state.optimizer.inner)
            hooks.begin(state)

        network = self._training.network
        compute = Compute(self._example[0].device, ranks=self._ranks, joins=False)
        self._core = Core(network, self._wrapped, dataclasses.replace(hooks, begin=begin), self._training, compute)
        self._core.averages, self._first_averages, self._teacher = [*averages], tuple(averages), teacher

    def penalty(self) -> Tensor:
        """Scalar to add to the loss; 0 where the method has none. With gradient accumulation: once a step."""
        term = self._core.hooks.penalty(self._core.step_number)
        return torch.zeros((), device=self._example[0].device) if term is None else term

    def distilled(self, loss: Tensor, outputs: Any, *inputs: Tensor, distance: Distance = apart) -> Tensor:
        """(1 - w) `loss` + w times how far the `outputs` lie from what the teacher answers to the same inputs.

        `distance`: (outputs, teacher's, temperature) -> scalar; by default T^2 KL(teacher || student) of logits (B, K).
        """
        if self._teacher is None:
            raise UserError("no teacher", "sparsify(..., teacher=NETWORK)", "give one, or use the loss as it is")
        network, options = self._teacher
        with torch.no_grad():
            aims = network(*inputs)
        return (1 - options.weight) * loss + options.weight * distance(outputs, aims, options.temperature)

    def step(self, *inputs: Tensor) -> bool:
        """After each step of the optimizer, with the network's inputs in it. Whether channels were removed: then
        `network`, `optimizer` and `averages` are others, and schedulers and wrappers have to be made over them.

        Raises UserError where another optimizer makes the steps.
        """
        batch = tuple(x.detach() for x in inputs) or self._example
        with torch.enable_grad(), torch.autocast(batch[0].device.type, enabled=False):
            return self._step(batch)

    def _step(self, batch: Inputs) -> bool:
        own = self._core
        self._recent.append(batch)
        self._demand_steps()
        own.after_step(self._stepped is True)
        self._stepped = self._usual = None
        step = own.step_number
        if (step + 1) % self._training.steps_per_epoch == 0 or step + 1 == own.steps:
            own.hooks.figures(step)
        if step >= own.steps:
            own.step_number += 1
            return False
        if own.due and self._ranks.world > 1:
            for buffer in own.network.buffers():  # running statistics, which each process has of its own images
                buffer.copy_(self._ranks.same(buffer))
        modes = modes_of(own.network)
        removed = own.advance(batch if len(batch[0]) > 1 else self._example) is not None
        own.between()
        put_modes(own.network, modes)
        keep_frozen(own.network, own.frozen)
        return removed

    def _demand_steps(self) -> None:
        self._idle = self._idle + 1 if self._stepped is None else 0
        if self._idle == IDLE:
            raise UserError(
                f"no step of `optimizer` in {IDLE} calls of `step`",
                "one of sparse.optimizer before each",
                "step that one: a removal replaces the optimizer that sparsify was given",
            )

    def finish(self) -> Compact:
        """The network without its dead channels, proven; the one that was trained stays as it is."""
        return shrink(self._core.network, self._example, dict(self._core.final_census()))

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and method, for `torch.save`; read with `weights_only=True`."""
        own = self._core
        tensors, document = own.saved()
        plan = plan_before(own.network)
        return {
            "step": own.step_number,
            "plan": None if plan is None else plan.model_dump_json(by_alias=True),
            "network": own.network.state_dict(),
            "moments": moments_of(own.network, own.state.optimizer),
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups],
            "method": tensors,
            "document": document,
            "rates": list(self._rates),
            "averages": [average.state_dict() for average in own.averages],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; over the network and the options that it came from. Afterwards follow `network` and
        `optimizer`."""
        own, network = self._core, copy.deepcopy(self._first)
        if state["plan"] is not None:
            network = apply_plan(network, Plan.model_validate_json(state["plan"]))
        network = own.hooks.build(network, state["step"]).to(self._example[0].device)
        network.load_state_dict(state["network"])
        optimizer = over_names(self.optimizer, own.network, network)
        for group, values in zip(optimizer.param_groups, state["groups"], strict=True):
            group.update(values)
        self._rates = list(state["rates"])
        parameters = tuple(p for group in optimizer.param_groups for p in group["params"])
        own.restart(network.train(), Optimizer(optimizer, parameters, 0.0), state["step"], state["moments"])
        own.restore(state["method"], state["document"])
        keep_frozen(own.network, own.frozen)
        pairs = zip(self._first_averages, state["averages"], strict=True)
        own.averages = [average_of(own.network, first, values) for first, values in pairs]

    def _samples(self, step: int, batches: int, batch_size: int) -> Iterator[Inputs]:
        return iter(tuple(self._recent))

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Notice its steps, and let the method see the gradients and set the rate before each, once: another network
        may have the optimizer of the one before."""
        for handle in self._hooked:
            handle.remove()
        self._hooked.clear()
        for part in parts_of(optimizer):
            self._hooked += [part.register_step_pre_hook(self._before), part.register_step_post_hook(self._after)]

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if all(optimizer is not one for one in self.optimizers):
            return  # that of before a removal
        if self._usual is None:  # the first that steps
            self._usual = [group["lr"] for group in self.optimizer.param_groups]
            if self._core.step_number == len(self._rates):
                self._rates.append(float(self._usual[0]))
        if overflowed(optimizer):
            return
        unscale(optimizer)
        if self._stepped is None:
            self._stepped = False
            self._before_all(self._usual)

    def _before_all(self, usual: Sequence[float]) -> None:
        own, step = self._core, self._core.step_number
        rate, position = own.hooks.rate(step), own.hooks.position(step)
        if rate is None and position != step:
            rate = self._rates[position]
        if rate is not None:
            for group, before in zip(self.optimizer.param_groups, usual, strict=True):
                group["lr"] = rate * before / usual[0] if usual[0] else rate
        own.hooks.after_backward(step)

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._usual is None or all(optimizer is not one for one in self.optimizers):
            return
        self._stepped = bool(self._stepped) or not overflowed(optimizer)
        for group, usual in zip(self.optimizer.param_groups, self._usual, strict=True):
            if any(group is one for one in optimizer.param_groups):
                group["lr"] = usual


def sparsify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    example_inputs: tuple[Tensor, ...],
    *,
    method: str = "demp",
    steps: int,
    target: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    averages: Sequence[nn.Module] = (),
    teacher: nn.Module | None = None,
    distill: Mapping[str, Any] | None = None,
) -> Sparsifier:
    """A method of `demport run --help-method NAME` in a loop of one's own, over so many optimizer steps.

    `optimizer`: one, or several that share the parameters. `example_inputs`: what the network takes, on its device; a
    single sample is doubled. `target`: e.g. {"macs": 0.5},
    for methods that have one. `averages`: AveragedModel or copies of the network, cut along. `teacher`: a trained
    network for `distilled`, which `distill` gives {"weight": 0.5, "temperature": 4.0}. Raises UserError where options,
    network or optimizer will not do.
    """
    demand_plain(model, optimizer)
    if steps < 1:
        raise UserError(f"steps is {steps}", "at least 1", "give the number of optimizer steps of the training")
    if not isinstance(example_inputs, tuple) or not all(isinstance(x, Tensor) for x in example_inputs):
        raise UserError(f"example_inputs is {type(example_inputs).__name__}", "a tuple of tensors", "write (x,)")
    keys = {**(options or {}), **({} if target is None else {"target": dict(target)})}
    example = tuple(x.detach() if len(x) > 1 else torch.cat([x, x]).detach() for x in example_inputs)
    checked = _checked(method, options_of(method), keys)
    lesson = None if teacher is None else (taught(teacher, model), _checked("distill", Distill, distill or {}))
    sparsifier = Sparsifier(model, as_one(optimizer), tuple(x[:2].clone() for x in example), steps)
    sparsifier.start(function_of(method)(checked, sparsifier._training), averages, lesson)
    return sparsifier


def _checked(method: str, kind: type[Section], keys: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(dict(keys))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"])) or "options"
        expected = ", ".join(kind.model_fields) if problem["type"] == "extra_forbidden" else problem["msg"]
        raise UserError(f"{method}: `{name}` is {problem['input']!r:.60}", expected, "mend it") from None
