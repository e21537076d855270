"""The census of dead channels: which activation outputs are never above zero on the images looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.training.compute.distributed import ALONE, Ranks
from runtime.files import replacing

CHUNK = 64
"""Images whose activations are held at once."""


class Watched(Protocol):
    """What a census needs of `pipeline.surgery.watch`."""

    @property
    def watch(self) -> Mapping[str, int]: ...

    @property
    def axis(self) -> Mapping[str, int]: ...

    def observe(self, model_inputs: tuple[Tensor, ...], /) -> Mapping[str, Tensor]: ...


@torch.no_grad()
def census(anatomy: Watched, batches: Iterable[tuple[Tensor, ...]], ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """Name of each watched output -> bool (channels,), on the CPU; True: dead.

    On one batch of the network's inputs (B, ...) a channel is dead iff its sum over all other axes is <= 0; the verdict
    is the AND over the batches. The network runs in eval mode. Exact for ReLU; for others "not positive on average".
    `batches` are this process's parts of them; all processes come to the same verdict.
    """
    dead: dict[str, Tensor] = {}
    for inputs in batches:
        x = inputs[0]
        sums = {name: torch.zeros(width, device=x.device) for name, width in anatomy.watch.items()}
        for start in range(0, len(x), CHUNK):  # of a last small batch a process may have no image
            for name, value in anatomy.observe(tuple(x[start : start + CHUNK] for x in inputs)).items():
                total = value.movedim(anatomy.axis[name], 0).flatten(1).sum(1)
                sums[name] = sums[name] + total
        for name, total in sums.items():
            verdict = ranks.sum(total) <= 0
            dead[name] = dead[name] & verdict if name in dead else verdict
    assert dead.keys() == dict(anatomy.watch).keys(), "no batch, or outputs that are not watched"
    return {name: verdict.cpu() for name, verdict in dead.items()}


def save_census(dead: Mapping[str, Tensor], path: Path) -> None:
    """uint8, 1 = dead; atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(save({name: mask.to(torch.uint8) for name, mask in dead.items()}))


def load_census(path: Path) -> dict[str, Tensor]:
    return {name: mask.bool() for name, mask in load_file(path).items()}
