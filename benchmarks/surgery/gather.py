"""The gather form of convolutions that read few whole kernels, beside dense and scattered weights, in ONNX Runtime.

    python -m benchmarks.surgery.gather --out benchmarks/results/gather.cpu.json

ResNet-18 with random weights, 128x128, one image at a time. dense: all weights. scattered: in every convolution but the
first as many weights as `fan_in` kernels an output are, at random places; what is dead is cut. kernels: `fan_in` whole
kernels for each output, cut likewise, in dense form; gather: the same network with every such layer in gather form.
`macs_pct` is of dense. All four are timed in turn, over many openings; `speedup` is dense over this one.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.results import Point
from benchmarks.surgery.deaths import SIDE, compared, exported, filled
from benchmarks.surgery.networks import build
from pipeline.surgery import shrink
from pipeline.surgery.gather import gathered
from runtime.errors import EXIT_INCONCLUSIVE, EXIT_PASS
from runtime.macs import macs

MODEL, FAN_INS, BATCH = "resnet18", (2, 3, 4), 1


def cases() -> list[Point]:
    return [{"model": MODEL, "fan_in": fan_in} for fan_in in FAN_INS]


@torch.no_grad()
def masked(model: str, fan_in: int, whole: bool) -> nn.Module:
    """Whole kernels, `fan_in` for each output, or as many weights at random places."""
    network, generator = build(model), torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            weight = module.weight
            ones = torch.ones_like(weight)
            mask: Tensor = ones if whole else torch.zeros_like(weight)
            if whole:
                rank = torch.rand(weight.shape[:2], generator=generator).argsort(1).argsort(1)
                mask = ones * (rank < fan_in)[:, :, None, None]
            else:
                count = fan_in * weight.shape[0] * weight.shape[2:].numel()
                mask.view(-1)[torch.randperm(weight.numel(), generator=generator)[:count]] = 1
            weight.mul_(mask)
    return network


def measured(case: Point, threads: int, time_limit_s: float) -> list[Point]:
    """The four networks."""
    example = (torch.zeros(1, 3, SIDE, SIDE),)
    kernels, scattered = (
        shrink(masked(case["model"], case["fan_in"], whole), example, verify=False) for whole in (True, False)
    )
    forms = shrink(masked(case["model"], case["fan_in"], True), example, verify=False)
    networks: dict[str, nn.Module] = {
        "dense": build(case["model"]), "scattered": scattered.model, "kernels": kernels.model,
        "gather": gathered(forms, example).model,
    }  # fmt: skip
    counts = {name: macs(network, (3, SIDE, SIDE)) for name, network in networks.items()}
    with tempfile.TemporaryDirectory() as folder:
        seen = compared(exported([*networks.values()], Path(folder)), BATCH, threads, time_limit_s)
    points: list[Point] = []
    for name, row in zip(networks, seen.models, strict=True):
        points.append({
            "form": name, "batch": BATCH, "macs_pct": 100 * counts[name] / counts["dense"],
            "params": sum(p.numel() for p in networks[name].parameters()),
            "p50_ms": row.p50_ms, "p95_ms": row.p95_ms, "samples": row.n, "openings": seen.protocol["openings"],
        })  # fmt: skip
    for point, speedup in zip(points[1:], seen.speedups, strict=True):
        point["speedup"], (point["speedup_low"], point["speedup_high"]) = speedup.ratio, speedup.ci95
    return points


def main(arguments: list[str] | None = None) -> int:
    out = filled("surgery.gather", __doc__, arguments, 60.0, cases(), measured)
    return EXIT_PASS if out is not None else EXIT_INCONCLUSIVE


if __name__ == "__main__":
    sys.exit(main())
