"""Learning from the answers of a trained network (Hinton et al., arXiv 1503.02531); how far two lie apart, the task
says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Distill
from pipeline.tasks import Task
from pipeline.training.compute import Compute
from runtime.errors import UserError


class Teacher:
    """A trained network in eval mode, on the device and in the number format of the training that learns from it."""

    def __init__(self, network: nn.Module, options: Distill, compute: Compute, task: Task) -> None:
        """UserError where the task says of no two answers how far they are apart."""
        if task.distance is None:
            problem = f"sparse.distill, and a task judged by {task.metric} has no distance of two answers"
            raise UserError(problem, "one that has", "set sparse.distill: null, or give the task a `distance`")
        self.options, self._compute, self._distance = options, compute, task.distance
        placed = compute.placed(network.eval().requires_grad_(False))
        self._forward: Callable[..., Any] = torch.compile(placed) if compute.compile else placed

    def mixed(self, loss: Tensor, answers: Any, x: Tensor) -> Tensor:
        """(1 - w) `loss` + w times the distance, for logits T^2 KL(teacher || student); `answers`: the student's to the
        same inputs `x`."""
        with torch.no_grad(), self._compute.autocast():
            aims = self._forward(self._compute.images(x))
        weight, temperature = self.options.weight, self.options.temperature
        return (1 - weight) * loss + weight * self._distance(answers, aims, temperature)
