"""Sizes in forward: those given one by one (`torch.zeros(len(x), 4)`), `len(x)`, and numbers that count images."""

from __future__ import annotations

import builtins
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import Function
from torch.utils import _pytree as pytree

from pipeline.surgery.trace.proxies import is_instance

FACTORIES = ("zeros", "ones", "empty", "rand", "randn", "full", "tensor", "as_tensor")
VALUES = (torch.tensor, torch.as_tensor, torch.full)  # their first argument is no row of sizes
FULL = torch.full
UNCOUNTED = ("dim", "ndimension", "element_size", "is_floating_point")
METHODS = ("expand", "repeat", "tile", "view", "reshape", "new_zeros", "new_ones", "new_empty")


@contextmanager
def sizes_followed(code: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Within it, sizes that are proxies reach PyTorch; `len(x)` is one in the namespaces `code`, `isinstance` is right.

    Functions that make tensors, and methods of tensors, look for proxies in a tuple of sizes; one by one they raise. A
    proxy's own methods take sizes either way.
    """
    originals = {name: getattr(torch, name) for name in FACTORIES}
    apply, is_kind = vars(Function)["apply"], builtins.isinstance
    ours = [(names, name) for names in code for name in STAND_INS if name not in names]
    try:
        for names, name in ours:
            names[name] = STAND_INS[name]
        Function.apply = _applied(apply)
        builtins.isinstance = is_instance  # code that asks for a type may lie anywhere
        for name, original in originals.items():
            setattr(torch, name, _recorded("call_function", original, original, 0))
        for name in METHODS:
            setattr(Tensor, name, _recorded("call_method", name, getattr(Tensor, name), 1))
        yield
    finally:
        Function.apply, builtins.isinstance = apply, is_kind
        for names, name in ours:
            del names[name]
        for name, original in originals.items():
            setattr(torch, name, original)
        for name in METHODS:
            if name in vars(Tensor):
                delattr(Tensor, name)  # what its base class has is seen again


def _length(x: Any) -> Any:
    """`len(x)`; of a tensor that is traced, a proxy of its first size."""
    return x.size(0) if isinstance(x, fx.Proxy) and isinstance(x.node.meta["val"], Tensor) else len(x)


STAND_INS = {"len": _length}  # for functions of Python, in the namespaces of the network's code


def _applied(original: Any) -> Any:
    """`torch.autograd.Function.apply`, recorded where it is given a value that is traced."""

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        proxies = [x for x in args if isinstance(x, fx.Proxy)]
        if not proxies:
            return original.__get__(None, cls)(*args, **kwargs)
        return proxies[0].tracer.create_proxy("call_function", cls.apply, args, kwargs)

    return classmethod(apply)


def _recorded(kind: str, target: Any, function: Callable[..., Any], first: int) -> Callable[..., Any]:
    """`function`, recorded where a proxy is among its sizes, the positional arguments from `first` on, or its options.

    Recorded here and not by PyTorch's protocol, which would meet this stand-in and take it for a function of its own.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        sizes = args[first:]
        proxies = [x for x in pytree.tree_leaves((sizes, kwargs)) if isinstance(x, fx.Proxy)]
        if not proxies:
            return function(*args, **kwargs)
        if (
            target is FULL and isinstance(args[1], fx.Proxy) and isinstance(args[1].node.meta["val"], Tensor)
        ):  # a fill value that comes from a buffer
            args = (args[0], args[1].item(), *args[2:])
            if not any(isinstance(x, fx.Proxy) for x in pytree.tree_leaves((args, kwargs))):
                return function(*args, **kwargs)
        one_by_one = bool(sizes) and target not in VALUES and not _several(sizes[0])
        arguments = (*args[:first], args[first:]) if one_by_one else args
        return proxies[0].tracer.create_proxy(kind, target, arguments, kwargs)

    return call


def _several(sizes: Any) -> bool:
    """Whether the argument holds all sizes."""
    return isinstance(sizes.node.meta["val"] if isinstance(sizes, fx.Proxy) else sizes, tuple | list)


def namespaces(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Those of the Python modules that the networks' own classes are written in, and of einops, where it is used."""
    names = {type(m).__module__ for m in modules} | {n for n in sys.modules if n.startswith("einops.")}
    return [vars(sys.modules[n]) for n in names if n in sys.modules and not n.startswith("torch.")]


def demand_size(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """`x` (N, *size), unchanged; another size is refused, for the code of the network took numbers from it."""
    if tuple(x.shape[1:]) != tuple(size):
        actual = "x".join(str(int(n)) for n in x.shape[1:])
        raise ValueError(
            f"the network was cut for inputs of size {'x'.join(map(str, size))}, whose sizes its code computes with; "
            f"this one is {actual}"
        )
    return x


def counts_images(node: fx.Node) -> bool:
    """Whether a number comes from the first size of an activation, alone or as one of all its sizes."""
    return any(axis == 0 for axis, _ in sizes_read(node))


def counts_positions(node: fx.Node) -> bool:
    """Whether a number comes from the size of an image or of a sequence: an axis that is neither images nor channels.

    Of three axes the last two may be either.
    """
    return any(axis >= min(2, rank - 2) > 0 for axis, rank in sizes_read(node))


def sizes_read(node: fx.Node) -> set[tuple[int, int]]:
    """(axis, rank) of the sizes of activations that a number comes from."""
    read: set[tuple[int, int]] = set()
    todo: list[tuple[fx.Node, Any]] = [(node, None)]
    while todo:
        n, which = todo.pop()
        source = n.args[0] if n.args else None
        if not isinstance(source, fx.Node):  # 2 * size
            todo += [(m, None) for m in n.all_input_nodes]
        elif isinstance(source.meta["val"], Tensor):  # size(), size(1), shape, numel()
            index = which or n.args[1:] or tuple(n.kwargs.values())
            rank = len(source.meta["val"].shape)
            if source.op != "get_attr" and n.target not in UNCOUNTED and _of_shape(index):
                read |= {(axis, rank) for axis in _taken(index, rank)}
        elif isinstance(source.meta["val"], tuple) and n.target is operator.getitem:
            todo.append((source, n.args[1:]))
        else:
            todo += [(m, None) for m in n.all_input_nodes]
    return read


def _of_shape(index: tuple[Any, ...]) -> bool:
    """Whether an attribute is read that holds sizes."""
    return not index or not isinstance(index[0], str) or index[0] == "shape"


def _taken(index: tuple[Any, ...], count: int) -> range:
    """Which of `count` entries the index takes, none for all."""
    which = index[0] if index else slice(None)
    if isinstance(which, slice):
        return range(count)[which]
    return range(count) if not isinstance(which, int) else range(count)[which : (which + 1) or None]
