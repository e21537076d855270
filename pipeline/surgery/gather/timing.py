"""`surgery.gather: auto`: which layers take the gather form is chosen by timing, on the backend at hand.

Each candidate is timed alone against its dense form, on the input that it gets; those that win are put into the
network, which is timed as a whole against the compact one. Nothing is timed where no layer reads few kernels.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from export.onnx.from_torch import onnx_from_torch
from pipeline.surgery.align import OPSET, TIE, Timing
from pipeline.surgery.gather import candidates, gather_form, gathered, put
from pipeline.surgery.plan import Compact
from pipeline.surgery.trace.copies import deep_copy
from runtime.backends import Array, open_session
from runtime.measure.latency import Running

ALONE = 0.05  # a layer must be so much faster alone, for a Gather among other calls costs more than alone
OPENINGS = 3


@dataclass(frozen=True)
class Pair:
    """Median milliseconds a launch, and what was timed on."""

    dense_ms: float
    gathered_ms: float
    backend: str
    device: str


def gathered_by(
    choice: Literal["off", "on", "auto"], compact: Compact, samples: Tensor, timing: Timing, tolerance: float,
    tell: Callable[[str], None] = lambda text: None,
) -> Compact:  # fmt: skip
    """The network with gather forms as the config asks; `samples` (N, C, H, W) are images. Raises UserError."""
    if choice == "off":
        return compact
    fan_in = candidates(compact.model)
    if choice == "on" or not fan_in:
        return gathered(compact, (samples[:1],), list(fan_in), tolerance)
    with tempfile.TemporaryDirectory() as folder:
        return _chosen(compact, fan_in, samples, timing, tolerance, tell, Path(folder))


def _chosen(
    compact: Compact, fan_in: dict[str, int], samples: Tensor, timing: Timing, tolerance: float,
    tell: Callable[[str], None], folder: Path,
) -> Compact:  # fmt: skip
    feed = samples[torch.arange(timing.batch) % len(samples)]
    limit_s = timing.time_limit_s / (len(fan_in) + 1)
    rows, pairs = [], dict[str, Pair]()
    for i, (name, x) in enumerate(inputs_of(compact.model, list(fan_in), feed).items()):
        conv = compact.model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        key = repr((conv, tuple(x.shape), fan_in[name]))  # layers of one shape take one time
        if key not in pairs:
            tell(f"gather: timing {name}, {i + 1} of {len(fan_in)}")
            pairs[key] = timed(conv, gather_form(conv), x, replace(timing, time_limit_s=limit_s), folder)
        pair = pairs[key]
        wins = pair.gathered_ms <= (1 - ALONE) * pair.dense_ms
        rows.append({"layer": name, "fan_in": fan_in[name], "dense_ms": pair.dense_ms, "gathered_ms": pair.gathered_ms,
                     "wins": wins})  # fmt: skip
    names = [str(row["layer"]) for row in rows if row["wins"]]
    whole = None
    if names:
        tell(f"gather: timing the network with {len(names)} layers in gather form")
        other = deep_copy(compact.model)
        put(other, {name: gather_form(_conv(other, name)) for name in names})
        whole = timed(compact.model, other, feed, replace(timing, time_limit_s=limit_s), folder)
        if whole.gathered_ms > (1 - TIE) * whole.dense_ms:
            names = []
    document: dict[str, Any] = {
        "timed": rows,
        "network": whole and {"compact_ms": whole.dense_ms, "gathered_ms": whole.gathered_ms},
    }
    some = next(iter(pairs.values()))
    document |= {"backend": some.backend, "device": some.device, "threads": timing.threads, "batch": timing.batch}
    result = gathered(compact, (samples[:1],), names, tolerance)
    before: dict[str, Any] = result.certificate.get("gather", {"layers": []})
    return replace(result, certificate={**result.certificate, "gather": {**before, **document}})


def _conv(network: nn.Module, name: str) -> nn.Conv2d:
    module = network.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


@torch.no_grad()
def inputs_of(network: nn.Module, names: list[str], x: Tensor) -> dict[str, Tensor]:
    """What enters each of the modules."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: inputs.update({name: args[0].detach().clone()})
        )
        for name in names
    ]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def timed(dense: nn.Module, other: nn.Module, x: Tensor, timing: Timing, folder: Path) -> Pair:
    """Both exported and timed in turn, in sessions opened anew, on the same input."""
    paths = [folder / "dense.onnx", folder / "gathered.onnx"]
    for module, path in zip((dense, other), paths, strict=True):
        onnx_from_torch(module.eval(), x[:8], path, opset=OPSET, max_abs_diff=math.inf, metadata={})
    openers = [partial(open_session, path, timing.backend, timing.device, timing.threads) for path in paths]
    feed: Array = x.cpu().numpy()
    session = openers[0]()
    backend, device, name = session.backend, session.device, session.inputs[0].name
    session.close()
    running = Running(openers, [{name: feed}] * 2, openings=OPENINGS, most=timing.rounds, min_blocks=timing.min_blocks,
                      time_limit_s=timing.time_limit_s, precision=TIE)  # fmt: skip
    rounds = []
    while not running.stopped:
        running.advance()
        rounds.append(np.median(running.last_ms(), 1))
    dense_ms, gathered_ms = np.median(np.array(rounds), 0).tolist()
    return Pair(dense_ms, gathered_ms, backend, device)
