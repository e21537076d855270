"""What a network must do for a training to make sense, asked of it before hours are spent: on random images, on the
CPU, as it comes out of its constructor."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from runtime.errors import UserError

if TYPE_CHECKING:
    from pipeline.data import Dataset
    from pipeline.tasks import Task

IMAGES = 4
FAR = 1e-3
"""Share of the largest output; sums in another order differ by some 1e-6 of it."""


def demand_sound(network: nn.Module, name: str, shape: tuple[int, ...], batch: int) -> None:
    """UserError where `network`, of images `shape` (C, H, W), answers at random in eval mode, answers an image
    differently beside others, or cannot be trained with `batch` images a step. Torch's random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(IMAGES, *shape)
        copied = copy.deepcopy(network)
        _demand_one_answer(copied.eval(), name, images)
        _demand_trainable(copied.train(), name, images[: min(batch, 2)])


def demand_exportable(
    network: nn.Module,
    name: str,
    shape: tuple[int, ...],
    opset: int | Literal["auto"],
    then: Callable[[Path], None] = lambda path: None,
) -> None:
    """UserError where no ONNX file can be written of it, or `then` refuses the file. torch's exporter takes seconds."""
    from export.onnx.from_torch import onnx_from_torch

    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        path = Path(folder) / "network.onnx"
        images = torch.randn(IMAGES, *shape)
        network = copy.deepcopy(network).eval()
        try:
            onnx_from_torch(network, images, path, opset=opset, max_abs_diff=math.inf, metadata={})
        except UserError as error:
            problem = f"{name} cannot become an ONNX file: {error.found}"
            raise UserError(problem, error.expected, error.remedy) from error
        then(path)


@torch.no_grad()
def demand_task(network: nn.Module, name: str, task: Task, data: Dataset) -> None:
    """UserError where `network` does not answer as the task asks: tensors with a row for each image, by the names of
    its outputs, and whatever else it demands."""
    copied = copy.deepcopy(network).eval()
    answer = copied(torch.zeros(2, *data.input_shape))
    if task.demand is not None:
        task.demand(answer, name, len(data.names), data.input_shape)
    outputs = task.outputs_of(answer)
    named = outputs if isinstance(outputs, Mapping) else dict.fromkeys(task.outputs, outputs)
    each = {key: value for key, value in named.items() if isinstance(value, Tensor) and len(value) == 2}
    if tuple(each) != task.outputs or (len(task.outputs) > 1 and not isinstance(outputs, Mapping)):
        answers = ", ".join(named) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise UserError(
            f"{name} answers two images with {answers}",
            f"{' and '.join(task.outputs)}, tensors with a row for each image",
            "mend the network, or choose another task.name",
        )


@torch.no_grad()
def _demand_one_answer(network: nn.Module, name: str, images: Tensor) -> None:
    first, second = tensors_of(network(images)), tensors_of(network(images))
    if any(one.ndim == 0 or len(one) != len(images) for one in first):
        return  # another check names it
    if any(far(a, b) for a, b in zip(first, second, strict=True)):
        raise UserError(
            f"{name} answers the same images differently the second time, in eval mode",
            "the same answer each time",
            "let what is random follow self.training, e.g. F.dropout(x, p, self.training)",
        )
    each = zip(*(tensors_of(network(image[None])) for image in images), strict=True)
    alone = [torch.cat(parts) for parts in each]
    if any(one.shape == a.shape and far(a, one) for a, one in zip(first, alone, strict=True)):
        raise UserError(
            f"{name} answers an image differently beside other images than alone, in eval mode",
            "an answer that depends on the image alone",
            "keep the batch out of the forward pass, e.g. norms over dim 0, or batch norms without running statistics",
        )


def tensors_of(answer: Any) -> list[Tensor]:
    """The floating-point tensors that a network answers with, in whatever containers."""
    return [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def far(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) > FAR * max(float(a.abs().max()), 1e-6)


def _demand_trainable(network: nn.Module, name: str, images: Tensor) -> None:
    try:
        network(images)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} cannot be trained on {len(images)} image{'s' if len(images) > 1 else ''} a step ({reason})",
            "a network that runs in training mode",
            "raise batch_size, or mend the network",
        ) from error
