"""Networks by name. Importing this package loads no torch, so that names can be looked up without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.models.networks import network

if TYPE_CHECKING:
    from torch import nn

    from pipeline import config
    from pipeline.data import Dataset


def build_for(section: config.Model, data: Dataset) -> nn.Module:
    """The network `section.name` for these images; whether its answers are those of a task, the task is asked."""
    return build(section, num_classes=len(data.names), input_shape=data.input_shape, classifies=False)


def build(
    section: config.Model, *, num_classes: int | None, input_shape: tuple[int, int, int], classifies: bool = True
) -> nn.Module:
    """The network `section.name` as `pipeline.models.networks.network` makes it, with `section.weights` where given."""
    from pipeline.models.checkpoint import start_from

    model = network(section.name, section.args, num_classes=num_classes, input_shape=input_shape, classifies=classifies)
    if section.weights is not None:
        start_from(model, section, num_classes, input_shape[0])
    return model
