"""A torch network's tensors by name: what goes in, what comes out, and what they shall be called in a graph."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.onnx import graph
from runtime.errors import UserError

Example = Tensor | tuple[Tensor, ...]
"""A network's input, or its inputs in the order of forward(): each (B, ...) with the same B."""


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every submodule gets its own mode back (some may be frozen in eval within train)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def inputs_named(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """`{"input": example}` for one tensor; several under the names of forward()'s parameters."""
    if isinstance(example, Tensor):
        return {"input": example}
    if len(example) == 1:
        return {"input": example[0]}
    parameters = list(inspect.signature(model.forward).parameters.values())
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][: len(example)]
    names += [f"input_{index}" for index in range(len(names), len(example))]  # the rest went into *args
    return dict(zip(names, example, strict=True))


def rows(tensor: Tensor, count: int) -> Tensor:
    """`count` rows, taken in turn and again from the first when they run out."""
    return tensor[torch.arange(count, device=tensor.device) % len(tensor)]


def outputs_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, graph.Array]:
    """What the network returns for `inputs`, by name: `logits` for one tensor, else the names it has itself.

    Those are the keys of a mapping and the fields of a named tuple or dataclass; a plain tuple's are `output_0`, ...
    `UserError`: it fails, or returns anything but finite tensors with a row per image.
    """
    count = len(next(iter(inputs.values())))
    try:
        returned = model(*inputs.values())
    except Exception as error:  # whatever the user's own forward raises
        raise UserError(
            f"the network fails on a batch of {count}: {type(error).__name__}: {graph.first_line(error)}",
            "a network that takes any batch size",
            "do not fix the batch size in forward()",
        ) from error
    named = _named(returned)
    for value in named.values():
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != count:
            answer = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UserError(
                f"the network returns {answer} for a batch of {count}",
                "tensors with a row per image",
                "wrap the network so that forward() returns such tensors alone",
            )
        if not bool(torch.isfinite(value).all()):
            raise UserError(
                "the network's own logits are not finite", "finite logits", "check its weights and its input"
            )
    return {name: np.asarray(value.detach().cpu().numpy()) for name, value in named.items()}


def _named(returned: object) -> dict[str, Any]:
    if isinstance(returned, Tensor):
        return {"logits": returned}
    if isinstance(returned, Mapping):
        return {str(name): value for name, value in returned.items()}
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in dataclasses.fields(returned)}
    if isinstance(returned, tuple | list) and returned:
        fields = getattr(returned, "_fields", None) or [f"output_{index}" for index in range(len(returned))]
        return {"logits": returned[0]} if len(returned) == 1 else dict(zip(fields, returned, strict=True))
    return {"logits": returned}
