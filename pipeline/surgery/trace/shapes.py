"""What calls return on meta tensors. Networks repeat their blocks, so most calls are like one that was made before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LINEAR = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)  # the latter makes attention's output
# Outputs are as inputs in shape and dtype; on meta tensors the normalisation alone takes a third of the tracing.
SHAPE_PRESERVING = frozenset(
    (
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.Dropout, nn.Identity,
        nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid,
    )
)  # fmt: skip
_CONVOLUTION = ("stride", "padding", "dilation", "groups", "padding_mode")
# Modules whose output has the shape that their parameters, these attributes and the input give it.
CONFIGURED: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys(LINEAR, ()), **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _CONVOLUTION),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}  # fmt: skip
# Views and sizes are as fast to make as to look up.
QUICK = frozenset(
    (
        "getattr getitem size dim numel view reshape permute transpose flatten unflatten squeeze unsqueeze chunk split "
        "unbind expand contiguous"
    ).split()
)
_PLAIN = frozenset((bool, int, float, str, type(None), torch.dtype, torch.device))
Call = Callable[..., Any]


class Shapes:
    """Calls functions, methods and modules of torch on meta tensors, each once for arguments alike."""

    def __init__(self) -> None:
        self._results: dict[Any, Tensor] = {}
        self._tensors: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = {}

    def of_function(self, target: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        own = str(getattr(target, "__module__", "")).partition(".")[0] in ("torch", "_operator")
        return self._once(target if own and target.__name__ not in QUICK else None, target, args, kwargs)

    def of_method(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        call = getattr(args[0], name)
        tensor = isinstance(args[0], Tensor) and name not in QUICK and not name.endswith("_")
        return self._once(name, call, args[1:], kwargs, args[0]) if tensor else call(*args[1:], **kwargs)

    def of_module(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        kind = type(module)
        if kind in SHAPE_PRESERVING and len(args) == 1 and isinstance(args[0], Tensor):
            x = args[0]
            return self._contiguous(x.shape, x.dtype) if x.is_contiguous() else torch.empty_like(x)
        if kind not in CONFIGURED or module._forward_hooks or module._forward_pre_hooks:
            return module(*args, **kwargs)
        settings = tuple(getattr(module, name) for name in CONFIGURED[kind])
        return self._once((kind, settings), module, args, kwargs, *module._parameters.values())

    def _contiguous(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of its own, or a view of one with nothing in common but the shape."""
        key = (tuple(shape), dtype)
        if key not in self._tensors:
            self._tensors[key] = torch.empty(key[0], dtype=dtype, device="meta")
        return self._tensors[key][...]

    def _once(self, what: Any, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any], *looks_at: Any) -> Any:
        """The result of the call; of one that is known, a view with nothing in common but the shape."""
        if what is None:
            return call(*args, **kwargs)
        try:
            key = (what, outline(args), outline(kwargs), outline(looks_at))
            earlier = self._results.get(key)
        except TypeError:
            return call(*args, **kwargs)
        if earlier is not None:
            return earlier[...]
        result = call(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_meta:
            self._results[key] = result[...]
        return result


def outline(x: Any) -> Any:
    """What the shape of a result may depend on, to be hashed. Raises TypeError where that is not known."""
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype, x.requires_grad
    if type(x) in _PLAIN:
        return type(x), x
    if isinstance(x, Mapping):
        return tuple((key, outline(value)) for key, value in x.items())
    if isinstance(x, list | tuple):
        return type(x), *map(outline, x)
    raise TypeError(f"{type(x).__name__} has no outline")
