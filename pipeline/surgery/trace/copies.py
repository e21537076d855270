"""Copies of networks around other tensors, and graphs with the modules that they name."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

_PLAIN = (bool, int, float, str, type(None), type, torch.dtype, torch.device)
_SIMPLE = frozenset((bool, int, float, str, type(None)))
_CONTAINERS = frozenset((dict, OrderedDict, list, set))
_TABLES = ("_parameters", "_buffers", "_modules")
_HOOKS = {key: None for key, value in vars(nn.Module()).items() if type(value) is OrderedDict}  # in order
_EVERY = vars(nn.Module()).keys()  # attributes that every module has


def deep_copy(model: nn.Module) -> nn.Module:
    """A copy in memory of its own; results that a module keeps between calls (caches) are copied without their past."""
    return copy.deepcopy(model, cached_results(modules_by_path(model).values()))


def modules_by_path(model: nn.Module, every: bool = False) -> dict[str, nn.Module]:
    """`dict(model.named_modules(remove_duplicate=not every))`, without a generator for each level, which is slow."""
    modules: dict[str, nn.Module] = {}
    seen: set[int] = set()
    todo = [("", model)]
    while todo:
        path, module = todo.pop()
        if not every and id(module) in seen:
            continue
        seen.add(id(module))
        modules[path] = module
        if module._modules:
            dot = path and f"{path}."
            todo += [(dot + name, child) for name, child in reversed(module._modules.items()) if child is not None]
    return modules


def own_values(module: nn.Module) -> list[Any]:
    """The attributes that the module's class gave it, parameters, buffers and submodules apart; no plain ones."""
    return [value for key, value in vars(module).items() if type(value) not in _SIMPLE and key not in _EVERY]


