"""Networks by name, and their weights as safetensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from export.files import replacing
from pipeline import config, lookup
from runtime.errors import UserError

OWN = {
    "demo:resnet": "pipeline.networks.demo:resnet",
    "cifar:resnet18": "pipeline.networks.cifar:resnet18",
    "cifar:resnet20": "pipeline.networks.cifar:resnet20",
    "cifar:resnet50": "pipeline.networks.cifar:resnet50",
    "cifar:resnet56": "pipeline.networks.cifar:resnet56",
    "cifar:vgg16_bn": "pipeline.networks.cifar:vgg16_bn",
}
OPTIONAL_SUFFIX = ".num_batches_tracked"


def build(section: config.Model, *, num_classes: int | None, input_shape: tuple[int, int, int]) -> nn.Module:
    """The network `section.name`, in training mode on the CPU, with `section.weights` where given.

    It is run once on zeros (2, C, H, W) and must answer (2, num_classes); with None, it has the outputs its maker
    gives it when not asked for a number, of whatever form. Torch's global random state decides fresh
    weights. Raises UserError.
    """
    make, offers = _maker(section, num_classes, input_shape)
    try:
        model = make(**offers, **section.args)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"building {section.name} with model.args {section.args} raised {type(error).__name__}: {error}",
            "arguments that the network's constructor takes",
            "mend model.args",
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{section.name} returned {type(model).__name__}", "a torch.nn.Module", "mend the function")
    _probe(model, section.name, num_classes, input_shape)
    if section.weights is not None:
        load_weights(model, Path(section.weights).expanduser())
    return model.train()


def _maker(
    section: config.Model, num_classes: int | None, input_shape: tuple[int, int, int]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A constructor and what it gets beside `section.args`; an argument the user gives is not offered.

    A function of the user's gets num_classes and input_shape where it takes them.
    """
    kind, _, name = section.name.partition(":")
    offers: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    match kind:
        case "demo" | "cifar":
            if section.name not in OWN:
                raise _unknown(section.name, list(OWN))
            make = lookup.function_named(OWN[section.name], "model.name")
            offers["input_shape"] = input_shape
        case "torchvision":
            from torchvision import models

            known = models.list_models(module=models)
            if name not in known:
                raise _unknown(section.name, [f"torchvision:{one}" for one in known])
            make, offers = models.get_model, {"name": name, "weights": None, **offers}
        case "timm":
            make, offers = _timm(section.name), {"model_name": name, "in_chans": input_shape[0], **offers}
        case _:
            if not lookup.MODULE_FUNCTION.fullmatch(section.name):
                raise _unknown(section.name, [*OWN, "torchvision:resnet18", "timm:resnet18", "package.module:function"])
            make = lookup.function_named(section.name, "model.name")
            named = inspect.signature(make).parameters
            catches_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in named.values())
            offers = offers if catches_all or "num_classes" in named else {}
            offers |= {"input_shape": input_shape} if "input_shape" in named else {}
    return make, {key: value for key, value in offers.items() if key not in section.args}


def _timm(spec: str) -> Callable[..., Any]:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(
            f"model.name is {spec} and timm is not installed", "the extra timm", "pip install 'demport[timm]'"
        ) from error
    name = spec.removeprefix("timm:")
    if not timm.is_model(name):
        raise _unknown(spec, [f"timm:{one}" for one in timm.list_models()])
    make: Callable[..., Any] = timm.create_model
    return make


def _unknown(spec: str, known: list[str]) -> UserError:
    return UserError(f'model.name is "{spec}"', "a network that exists", f"perhaps {lookup.nearest(spec, known)}")


def _probe(model: nn.Module, name: str, num_classes: int | None, input_shape: tuple[int, int, int]) -> None:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *input_shape))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} cannot run on images {input_shape} (C, H, W) ({reason})",
            "a network for these images",
            "set data.image_size, or choose another network",
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if num_classes is None:
        return
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{name} answers two images with {found}",
            f"logits (2, {num_classes})",
            "give the network as many outputs as there are classes (model.args)",
        )


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes parameters and buffers, atomically; of tensors that share memory, the one with the first name."""
    groups = _tied(model)
    state = model.state_dict()
    tensors = {names[0]: state[names[0]].detach().cpu().contiguous() for names in groups}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies the tensors of `path` into `model`; names and shapes must be the same, half precision is widened.

    A tied tensor may be there under any of its names. `num_batches_tracked` of a batch norm may be missing.
    Raises UserError and then leaves the model as it was.
    """
    loaded = _read(path)
    state = model.state_dict()
    unused = set(loaded) - set(state)
    missing = []
    chosen: dict[str, Tensor] = {}
    for names in _tied(model):
        present = [name for name in names if name in loaded]
        if present:
            chosen |= dict.fromkeys(names, loaded[present[0]])
        elif not names[0].endswith(OPTIONAL_SUFFIX):
            missing.append(names[0])
    if missing or unused:
        lacks = f"lacks {len(missing)} tensors of the network (first {min(missing)})" if missing else ""
        more = f"has {len(unused)} that the network does not (first {min(unused)})" if unused else ""
        raise UserError(
            f"{path} {' and '.join(filter(None, (lacks, more)))}",
            "weights of this very network",
            "mend model.name, model.args or model.weights",
        )
    for name, tensor in chosen.items():
        _demand_fit(path, name, tensor, state[name])
    model.load_state_dict(chosen, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is no file", "a safetensors file", "mend model.weights")
    try:
        loaded: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error})", "a safetensors file", "write it with safetensors.torch.save_file"
        ) from error
    return loaded


def _demand_fit(path: Path, name: str, tensor: Tensor, wanted: Tensor) -> None:
    widened = tensor.dtype in (torch.float16, torch.bfloat16) and wanted.dtype == torch.float32
    if tensor.shape != wanted.shape or not (tensor.dtype == wanted.dtype or widened):
        raise UserError(
            f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}".replace("torch.", ""),
            f"{wanted.dtype} {tuple(wanted.shape)}".replace("torch.", ""),
            "give weights of this very network, trained for as many classes",
        )
    if tensor.is_floating_point() and not bool((tensor.isfinite() | (tensor == wanted.cpu())).all()):
        raise UserError(
            f"{path}: {name} holds NaN or infinity",
            "finite weights; infinity only where the network itself is made with it, in a mask",
            "export the weights again",
        )


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of the state that are the same memory, sorted within and over the groups."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in sorted(model.state_dict().items()):
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        groups.setdefault(place if tensor.numel() else (name,), []).append(name)
    return sorted(groups.values())
