"""A training step of `truly_sparse` beside one of a mask and one of the dense network: where connections alone pay.

    python -m benchmarks.methods.truly_sparse --out benchmarks/results/truly_sparse.cpu.json

784-1000-1000-1000-10, batches of 128, one thread. Forward, backward and the optimizer's step with momentum, and for
`mask` the masks put in force as each step of `set` does. The three take turns; each figure is the median of the
thread's own CPU time, which other processes do not lengthen. Densities that the file has are not measured again.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.results import Point, command, fill, parser
from pipeline import config
from pipeline.models import build
from pipeline.training.masks import Masks, in_scope, largest
from pipeline.training.methods.truly_sparse.connections import SparseLinear
from pipeline.training.optimizer import optimizer_for
from pipeline.training.state import TrainState
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_PASS

SHAPE, CLASSES, BATCH = (1, 28, 28), 10, 128
DENSITIES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
Step = Callable[[], None]


def network_of(width: int) -> nn.Module:
    model = config.Model(name="mlp:relu", args={"widths": [width] * 3})
    return build(model, num_classes=CLASSES, input_shape=SHAPE)


def step_of(network: nn.Module, masks: Masks | None = None) -> Step:
    optimizer = optimizer_for(config.Training(lr=1e-4), list(network.parameters()))
    x, y = torch.randn(BATCH, *SHAPE), torch.randint(CLASSES, (BATCH,))
    if masks is not None:
        masks.bind(TrainState(network, None, optimizer, network, 0))  # type: ignore[arg-type]
        masks.apply()

    def step() -> None:
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step(1e-4)
        if masks is not None:
            masks.apply()

    return step


def masked(width: int, density: float) -> tuple[nn.Module, Masks]:
    network = network_of(width)
    weights = list(in_scope(network).items())
    return network, Masks({
        name: largest(torch.rand(weight.shape), round(density * weight.numel())) for name, weight in weights[:-1]
    })  # fmt: skip


def sparse(width: int, density: float) -> nn.Module:
    """All but the last layer."""
    network, masks = masked(width, density)
    for name, mask in masks.values.items():
        path = name.removesuffix(".weight")
        layer = network.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        keys = mask.flatten().nonzero().flatten()
        values, bias = layer.weight.detach().flatten()[keys], layer.bias.detach()
        network.set_submodule(path, SparseLinear(layer.in_features, layer.out_features, keys, values, bias))
    return network


def measured(case: Point, rounds: int) -> list[Point]:
    width, density = int(case["width"]), float(case["weights"].removesuffix(" %")) / 100
    torch.manual_seed(0)
    steps = {
        "connections": step_of(sparse(width, density)),
        "mask": step_of(*masked(width, density)),
        "dense": step_of(network_of(width)),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-2, rounds):
        for name, step in steps.items() if turn % 2 else reversed(steps.items()):
            start = time.thread_time()
            step()
            if turn >= 0:
                times[name].append(1e3 * (time.thread_time() - start))
    medians = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    own = medians["connections_ms"]
    return [
        {**medians, "over_dense": medians["dense_ms"] / own, "over_mask": medians["mask_ms"] / own, "steps": rounds}
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    line = parser("methods.truly_sparse", __doc__, "truly_sparse.cpu.json")
    line.add_argument("--widths", type=int, nargs="+", default=[1000], help="units of each of the hidden layers")
    line.add_argument("--rounds", type=int, default=40, help="steps of each that are timed")
    line.add_argument("--limit-s", type=float, default=float("inf"))
    options = line.parse_args(arguments)
    torch.set_num_threads(1)
    cases: list[Point] = [
        {"width": str(width), "weights": f"{100 * density:g} %"} for width in options.widths for density in DENSITIES
    ]
    every = fill(
        options.out, command(line, options, ("limit_s",)), cases, lambda c: measured(c, options.rounds), options.limit_s
    )
    return EXIT_PASS if every else EXIT_INCONCLUSIVE


if __name__ == "__main__":
    sys.exit(main())
