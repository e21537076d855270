"""Starting weights as people have them: safetensors, checkpoints of a training script, a library's own.

A checkpoint is read with `weights_only=True`, so that it runs no code.
"""

from __future__ import annotations

import contextlib
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.model import DEFAULT, Model
from pipeline.models.weights import copy_weights, read_weights
from runtime.errors import UserError

SUFFIXES = (".pt", ".pth", ".bin")
KEYS = ("state_dict", "model", "model_state_dict", "ema")
"""Where a checkpoint has its weights; the first that is there."""
MAX_BYTES = 16 * 2**30
State = Mapping[str, Tensor]


def start_from(model: nn.Module, section: Model, num_classes: int | None, channels: int) -> None:
    """Copy the weights that `section.weights` names into `model`, of images with so many `channels`.

    With `section.new_head` tensors whose first dimension is another number of classes stay as they are. Raises
    UserError, and then leaves the model as it was.
    """
    assert section.weights is not None
    if section.weights == DEFAULT:
        state, origin = default_weights(section, channels), f"{section.name}'s default weights"
    else:
        path = Path(section.weights).expanduser()
        state, origin = state_of(path), str(path)
    state = unprefixed(state, model.state_dict().keys())
    head = other_classes(state, model.state_dict(), num_classes)
    if head and not section.new_head:
        raise UserError(
            f"{origin}: {', '.join(head)} {'are' if len(head) > 1 else 'is'} for {len(state[head[0]])} classes",
            f"{num_classes}, as the data has",
            "set model.new_head: true to begin with a new head, or give weights for these classes",
        )
    copy_weights(model, {name: tensor for name, tensor in state.items() if name not in head}, origin, frozenset(head))


def state_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a checkpoint by torch.save. Raises UserError."""
    if path.suffix not in SUFFIXES:
        return read_weights(path)
    if not path.is_file():
        raise UserError(f"{path} is no file", "a safetensors file or a checkpoint", "mend model.weights")
    _demand_bounded(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of unpickling: whatever a file can cause
        raise UserError(
            f"{path} cannot be read with weights_only=True ({(str(error).splitlines() or [''])[0][:120]})",
            "a checkpoint of tensors and plain values",
            "save the state_dict alone: torch.save(model.state_dict(), FILE)",
        ) from error
    state = _tensors_in(content)
    if state is None:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(
            f"{path} holds no state dict (it has {keys or 'nothing'})",
            f"tensors by name, bare or under {', '.join(KEYS)}",
            "save the state_dict alone: torch.save(model.state_dict(), FILE)",
        )
    return state


def unprefixed(state: State, names: Any) -> dict[str, Tensor]:
    """Without what torch.compile, DataParallel and averaged models put before the names; `names`: of the network."""
    renamed = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    while renamed and not renamed.keys() & set(names):
        rest = {name: tensor for name, tensor in renamed.items() if name != "n_averaged"}
        if not rest or not all(name.startswith("module.") for name in rest):
            break
        renamed = {name.removeprefix("module."): tensor for name, tensor in rest.items()}
    return renamed


def other_classes(state: State, expected: State, num_classes: int | None) -> list[str]:
    """Names of the tensors that differ from the network's in their first dimension alone, which there is the number of
    classes; none where another tensor does not fit either."""
    unlike = [name for name, tensor in state.items() if name in expected and tensor.shape != expected[name].shape]
    fits = [n for n in unlike if expected[n].dim() and state[n].dim() and len(expected[n]) == num_classes
            and state[n].shape[1:] == expected[n].shape[1:]]  # fmt: skip
    return fits if len(fits) == len(unlike) and len({len(state[name]) for name in fits}) == 1 else []


def default_weights(section: Model, channels: int) -> State:
    """Those that torchvision or timm has for the network, downloaded where they are not there yet. Raises UserError
    where there are none, or the machine cannot download."""
    kind, _, name = section.name.partition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the JSON document
            return _torchvision(name) if kind == "torchvision" else _timm(name, section.args, channels)
    except UserError:
        raise
    except Exception as error:  # of the network, of the folder, of a broken file
        raise UserError(
            f"the default weights of {section.name} cannot be loaded ({(str(error).splitlines() or [''])[0][:120]})",
            "a machine that can download, or has them in its cache",
            "give a file: model.weights: FILE",
        ) from error


def best_weights(name: str) -> Any:
    """torchvision's entry of the weights that are its default. UserError where it has none."""
    from torchvision import models

    every = models.get_model_weights(name)
    if not len(every):
        raise UserError(f"torchvision has no weights of {name}", "a network with weights", "give a file")
    return every["DEFAULT"] if "DEFAULT" in every.__members__ else next(iter(every))


def _torchvision(name: str) -> State:
    state: State = best_weights(name).get_state_dict(progress=False, check_hash=True, weights_only=True)
    return state


def _timm(name: str, args: Mapping[str, Any], channels: int) -> State:
    import timm

    arguments = {key: value for key, value in args.items() if key != "num_classes"}
    network: nn.Module = timm.create_model(name, pretrained=True, in_chans=channels, **arguments)
    return network.state_dict()


def _demand_bounded(path: Path) -> None:
    """torch.save makes a zip archive that is not compressed: reading it takes no more memory than its bytes."""
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise UserError(f"{path} is a compressed archive", "a file by torch.save", "save the state_dict again")
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size / 2**30:.0f} GiB", "at most 16 GiB", "save the state_dict alone")


def _tensors_in(content: Any, depth: int = 2) -> dict[str, Tensor] | None:
    """Of a state dict: bare, or under one of `KEYS`, perhaps once more."""
    if not isinstance(content, Mapping) or not content or not all(isinstance(name, str) for name in content):
        return None
    if all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    inner = (_tensors_in(content[key], depth - 1) for key in KEYS if depth and key in content)
    return next((state for state in inner if state is not None), None)
