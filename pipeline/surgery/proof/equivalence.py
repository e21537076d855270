"""The law: compact(x) equals the network given, in which the removed channels are held at their constants."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pipeline.surgery.channels.labels import Labels, LayoutError, positions
from pipeline.surgery.cut.carry import Cut
from pipeline.surgery.cut.rebuild import rebuild
from pipeline.surgery.proof.inputs import random_sets, smaller, widened_all
from pipeline.surgery.trace import Traced
from pipeline.surgery.trace.copies import cached_results, deep_copy, modules_by_path, tensors_of
from pipeline.surgery.trace.float64 import WIDER, Double, in_double, widened
from pipeline.surgery.trace.tracer import first_line
from runtime.errors import UserError


@dataclass(frozen=True)
class Law:
    """Largest relative difference in float64, over `inputs` sets of inputs; `held` says removed channels were held.

    `single` names operators that take no float64 and were given float32, in both networks.
    """

    max_rel_diff: float
    tolerance: float
    inputs: tuple[str, ...]
    held: bool
    single: tuple[str, ...] = ()


class Held(fx.Interpreter):
    """Runs the traced network with measured, removed channels held at their constants; `seen` gets every tensor."""

    def __init__(self, module: fx.GraphModule, cut: Cut, names: dict[str, fx.Node]) -> None:
        super().__init__(module)
        self._cut, self._names = cut, names
        self.seen: dict[str, Tensor] | None = None

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        labels = self._cut.analysis.env.get(self._names[n.name])
        if isinstance(labels, Labels) and isinstance(out, Tensor):
            for axes, mask, constant in holds(labels, self._cut):
                shape = [mask.shape[axes.index(ax)] if ax in axes else 1 for ax in range(out.dim())]
                m = torch.as_tensor(mask, device=out.device).reshape(shape)
                out = torch.where(m, torch.as_tensor(constant, dtype=out.dtype, device=out.device).reshape(shape), out)
        if self.seen is not None and isinstance(out, Tensor):
            self.seen[n.name] = out.detach().clone()
        return out


def holds(labels: Labels, cut: Cut) -> Iterator[tuple[tuple[int, ...], Any, Any]]:
    """(axes, mask, constants) of each field with removed channels whose constant rests on a census."""
    ledger = cut.analysis.ledger
    for f in labels.fields:
        mask = ~cut.keep[f.ids] & ledger.measured(f.ids)
        if mask.any():
            yield f.axes, mask, np.where(mask, ledger.constant(f.ids), 0.0)


def anything_held(cut: Cut) -> bool:
    return any(any(True for _ in holds(v, cut)) for v in cut.analysis.env.values() if isinstance(v, Labels))


def doubled(module: nn.Module, widths: dict[int, Tensor] | None = None) -> nn.Module:
    """A float64 copy in eval mode; `widths` holds parameters in float64 by the identity of those they were made of, for
    copies of one network to share."""
    if widths is None:
        return in_double(deep_copy(module)).eval()
    modules = modules_by_path(module).values()
    for parameter in tensors_of(modules):
        if type(parameter) is nn.Parameter and parameter.dtype in WIDER and id(parameter) not in widths:
            widths[id(parameter)] = nn.Parameter(widened(parameter.detach()), requires_grad=parameter.requires_grad)
    return in_double(copy.deepcopy(module, cached_results(modules) | widths)).eval()


def flat(output: Any, above: tuple[int, ...] = ()) -> list[Tensor]:
    """The tensors of an answer, in order; in containers that PyTorch does not open, too, but not in those `above`."""
    collected: list[Tensor] = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            collected.append(leaf)
        elif id(leaf) in above:
            continue  # a container that refers to one it is in
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            collected += flat([getattr(leaf, f.name) for f in fields(leaf)], (*above, id(leaf)))
        elif not callable(leaf):
            collected += flat(list(getattr(leaf, "__dict__", {}).values()), (*above, id(leaf)))
    return collected


def gap(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|: 0 where both are the same infinity or no number, infinite where only one is."""
    a, b = (x if x.is_floating_point() or x.is_complex() else x.double() for x in (a, b))
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)


def relative(a: Any, b: Any) -> float:
    """Largest |a - b| over the largest finite |b|, the worst over nested outputs; infinite where the shapes differ."""
    worst = 0.0
    for x, y in zip(flat(a), flat(b), strict=True):
        if x.shape != y.shape:
            return torch.inf
        sizes = torch.where(y.isfinite(), y, 0).double().abs() if not y.is_complex() else y.abs()
        scale = max(float(sizes.max()) if sizes.numel() else 0.0, torch.finfo(torch.float64).tiny)
        worst = max(worst, float(gap(x, y).max()) / scale if x.numel() else 0.0)
    return worst


@torch.no_grad()
def check_law(
    original: nn.Module, cut: Cut, compact: fx.GraphModule, *, real: Sequence[tuple[Tensor, ...]] = (),
    tolerance: float = 1e-9, seed: int = 0,
) -> Law:  # fmt: skip
    """Hold the law on random inputs (`random_sets`), of another batch size where the network takes that, and on `real`
    inputs; UserError names the first tensor off.

    The cut is carried out on a float64 copy; `compact` must be that result rounded to its own precision.
    """
    traced = cut.analysis.traced
    mode, widths = Double(), dict[int, Tensor]()
    dense = doubled(original, widths)
    wide, expected = _questions(dense, traced, real, mode, seed)
    reference = doubled(traced.module, widths)
    for name, exact in traced.computed.items():
        reference.get_parameter(name).data = exact.clone()
    small = rebuild(cut.analysis, cut, weights=reference) if traced.frozen is None else doubled(compact)  # type: ignore[arg-type]
    _demand_rounded(small.eval(), compact)
    names = {n.name: n for n in traced.module.graph.nodes}
    held = Held(reference, cut, names) if anything_held(cut) else None  # type: ignore[arg-type]
    worst = 0.0
    for (name, x), answer in zip(wide, expected, strict=True):
        with mode:
            if held is not None:
                drift = relative(reference(*x), answer)
                if drift > tolerance:
                    raise _broken("the traced network", drift, name, "the network's own forward", tolerance)
            difference = relative(_ran(small, x, name), answer if held is None else held.run(*x))
            if not difference <= tolerance:
                where = first_difference(reference, small, cut, x, tolerance)  # type: ignore[arg-type]
                raise _broken("the compact network", difference, name, where, tolerance)
        worst = max(worst, difference)
    return Law(worst, tolerance, tuple(n for n, _ in wide), held is not None, tuple(sorted(mode.single)))


