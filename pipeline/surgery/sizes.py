"""Sizes in forward: those given one by one (`torch.zeros(len(x), 4)`), `len(x)`, and numbers that count images."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

FACTORIES = ("zeros", "ones", "empty", "rand", "randn")
UNCOUNTED = ("dim", "ndimension", "element_size", "is_floating_point")
METHODS = ("expand", "repeat", "tile", "view", "reshape", "new_zeros", "new_ones", "new_empty")


@contextmanager
def sizes_followed(code: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Within it, sizes that are proxies reach PyTorch; `len(x)` is one in the namespaces `code`, `isinstance` is right.

    Functions that make tensors, and methods of tensors, look for proxies in a tuple of sizes; one by one they raise. A
    proxy's own methods take sizes either way.
    """
    originals = {name: getattr(torch, name) for name in FACTORIES}
    ours = [(names, name) for names in code for name in STAND_INS if name not in names]
    try:
        for names, name in ours:
            names[name] = STAND_INS[name]
        for name, original in originals.items():
            setattr(torch, name, _recorded("call_function", original, original, 0))
        for name in METHODS:
            setattr(Tensor, name, _recorded("call_method", name, getattr(Tensor, name), 1))
        yield
    finally:
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


def _is(x: Any, kinds: Any) -> bool:
    """`isinstance(x, kinds)`; a value that is traced is also what it stands for."""
    return isinstance(x, kinds) or (isinstance(x, fx.Proxy) and isinstance(x.node.meta["val"], kinds))


STAND_INS = {"len": _length, "isinstance": _is}  # for functions of Python, in the namespaces of the network's code


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
        one_by_one = bool(sizes) and not _several(sizes[0])
        given = (*args[:first], sizes) if one_by_one else args
        return proxies[0].tracer.create_proxy(kind, target, given, kwargs)

    return call


def _several(sizes: Any) -> bool:
    """Whether the argument holds all sizes."""
    return isinstance(sizes.node.meta["val"] if isinstance(sizes, fx.Proxy) else sizes, tuple | list)


def namespaces(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Those of the Python modules that the networks' own classes are written in, and of einops, where it is used."""
    names = {type(m).__module__ for m in modules} | {n for n in sys.modules if n.startswith("einops.")}
    return [vars(sys.modules[n]) for n in names if n in sys.modules and not n.startswith("torch.")]


def counts_images(node: fx.Node) -> bool:
    """Whether a number comes from the first size of an activation, alone or as one of all its sizes."""
    todo = [node]
    while todo:
        n = todo.pop()
        source = n.args[0] if n.args else None
        if not isinstance(source, fx.Node):  # 2 * size
            todo += n.all_input_nodes
        elif isinstance(source.meta["val"], Tensor):  # size(), size(1), shape, numel()
            index = n.args[1:] or tuple(n.kwargs.values())
            counts = source.op != "get_attr" and n.target not in UNCOUNTED
            if counts and _has_first(index, len(source.meta["val"].shape)):
                return True
        elif isinstance(source.meta["val"], tuple) and n.target is operator.getitem:
            if _has_first(n.args[1:], len(source.meta["val"])):
                todo.append(source)
        else:
            todo += n.all_input_nodes
    return False


def _has_first(index: tuple[Any, ...], count: int) -> bool:
    """Whether the index, none for all, takes the first of `count` entries."""
    which = index[0] if index else slice(None)
    return 0 in range(count)[which] if isinstance(which, slice) else which in (0, -count, "shape")
