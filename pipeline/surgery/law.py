"""The law: compact(x) equals the network given, in which the removed channels are held at their constants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pipeline.surgery.copies import deep_copy
from pipeline.surgery.cut import Cut
from pipeline.surgery.double import Double, in_double, widened
from pipeline.surgery.labels import Labels, LayoutError, positions
from pipeline.surgery.rebuild import rebuild
from pipeline.surgery.tracer import first_line
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


def doubled(module: nn.Module) -> nn.Module:
    """A float64 copy in eval mode."""
    return in_double(deep_copy(module)).eval()


def fresh_inputs(example: Sequence[Tensor], batch: int, seed: int) -> tuple[Tensor, ...]:
    """Standard normal inputs of the example's shapes with another batch size."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for x in example:
        made = torch.randn((batch, *x.shape[1:]), generator=generator)
        out.append(
            made.to(device=x.device, dtype=x.dtype) if x.is_floating_point() else x[:1].expand(batch, *x.shape[1:])
        )
    return tuple(out)


def flat(output: Any, above: tuple[int, ...] = ()) -> list[Tensor]:
    """The tensors of an answer, in order; in containers that PyTorch does not open, too, but not in those `above`."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif id(leaf) in above:
            continue  # a container that refers to one it is in
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += flat([getattr(leaf, f.name) for f in fields(leaf)], (*above, id(leaf)))
        elif not callable(leaf):
            found += flat(list(getattr(leaf, "__dict__", {}).values()), (*above, id(leaf)))
    return found


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
    """Hold the law on random inputs at two batch sizes and on `real` inputs; UserError names the first tensor off.

    The cut is carried out on a float64 copy; `compact` must be that result rounded to its own precision.
    """
    traced = cut.analysis.traced
    sets = [(f"random, batch {b}", fresh_inputs(traced.example_inputs, b, seed + b)) for b in (2, 3)]
    sets += [(f"real, batch {len(r[0])}", r) for r in real]
    wide = [(name, tuple(map(widened, x))) for name, x in sets]
    mode = Double()
    wanted = answers(doubled(original), wide, mode)  # before the next copy is made: these are large
    reference = doubled(traced.module)
    for name, exact in traced.computed.items():
        reference.get_parameter(name).data = exact.clone()
    small = rebuild(cut.analysis, cut, weights=reference) if traced.frozen is None else doubled(compact)  # type: ignore[arg-type]
    _demand_rounded(small.eval(), compact)
    names = {n.name: n for n in traced.module.graph.nodes}
    held = Held(reference, cut, names) if anything_held(cut) else None  # type: ignore[arg-type]
    worst = 0.0
    for (name, x), answer in zip(wide, wanted, strict=True):
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
    return Law(worst, tolerance, tuple(n for n, _ in sets), held is not None, tuple(sorted(mode.single)))


def answers(model: nn.Module, sets: Sequence[tuple[str, tuple[Tensor, ...]]], mode: Double) -> list[Any]:
    """What the network answers to each set of inputs, in float64; UserError where it cannot."""
    try:
        with mode:
            found = [model(*inputs) for _, inputs in sets]
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever code of the user raises
        raise UserError(
            f"the network raises in float64: {first_line(error)}",
            "a network that can be computed in float64, in which the law is checked",
            "let its code take float64, or call shrink(..., verify=False), which checks nothing",
        ) from error
    for (name, _), answer in zip(sets, found, strict=True):
        if not any(bool(t.isfinite().any()) for t in flat(answer)):
            raise UserError(
                f"the network answers no finite number to {name} inputs",
                "tensors with numbers, which the law compares",
                "mend its weights or what it returns, or call shrink(..., verify=False), which checks nothing",
            )
    return found


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
    known = dict(exact.named_parameters()) | dict(exact.named_buffers())
    for name, tensor in [*compact.named_parameters(), *compact.named_buffers()]:
        want = known.pop(name)
        assert torch.equal(want.to(tensor.dtype), tensor), f"{name} of the compact network is not the exact one rounded"
    assert not known, f"the compact network lacks {sorted(known)}"


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
    left, right = Held(reference, cut, nodes), _Seen(small)
    left.seen = {}
    left.run(*x)
    right.run(*x)
    for name, node in nodes.items():
        full, kept = cut.analysis.env[node], cut.env[node]
        if name in left.seen and name in right.seen and isinstance(full, Labels) and isinstance(kept, Labels):
            picked = _pick(left.seen[name], full, kept)
            if picked is not None and (
                picked.shape != right.seen[name].shape or relative(right.seen[name], picked) > tolerance
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


def _pick(tensor: Tensor, full: Labels, kept: Labels) -> Tensor | None:
    """The kept channels of a tensor, where each field lies on one axis."""
    for f in full.fields:
        g = kept.at(f.axes[0])
        if len(f.axes) != 1 or g is None:
            return None
        try:
            tensor = tensor.index_select(f.axes[0], torch.as_tensor(positions(f.ids, g.ids)))
        except LayoutError:
            return None
    return tensor
