"""One network, one tool, one process: cut dead channels out, and measure time, memory and the law.

The task is the same for every tool: a torchvision network in which three channels in ten are dead at every layer of
whatever kind (networks.py). A tool is asked to remove what it finds dead, or 30 % of the channels where it has
to be told how many.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import json
import math
import re
import resource
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from benchmarks.surgery.networks import CLASSES, SIDE, build, kill

RATIO = 0.3
SHORT_S = 2.0  # a cut faster than this is done three times, and the median counts
LAW = 1e-4  # of what another image changes, float64
MIB = 2**20
Point = dict[str, Any]
Holds = Callable[[nn.Module], nn.Module]
Done = tuple[nn.Module, Holds]
"""The compact network, and what makes of the dense one the network it must equal."""


class Removed:
    """Which channels torch-pruning took from which module, as indices before it began."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._remaining: dict[str, list[int]] = {}
        self.gone: dict[str, list[int]] = {}

    def note(self, group: Any) -> None:
        """Before the group is pruned: indices count what earlier groups have left. SystemExit: our own mistake."""
        try:
            self._note(group)
        except Exception as error:
            raise SystemExit(f"cannot follow torch-pruning: {error!r}") from error

    def _note(self, group: Any) -> None:
        names = {id(m): n for n, m in self._model.named_modules()}
        names |= {id(p): n for n, p in self._model.named_parameters()}  # objects of their own after each cut
        for dep, indices in group:
            name = names.get(id(dep.target.module))
            if name is None or "in_channels" in dep.handler.__name__:
                continue
            remaining = self._remaining.setdefault(name, list(range(self._width(dep.target.module))))
            now = sorted({int(i) for i in indices}, reverse=True)
            self.gone.setdefault(name, []).extend(remaining[i] for i in now)
            for i in now:
                del remaining[i]

    @staticmethod
    def _width(module: Any) -> int:
        if isinstance(module, nn.Parameter):
            return int(module.shape[Removed.axis(module)])
        if isinstance(module, nn.MultiheadAttention):
            return int(module.embed_dim)
        return int(module.weight.shape[0])

    @staticmethod
    def axis(parameter: Tensor) -> int:
        """Of a free parameter: the last that is longer than 1, as torch-pruning takes it."""
        return max(i for i, size in enumerate(parameter.shape) if size > 1)

    @torch.no_grad()
    def zeroed(self, dense: nn.Module) -> nn.Module:
        """`dense` with the removed channels held at zero, in place."""
        modules: dict[str, Any] = {**dict(dense.named_parameters()), **dict(dense.named_modules())}
        for name, gone in self.gone.items():
            module = modules[name]
            if isinstance(module, nn.Parameter):
                module.movedim(self.axis(module), -1)[..., gone] = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                rows = [i + part * module.embed_dim for part in range(3) for i in gone]
                module.in_proj_weight[rows] = 0.0
                module.in_proj_bias[rows] = 0.0
                module.out_proj.weight[gone] = 0.0
                module.out_proj.bias[gone] = 0.0
            else:
                for parameter in module.parameters(recurse=False):
                    parameter[gone] = 0.0
        return dense


def memory_kib(key: str) -> int:
    """VmRSS or VmHWM (its peak) of this process."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert match is not None
    return int(match[1])


def forget_peak() -> None:
    """Give free memory back to the system, and let the peak start from what is left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def demport(model: nn.Module) -> Done:
    """`shrink` without its own check of the law, which the benchmark makes for every tool alike."""
    from pipeline.surgery import shrink

    return shrink(model, (torch.zeros(1, 3, SIDE, SIDE),), verify=False).model, lambda dense: dense


