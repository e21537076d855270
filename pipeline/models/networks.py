"""Networks by name, with fresh weights. Importing this module loads no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline import lookup
from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn

OWN = {
    "demo:resnet": "pipeline.models.demo:resnet",
    "demo:unet": "pipeline.models.unet:unet",
    "demo:detector": "pipeline.models.detection.demo:detector",
    "cifar:resnet18": "pipeline.models.cifar:resnet18",
    "cifar:resnet20": "pipeline.models.cifar:resnet20",
    "cifar:resnet50": "pipeline.models.cifar:resnet50",
    "cifar:resnet56": "pipeline.models.cifar:resnet56",
    "cifar:vgg16_bn": "pipeline.models.cifar:vgg16_bn",
    "mlp:relu": "pipeline.models.mlp:relu",
    "mlp:all_relu": "pipeline.models.mlp:all_relu",
}


def network(
    name: str,
    args: Mapping[str, Any],
    *,
    num_classes: int | None,
    input_shape: tuple[int, int, int],
    classifies: bool = True,
) -> nn.Module:
    """The network `name`, in training mode on the CPU. Torch's global random state decides its weights.

    It is run once on zeros (2, C, H, W) and, where it `classifies`, must answer (2, num_classes); with None, it has the
    outputs its maker gives it when not asked for a number, of whatever form. Raises UserError.
    """
    from torch import nn

    make, offers = _maker(name, args, num_classes, input_shape)
    try:
        model = make(**offers, **args)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"building {name} with model.args {dict(args)} raised {type(error).__name__}: {error}",
            "arguments that the network's constructor takes",
            "mend model.args",
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} returned {type(model).__name__}", "a torch.nn.Module", "mend the function")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise UserError(
            f"{name} returned a network on the device meta, whose weights have no memory", "a network on the CPU",
            "build it outside torch.device('meta'), or call to_empty and fill it",
        )  # fmt: skip
    _probe(model, name, num_classes, input_shape, classifies)
    return model.train()


def _maker(
    spec: str, args: Mapping[str, Any], num_classes: int | None, input_shape: tuple[int, int, int]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A constructor and what it gets beside `args`; an argument the user gives is not offered.

    A function of the user's gets num_classes and input_shape where it takes them.
    """
    kind, _, name = spec.partition(":")
    offers: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    match kind:
        case "demo" | "cifar" | "mlp":
            if spec not in OWN:
                raise _unknown(spec, list(OWN))
            make = lookup.function_named(OWN[spec], "model.name")
            offers["input_shape"] = input_shape
        case "torchvision":
            from torchvision import models

            of_pixels = models.list_models(module=models.segmentation)
            names = [*models.list_models(module=models), *of_pixels]
            if name in models.list_models(module=models.detection):
                make = lookup.function_named("pipeline.models.detection.adapters:torchvision_detector", "model.name")
                offers = {"name": name, "input_shape": input_shape, **offers}
                return make, {key: value for key, value in offers.items() if key not in args}
            if name not in names:
                raise _unknown(spec, [f"torchvision:{one}" for one in names])
            make, offers = models.get_model, {"name": name, "weights": None, **offers}
            offers |= {"weights_backbone": None} if name in of_pixels else {}  # which is loaded otherwise
        case "timm":
            make, offers = _timm(spec), {"model_name": name, "in_chans": input_shape[0], **offers}
        case _:
            if not lookup.MODULE_FUNCTION.fullmatch(spec):
                raise _unknown(spec, [*OWN, "torchvision:resnet18", "timm:resnet18", "package.module:function"])
            make = lookup.function_named(spec, "model.name")
            named = inspect.signature(make).parameters
            catches_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in named.values())
            offers = offers if catches_all or "num_classes" in named else {}
            offers |= {"input_shape": input_shape} if "input_shape" in named else {}
    return make, {key: value for key, value in offers.items() if key not in args}


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


def _unknown(spec: str, names: list[str]) -> UserError:
    return UserError(f'model.name is "{spec}"', "a network that exists", f"perhaps {lookup.nearest(spec, names)}")


def _probe(
    model: nn.Module, name: str, num_classes: int | None, input_shape: tuple[int, int, int], classifies: bool
) -> None:
    import torch

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
    if num_classes is not None and classifies:
        demand_logits(logits, name, num_classes)


def demand_logits(logits: Any, name: str, num_classes: int) -> None:
    """UserError where a network's answer to two images is not (2, num_classes)."""
    import torch

    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        answer = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"{name} answers two images with {answer}",
            f"logits (2, {num_classes})",
            "give the network as many outputs as there are classes (model.args)",
        )
