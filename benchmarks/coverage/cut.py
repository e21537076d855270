"""One network: channels killed, cut with and without the law, and compared once more."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.zoo import Network, network
from benchmarks.results import Point
from benchmarks.surgery.networks import CLASSES, fill, settle, without_initialisation
from pipeline.surgery import Compact, shrink
from pipeline.surgery.channels.analysis import OUTPUT
from pipeline.surgery.proof.equivalence import doubled, flat, relative
from pipeline.surgery.proof.inputs import fresh_inputs

PERIOD, DEAD = 8, 3
EXACT = 1e-7  # of the largest output, in float64; networks with operators in float32 differ in its last digits
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
TABLES = re.compile(r"token|pos_?emb|position_emb|absolute_pos")


def pattern(seed: int) -> Tensor:
    """Which three of eight positions are dead."""
    dead = torch.zeros(PERIOD, dtype=torch.bool)
    dead[torch.randperm(PERIOD, generator=torch.Generator().manual_seed(seed))[:DEAD]] = True
    return dead


def along(size: int, dead: Tensor) -> Tensor:
    return dead.repeat(-(-size // PERIOD))[:size]


@torch.no_grad()
def kill(net: Network, dead: Tensor) -> dict[str, Tensor]:
    """Zero what makes the dead channels, in place; of each layer its dead output channels, bool (O,)."""
    layers: dict[str, Tensor] = {}
    for path, module in net.model.named_modules():
        if re.search(net.outputs, path):
            continue
        grouped = isinstance(module, nn.ConvTranspose2d) and module.groups > 1  # its outputs are no rows
        for name, parameter in module.named_parameters(recurse=False):
            axis = axis_of(module, name, parameter)
            size = parameter.shape[axis] if axis is not None else 0
            if axis is None or size < PERIOD or size == CLASSES:
                continue
            mask = along(size, dead)
            parameter.movedim(axis, 0)[mask] = 0.0
            if isinstance(module, LAYERS) and name == "weight" and not grouped:
                layers[path] = mask
    return layers


def axis_of(module: nn.Module, name: str, parameter: Tensor) -> int | None:
    """The axis of a parameter along which channels are made; None where it makes none."""
    long = [axis for axis, size in enumerate(parameter.shape) if size > 1]
    if len(long) == 1 and not isinstance(module, LAYERS):
        return long[0]
    if name == "bias" and isinstance(module, LAYERS):
        return 0
    if isinstance(module, nn.Embedding):
        return 1
    if TABLES.search(name) and "bias" not in name:
        return 1 if parameter.dim() == 4 else parameter.dim() - 1
    if name not in ("weight", "in_proj_weight"):
        return None
    return 1 if isinstance(module, nn.ConvTranspose2d) and module.groups == 1 else 0


def warm_up() -> None:
    """Imports and first calls are not part of a cut."""
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten()
    shrink(nn.Sequential(*layers, nn.Linear(128, 4)).eval(), (torch.zeros(1, 3, 8, 8),))


def measure(spec: str, million: float, seed: int, repeats: int) -> Point:
    """`outcome`: exact, wrong, error (it raised) or too large. Times are medians over `repeats`."""
    torch.manual_seed(0)
    with without_initialisation():
        net = network(spec)
    params = sum(p.numel() for p in net.model.parameters())
    point: Point = {"network": spec, "params": params}
    if params > million * 1e6:
        return point | {"outcome": "too large", "reason": f"over {million:g} million parameters"}
    prepare(net)
    layers = kill(net, pattern(seed))
    try:
        return point | cut(net, layers, repeats)
    except Exception as error:  # whatever it raises is the result
        text = " ".join(str(error).split())
        return point | {"outcome": "error", "reason": f"{type(error).__name__}: {text}"[:300]}


@torch.no_grad()
def prepare(net: Network) -> None:
    """Random weights whose activations stay near 1, eval mode."""
    for module in net.model.modules():
        fill(module)
    net.model.eval()
    settle(net.model, *net.inputs)


def timed(call: Callable[[], Compact], repeats: int) -> tuple[float, Compact]:
    """Median seconds of the processor, which other work on the machine leaves alone, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        compact = call()
        seconds.append(time.process_time() - start)
    return median(seconds), compact


def cut(net: Network, layers: Mapping[str, Tensor], repeats: int) -> Point:
    example = tuple(x[:1] for x in net.inputs)
    cut_s, _ = timed(lambda: shrink(net.model, example, verify=False), repeats)
    both_s, compact = timed(lambda: shrink(net.model, example), repeats)
    law_s = max(both_s - cut_s, 0.0)
    rows = going(compact, layers)
    difference = compared(net, compact)
    dead, gone = sum(int(m.sum()) for m in layers.values()), sum(rows.values())
    return {
        "outcome": "exact" if difference <= EXACT else "wrong",
        "reason": None,
        "rel_diff": difference,
        "dead": dead,
        "gone": gone,
        "gone_pct": 100 * gone / dead if dead else None,
        "cut_s": cut_s,
        "law_s": law_s,
        "n": repeats,
        "stays": staying(compact),
        "layers": {name: int(layers[name].sum()) - n for name, n in rows.items() if n < int(layers[name].sum())},
    }


def going(compact: Compact, layers: Mapping[str, Tensor]) -> dict[str, int]:
    """Of each layer how many of its dead channels the plan removes."""
    plan, weights, gone = compact.plan.layers, compact.model.state_dict(), {}
    for name, mask in layers.items():
        if f"{name}.weight" not in weights:  # computed once, and nothing of it is left
            gone[name] = int(mask.sum())
            continue
        keep = plan.get(f"{name}.weight", range(len(mask)))
        gone[name] = int(mask.sum()) - int(mask[torch.tensor(list(keep))].sum())
    return gone


@torch.no_grad()
def compared(net: Network, compact: Compact) -> float:
    """Largest difference over the largest output, float64, on a fresh image of full size."""
    x = tuple(t.double() for t in fresh_inputs(net.inputs, 1, 7))
    want = flat(doubled(net.model)(*x))
    return relative(flat(doubled(compact.model)(*x)), want)


def staying(compact: Compact) -> dict[str, int]:
    """Reasons in the certificate, and how many dead channels each holds, those of outputs apart: one that no operation
    asks for counts once for all layers that share it, a constant that one asks for in each."""
    counts: Counter[str] = Counter()
    certificate: Any = compact.certificate
    for row in certificate["groups"]:
        counts.update(row["kept_dead_because"])
    for row in certificate["constants"]:
        counts.update(row["because"])
    del counts[OUTPUT]
    return dict(counts)