def torch_pruning(model: nn.Module) -> Done:
    """Its documented way: group magnitude, BasePruner, the classifier ignored, attention told its heads."""
    import torch_pruning as tp

    ignored = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == CLASSES]
    pruner = tp.pruner.BasePruner(
        model,
        torch.randn(1, 3, SIDE, SIDE),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=ignored,
        num_heads={m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)},
    )
    removed = Removed(model)
    for group in pruner.step(interactive=True):
        removed.note(group)
        group.prune()
    if isinstance(model, VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels  # forward() looks at it
    return model, removed.zeroed


TOOLS: dict[str, Callable[[nn.Module], Done]] = {"demport": demport, "torch-pruning": torch_pruning}


def measure(name: str, tool: str, limit_s: int) -> Point:
    """The point of one network and one tool; `outcome` says what became of it."""
    dense = build(name)
    kill(dense)
    warm_up(tool)
    point: Point = {"model": name, "tool": tool, "params": sum(p.numel() for p in dense.parameters())}
    try:
        compact, held, figures = timed(TOOLS[tool], dense, limit_s)
        point |= figures
        got = logits(compact)
    except OverTime:
        return point | {"outcome": "time limit", "stopped_s": limit_s, "reason": f"stopped after {limit_s} s"}
    except Exception as error:  # whatever a tool, or what it made, raises is its result
        text = (str(error).splitlines() or [""])[0]
        return point | {"outcome": "error", "reason": f"{type(error).__name__}: {text}"[:200]}
    return point | verdict(logits(held(dense)), got)


def timed(tool: Callable[[nn.Module], Done], dense: nn.Module, limit_s: int) -> tuple[nn.Module, Holds, Point]:
    """Cut copies of `dense`. Memory is that of the first cut, beyond what the process held with the copy loaded."""
    copied = copy.deepcopy(dense)
    forget_peak()
    before, start = memory_kib("VmRSS"), time.perf_counter()
    with time_limit(limit_s):
        compact, held = tool(copied)
    seconds = [time.perf_counter() - start]
    memory_mib = (memory_kib("VmHWM") - before) / 1024
    while seconds[0] < SHORT_S and len(seconds) < 3:
        copied = copy.deepcopy(dense)
        start = time.perf_counter()
        tool(copied)
        seconds.append(time.perf_counter() - start)
    after = sum(p.numel() for p in compact.parameters())
    return compact, held, {"cut_s": statistics.median(seconds), "memory_mib": memory_mib, "params_after": after}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Of two fresh random images, (2, 1000), in float64; the network is float64 from then on."""
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return model.double().eval()(images.double())  # type: ignore[no-any-return]


def verdict(want: Tensor, got: Tensor) -> Point:
    """The law in float64. The task would be void if the network's answer did not depend on the image."""
    varies = float((want[0] - want[1]).abs().max())
    assert math.isfinite(varies) and varies > 1e-6 * float(want.abs().max()), f"a void task: logits vary by {varies:g}"
    if got.shape != want.shape:
        return {"outcome": "error", "reason": f"the pruned network answers with {list(got.shape)}"}
    difference = float((got - want).abs().max()) / varies
    if difference <= LAW:
        return {"outcome": "exact", "rel_diff": difference, "reason": None}
    finite = difference if math.isfinite(difference) else None
    reason = f"logits differ by {difference:.2g} of what another image changes"
    return {"outcome": "law broken", "rel_diff": finite, "reason": reason}


def warm_up(tool: str) -> None:
    """Imports and first calls are not part of a cut."""
    layers = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 10, 3), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(10 * (SIDE - 4) ** 2, 10)).eval()
    kill(model)
    TOOLS[tool](model)


class OverTime(BaseException):
    """Not an Exception, which a tool may catch."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise OverTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again and again, where the first one is lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """`python -m benchmarks.surgery.cutting MODEL TOOL LIMIT_S MEMORY_GIB`: one line of JSON."""
    name, tool, limit_s, memory_gib = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_gib) << 30, int(memory_gib) << 30))
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):  # torch-pruning prints
        point = measure(name, tool, int(limit_s))
    print(json.dumps(point, allow_nan=False))


if __name__ == "__main__":
    main()
