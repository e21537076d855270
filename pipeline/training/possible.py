"""Whether a DemP training could begin: asked before the dense training, which may take hours."""

from __future__ import annotations

import torch
from torch import nn

from export.flavours import EngineUnavailable, choose
from pipeline import config
from pipeline.data import Dataset
from pipeline.models import build
from pipeline.surgery import Anatomy, anatomy
from pipeline.training.methods.demp import batch_norm_scales
from pipeline.training.ranks import demand_equal_shares, expected_ranks
from pipeline.training.tensorboard import summary_writer
from runtime.errors import UserError


def demand_possible(section: config.Demp, model: config.Model, data: Dataset, device: torch.device) -> None:
    """Raises UserError where the network, the processes, or what is installed here will not do."""
    bare = model.model_copy(update={"weights": None})
    network = build(bare, num_classes=len(data.names), input_shape=data.input_shape).to(device)
    watched(network, model.name, data.input_shape)
    batch_norm_scales(network)
    demand_equal_shares(section.batch_size, len(data.train), expected_ranks())
    if section.tensorboard:
        summary_writer()
    target = section.target
    if target is not None and target.latency_ms is not None and target.backend != "onnxruntime":
        try:
            choose(target.backend, ("CURRENT",))
        except EngineUnavailable as error:
            raise UserError(
                f"demp.target.backend {target.backend}: {error}",
                "what its engines can be built and timed with",
                "set demp.target.backend: onnxruntime, or train where there is a GPU",
            ) from None


def watched(network: nn.Module, name: str, shape: tuple[int, ...]) -> Anatomy:
    """The network's channels that can be watched; `shape` (C, H, W). Raises UserError where there are none."""
    units = anatomy(network, (torch.zeros(2, *shape, device=next(network.parameters()).device),))
    if not units.watch:
        raise UserError(
            units.traced.frozen or f"{name} has no activation that could be watched for dead channels",
            "a network with ReLUs that torch.fx can trace",
            "mend the network, or choose another",
        )
    return units
