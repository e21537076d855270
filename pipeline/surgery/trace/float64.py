"""Float64, for networks that name another precision themselves: constants made in forward, `x.float()`, dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
NARROWER = {torch.float64: torch.float32, torch.complex128: torch.complex64}
CONSTANT = "_tensor_constant"  # how fx names tensors that forward makes
CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


class Double(TorchFunctionMode):
    """Within it, a call of PyTorch that is given float64 (complex128) widens what else it is given, and casts to it.

    Calls without such a tensor are left alone: what forward makes of constants is what the tracer saw, to the bit. So
    is what a call writes to (`x.add_(y)`, `x[:, 0] = y`, `out=`): the caller holds that tensor. An operator that does
    not take float64 is given float32, and its result widened; `single` names it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.single: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or "out" in kwargs
        arguments = (tuple(args), kwargs)
        if writes or name == "__get__" or not any(map(_is_wide, pytree.tree_leaves(arguments))):
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map(_wider, arguments)
        try:
            return (Tensor.double if func in CASTS else func)(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            result = _in_single(func, arguments, error)
            self.single.add(name)
            return result


def _in_single(func: Callable[..., Any], arguments: tuple[Any, Any], error: Exception) -> Any:
    """What `func` makes of float32, in float64; `error` where it does not take that either."""
    args, kwargs = pytree.tree_map(lambda x: x.to(NARROWER[x.dtype]) if _is_wide(x) else x, arguments)
    try:
        result = func(*args, **kwargs)
    except Exception:
        raise error from None
    return pytree.tree_map(lambda x: widened(x) if isinstance(x, Tensor) else x, result)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float64 (complex128); one of integers, of booleans or of that precision is returned as it is."""
    return tensor.to(WIDER[tensor.dtype]) if tensor.dtype in WIDER else tensor


def in_double(module: nn.Module) -> nn.Module:
    """The module with parameters and buffers in float64 (complex128), in place; constants of a traced graph excepted.

    A network's forward computes with those in their own precision too, until they meet its parameters or inputs.
    """
    constants = {id(buffer) for name, buffer in module.named_buffers() if name.startswith(CONSTANT)}
    module._apply(lambda t: t if id(t) in constants else widened(t))  # type: ignore[no-untyped-call]
    return module


def _is_wide(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in NARROWER


def _wider(x: Any) -> Any:
    if isinstance(x, Tensor):
        return widened(x)
    return WIDER.get(x, x) if isinstance(x, torch.dtype) else x