def _questions(
    dense: nn.Module, traced: Traced, real: Sequence[tuple[Tensor, ...]], mode: Double, seed: int
) -> tuple[list[tuple[str, Any]], list[Any]]:
    """Sets of inputs in float64, and the network's answers: random ones of the smallest size that shows every weight
    (of the example's, where the network takes no other), and real ones."""
    small = smaller(traced)
    if small is not None:
        wide = [(name, widened_all(x)) for name, x in random_sets(small, seed, sizes=True)]
        try:
            expected = answers(dense, wide, mode, free=1)
        except UserError:  # it takes no such size
            small = None
    if small is None:
        wide = [(name, widened_all(x)) for name, x in random_sets(traced.example_inputs, seed)]
        expected = answers(dense, wide, mode, free=1)
    more = [(f"real, batch {len(r[0])}", widened_all(r)) for r in real]
    wide, expected = wide + more, expected + answers(dense, more, mode)
    pairs = [(one, answer) for one, answer in zip(wide, expected, strict=True) if answer is not REFUSED]
    return [one for one, _ in pairs], [answer for _, answer in pairs]


REFUSED = object()  # the answer to a batch size that the network does not take


def answers(model: nn.Module, sets: Sequence[tuple[str, Any]], mode: Double, free: int | None = None) -> list[Any]:
    """What the network answers to each set of inputs, in float64; UserError where it cannot.

    The set at `free` may be refused.
    """
    collected: list[Any] = []
    for i, (_, inputs) in enumerate(sets):
        try:
            with mode:
                collected.append(model(*inputs))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever code of the user raises
            if i == free:
                collected.append(REFUSED)
                continue
            raise UserError(
                f"the network raises in float64: {first_line(error)}",
                "a network that can be computed in float64, in which the law is checked",
                "let its code take float64, or call shrink(..., verify=False), which checks nothing",
            ) from error
    for (name, _), answer in zip(sets, collected, strict=True):
        if answer is not REFUSED and not any(bool(t.isfinite().any()) for t in flat(answer)):
            raise UserError(
                f"the network answers no finite number to {name} inputs",
                "tensors with numbers, which the law compares",
                "mend its weights or what it returns, or call shrink(..., verify=False), which checks nothing",
            )
    return collected


def _ran(compact: nn.Module, x: tuple[Tensor, ...], inputs: str) -> Any:
    """The compact network's answer; UserError where it raises on inputs of this size."""
    try:
        return compact(*x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"the compact network raises on {inputs} inputs: {first_line(error)}",
            "a network that takes any number of images", "nothing was written; report it with the network's code",
        ) from error  # fmt: skip


def _demand_rounded(exact: nn.Module, compact: nn.Module) -> None:
    tensors = dict(exact.named_parameters()) | dict(exact.named_buffers())
    for name, tensor in [*compact.named_parameters(), *compact.named_buffers()]:
        want = tensors.pop(name)
        assert torch.equal(want.to(tensor.dtype), tensor), f"{name} of the compact network is not the exact one rounded"
    assert not tensors, f"the compact network lacks {sorted(tensors)}"


def _broken(what: str, difference: float, inputs: str, where: str, tolerance: float) -> UserError:
    return UserError(
        f"{what} differs by {difference:.2g} (relative, float64) on {inputs} inputs, first at {where}",
        f"at most {tolerance:g}",
        "nothing was written; freeze this part of the network or report it with the network's code",
    )


def first_difference(
    reference: fx.GraphModule, small: fx.GraphModule, cut: Cut, x: tuple[Tensor, ...], tolerance: float
) -> str:
    """Name of the first tensor of the graph whose kept channels differ."""
    nodes = {n.name: n for n in cut.analysis.traced.module.graph.nodes}
    full_run, small_run = Held(reference, cut, nodes), _Seen(small)
    full_run.seen = {}
    full_run.run(*x)
    small_run.run(*x)
    for name, node in nodes.items():
        full, remaining = cut.analysis.env[node], cut.env[node]
        if (
            name in full_run.seen
            and name in small_run.seen
            and isinstance(full, Labels)
            and isinstance(remaining, Labels)
        ):
            picked = _pick(full_run.seen[name], full, remaining)
            if picked is not None and (
                picked.shape != small_run.seen[name].shape or relative(small_run.seen[name], picked) > tolerance
            ):
                return str(name)
    return "the output"


class _Seen(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if isinstance(out, Tensor):
            self.seen[n.name] = out.detach().clone()
        return out


def _pick(tensor: Tensor, full: Labels, remaining: Labels) -> Tensor | None:
    """The kept channels of a tensor, where each field lies on one axis."""
    for f in full.fields:
        g = remaining.at(f.axes[0])
        if len(f.axes) != 1 or g is None:
            return None
        try:
            tensor = tensor.index_select(f.axes[0], torch.as_tensor(positions(f.ids, g.ids)))
        except LayoutError:
            return None
    return tensor
