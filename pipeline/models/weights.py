"""A network on disk: weights as safetensors without pickle, and the network of a saved spec, to read them into.

A clear error for every file that does not fit. This is all that `pipeline.surgery` imports of the rest of `pipeline`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from pipeline.models.networks import network as network
from runtime.errors import UserError
from runtime.files import replacing

OPTIONAL_SUFFIX = ".num_batches_tracked"


class _Owned(nn.Module):
    """The state of a network, whose views of a larger memory get memory of their own: safetensors refuses them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._state = {
            name: t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for name, t in model.state_dict().items()
        }

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(self._state)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes parameters and buffers, atomically; of tensors that share memory, the one with the first name."""
    with replacing(path) as temporary:
        save_model(_Owned(model), str(temporary), metadata={"format": "pt"})


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies the tensors of `path` into `model`; names and shapes must be the same, half precision is widened.

    A tied tensor may be there under any of its names. `num_batches_tracked` of a batch norm may be missing.
    Raises UserError and then leaves the model as it was.
    """
    copy_weights(model, read_weights(path), str(path))


def copy_weights(
    model: nn.Module, loaded: Mapping[str, Tensor], path: str, missing_too: frozenset[str] = frozenset()
) -> None:
    """The same with tensors that were read already, from `path`; those of `missing_too` need not be among them."""
    state = model.state_dict()
    unused = set(loaded) - set(state)
    present = {_place(state[name]) for name in loaded if name in state}  # a tied tensor is there under one of its names
    missing = [
        n
        for n in state.keys() - loaded.keys() - missing_too
        if not n.endswith(OPTIONAL_SUFFIX) and _place(state[n]) not in present
    ]
    if missing or unused:
        lacks = f"lacks {len(missing)} tensors of the network (first {min(missing)})" if missing else ""
        more = f"has {len(unused)} that the network does not (first {min(unused)})" if unused else ""
        raise UserError(
            f"{path} {' and '.join(filter(None, (lacks, more)))}",
            "weights of this very network",
            "mend model.name, model.args or model.weights",
        )
    for name, tensor in loaded.items():
        _demand_fit(path, name, tensor, state[name])
    model.load_state_dict(loaded, strict=False)  # safetensors' load_model would do so before it says what is missing


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} is no file", "a safetensors file", "mend model.weights")
    try:
        loaded: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error})", "a safetensors file", "write it with safetensors.torch.save_file"
        ) from error
    return loaded


def _demand_fit(path: str, name: str, tensor: Tensor, expected: Tensor) -> None:
    widened = tensor.dtype in (torch.float16, torch.bfloat16) and expected.dtype == torch.float32
    if tensor.shape != expected.shape or not (tensor.dtype == expected.dtype or widened):
        raise UserError(
            f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}".replace("torch.", ""),
            f"{expected.dtype} {tuple(expected.shape)}".replace("torch.", ""),
            "give weights of this very network, trained for as many classes",
        )
    if tensor.is_floating_point() and not bool((tensor.isfinite() | (tensor == expected.cpu())).all()):
        raise UserError(
            f"{path}: {name} holds NaN or infinity",
            "finite weights; infinity only where the network itself is made with it, in a mask",
            "export the weights again",
        )


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    """Where a tensor lies in memory; None for one without elements, which lies nowhere."""
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else None