def cached_results(modules: Iterable[nn.Module]) -> dict[int, Any]:
    """Tensors that modules keep and that have a gradient history, which `copy.deepcopy` refuses; detached copies."""
    memo: dict[int, Any] = {}
    todo: list[Any] = [v for m in modules for v in own_values(m)]
    while todo:
        value = todo.pop()
        kind = type(value)
        if kind in _SIMPLE:
            continue
        if kind is tuple or kind is list:
            todo += value
        elif kind is dict or kind is OrderedDict:
            todo += value.values()
        elif isinstance(value, torch.Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    return memo


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy of the network whose parameters and buffers have shapes but no memory."""
    modules = modules_by_path(model).values()
    memo = cached_results(modules)
    for tensor in tensors_of(modules):
        empty = torch.empty_like(tensor, device="meta")
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if parameter else empty
    return copy_modules(model, memo)


def tensors_of(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    """Parameters and buffers, each once."""
    tables = [table for m in modules for table in (m._parameters, m._buffers) if table]
    return list({id(t): t for table in tables for t in table.values() if t is not None}.values())


def named_tensors(modules: Mapping[str, nn.Module]) -> list[tuple[str, torch.Tensor]]:
    """Parameters, then buffers, under every name that they have in `modules`, by path."""
    tables: tuple[Callable[[nn.Module], Any], ...] = (lambda m: m._parameters, lambda m: m._buffers)
    return [
        (f"{path}.{name}" if path else name, tensor)
        for table in tables
        for path, m in modules.items()
        for name, tensor in table(m).items()
        if tensor is not None
    ]


def shallow_copy(model: nn.Module) -> nn.Module:
    """New module objects around the same parameters and buffers."""
    modules = modules_by_path(model).values()
    return copy_modules(model, cached_results(modules) | {id(t): t for t in tensors_of(modules)})


def set_mode(model: nn.Module, training: bool) -> nn.Module:
    """`model.train(training)`, which is slow for it assigns to every module."""
    modules = list(modules_by_path(model).values())
    if any(type(m).train is not nn.Module.train for m in modules):
        return model.train(training)
    for m in modules:
        if m.training != training:
            m.training = training
    return model


def copy_modules(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(module, memo)`, but empty hook tables and plain attributes are not walked: four times as fast.

    Classes that say how they are copied are copied their way.
    """
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    kind = type(module)
    if hasattr(kind, "__deepcopy__") or kind.__reduce_ex__ is not object.__reduce_ex__:
        return copy.deepcopy(module, memo)
    own, result = vars(module), kind.__new__(kind)
    memo[id(module)] = result
    copied = result.__dict__
    copied.update(own)
    for key in _HOOKS:
        copied[key] = _copied(own[key], memo) if own.get(key) else OrderedDict()
    for key, value in own.items():
        what = type(value)
        if what in _SIMPLE or key in _HOOKS:
            continue
        copied[key] = _table(value, memo) if key in _TABLES else _copied(value, memo)
    return result


def _table(values: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    result = type(values)()
    for key, value in values.items():
        shared = memo.get(id(value))
        if shared is None:
            shared = copy_modules(value, memo) if isinstance(value, nn.Module) else _copied(value, memo)
        result[key] = shared
    return result


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind is tuple and _SIMPLE.issuperset(map(type, value)):
        return value
    if kind in _CONTAINERS and (kind is list or not value) and _SIMPLE.issuperset(map(type, value)):
        return memo.setdefault(id(value), kind(value))
    return value if isinstance(value, _PLAIN) else copy.deepcopy(value, memo)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network that `torch.compile` was given; where parts of it were compiled, a copy with what those were made of,
    around the same parameters and buffers."""
    original = _compiled(model)
    model = model if original is None else original
    modules = list(modules_by_path(model).values())
    wrappers = [m for m in modules if _compiled(m) is not None]
    if not wrappers:
        return model
    memo = cached_results(modules) | {id(t): t for t in tensors_of(modules)}
    for wrapper in reversed(wrappers):  # the inner ones first
        memo[id(wrapper)] = copy_modules(wrapper._orig_mod, memo)  # type: ignore[arg-type]
    return copy_modules(model, memo)


def plain_name(name: str) -> str:
    """Of a parameter in `unwrapped`."""
    return name.replace("_orig_mod.", "")


def _compiled(module: nn.Module) -> nn.Module | None:
    """What a compiled module was made of."""
    original = module._modules.get("_orig_mod")
    return original if isinstance(original, nn.Module) else None


def add_node(
    graph: fx.Graph, op: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
) -> fx.Node:
    """`graph.create_node`, which looks for symbolic sizes in all arguments it is given; here they are none."""
    node = graph.create_node(op, target, (), {}, name, type_expr)
    node.args = args
    if kwargs:
        node.kwargs = kwargs
    return node


def graph_module(root: nn.Module, graph: fx.Graph, class_name: str) -> fx.GraphModule:
    """`fx.GraphModule(root, graph, class_name)`."""
    result = fx.GraphModule(nn.Module(), fx.Graph(), class_name)
    take_over(result, root, graph)
    return result


def take_over(result: fx.GraphModule, root: nn.Module, graph: fx.Graph) -> None:
    """Give an empty module the graph, and the modules and tensors that it names, in containers of its own.

    fx does so in its constructor, where it looks each path up step by step, which takes ten times as long.
    """
    result.training = root.training
    homes: dict[str, tuple[Any, Any]] = {"": (root, result)}  # path -> module of root, module of made
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            _place(str(node.target), homes)
    result.graph = graph


def _place(path: str, homes: dict[str, tuple[Any, Any]]) -> None:
    above, _, name = path.rpartition(".")
    source, target = _home(above, homes)
    if source is target:  # part of a module that was taken over as a whole
        return
    if name in source._modules:
        target._modules[name] = source._modules[name]
    elif name in source._parameters:
        target._parameters[name] = source._parameters[name]
    elif name in source._buffers:
        target.register_buffer(name, source._buffers[name], name not in source._non_persistent_buffers_set)
    else:
        setattr(target, name, attrgetter(name)(source))


def _home(path: str, homes: dict[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    """The module at a path and its counterpart, an empty container where there was none."""
    if path not in homes:
        above, _, name = path.rpartition(".")
        source, target = _home(above, homes)
        if name not in target._modules:
            target._modules[name] = nn.Module()
        homes[path] = (source._modules[name], target._modules[name])
    return homes[path]
