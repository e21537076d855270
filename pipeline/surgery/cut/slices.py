"""The entries of a parameter that stay, copied into memory of their own.

On the CPU NumPy copies, two threads at once, for it does so without Python's lock; one of its threads is faster than
several of PyTorch's that wait for each other. The memory to fill comes from PyTorch and the first thread: NumPy would
ask the system for huge pages, which are slow to come by, and what a second thread gives back is of no use to the first.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.surgery.channels.labels import Ids
from pipeline.surgery.cut.carry import Cut

CACHE_BYTES = 1 << 18
LARGE = 1 << 18  # elements left of a tensor whose rows are worth two copies
ALL = 1 << 18  # elements in all that are worth a second thread
PLAIN = (torch.float32, torch.float64)
Array = NDArray[Any]
Copy = Callable[[], None]


class Copies:
    """Copies to be made, and the number of elements of each."""

    def __init__(self) -> None:
        self._todo: list[tuple[int, Copy]] = []

    def add(self, size: int, copy: Copy) -> None:
        self._todo.append((size, copy))

    def make(self) -> None:
        """All of them, the largest first; errors of either thread are raised."""
        self._todo.sort(key=lambda job: job[0])
        if sum(size for size, _ in self._todo) < ALL:
            self._work()
            return
        with ThreadPoolExecutor(1) as second:
            helped = second.submit(self._work)
            self._work()
            helped.result()

    def _work(self) -> None:
        while self._todo:
            try:
                _, copy = self._todo.pop()
            except IndexError:  # the other thread has taken the last one
                return
            copy()


def cut_tensor(tensor: Tensor, name: str, cut: Cut, copies: Copies | None = None) -> Tensor:
    """The entries of one parameter that stay, in memory of their own; with `copies`, filled when these are made."""
    later = Copies() if copies is None else copies
    result = _entries(tensor.detach(), name, cut, later)
    if copies is None:
        later.make()
    return result


def _entries(tensor: Tensor, name: str, cut: Cut, copies: Copies) -> Tensor:
    if name in cut.grouped:
        rows, columns = cut.grouped[name]
        result = tensor.new_empty((rows.size, columns.shape[1], *tensor.shape[2:]))
        copies.add(result.numel(), partial(_take_groups, tensor, rows, columns, result))
        return result
    indices = {}
    for axis, width in enumerate(tensor.shape):
        index = cut.slices.get((name, axis))
        if index is not None and (len(index) < width or (np.diff(index) != 1).any()):
            indices[axis] = index
    if tensor.dim() < 2:  # small: at once
        return tensor.index_select(0, torch.as_tensor(indices[0], device=tensor.device)) if indices else tensor.clone()
    shape = [len(indices.get(axis, range(width))) for axis, width in enumerate(tensor.shape)]
    result = tensor.new_empty(shape) if indices else torch.empty_like(tensor)
    if not _plain(tensor):
        for axis, chosen in indices.items():
            tensor = tensor.index_select(axis, torch.as_tensor(chosen, device=tensor.device))
        result.copy_(tensor)
        return result
    source, to = tensor.numpy(), result.numpy()
    if list(indices) == [0, 1] and to.size:
        half = len(to) // 2 if to.size >= LARGE else len(to)
        for part in (slice(0, half), slice(half, len(to))):
            if part.start < part.stop:
                copies.add(to[part].size, partial(_take_both, source, indices[0][part], indices[1], to[part]))
    else:
        copies.add(to.size, partial(_take, source, indices, to))
    return result


def _plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in PLAIN


def _take(source: Array, indices: dict[int, Ids], to: Array) -> None:
    """Entries `indices[axis]` along each axis, in any number of axes."""
    if not indices:
        np.copyto(to, source)
        return
    *first, (last, index) = indices.items()
    for axis, chosen in first:
        source = source.take(chosen, axis)
    source.take(index, last, out=to, mode="clip")


def _take_both(source: Array, rows: Ids, columns: Ids, to: Array) -> None:
    """Entries at rows and columns; rows lose their columns while they lie in the cache."""
    at_once = max(1, CACHE_BYTES // source[0].nbytes)
    lines = np.empty((min(at_once, len(to)), *source.shape[1:]), source.dtype)
    for i in range(0, len(to), at_once):
        some = rows[i : i + at_once]
        whole = source.take(some, 0, out=lines[: len(some)], mode="clip")
        whole.take(columns, 1, out=to[i : i + at_once], mode="clip")


def _take_groups(tensor: Tensor, rows: Ids, columns: Ids, result: Tensor) -> None:
    """Of each group (a row of `rows` and of `columns`) the entries at its rows and columns."""
    if not _plain(tensor):
        for target, i, j in zip(result.chunk(len(rows)), rows, columns, strict=True):
            some = tensor.index_select(0, torch.as_tensor(i, device=tensor.device))
            target.copy_(some.index_select(1, torch.as_tensor(j, device=tensor.device)))
        return
    source, to = tensor.numpy(), result.numpy().reshape(len(rows), -1, *result.shape[1:])
    for target, i, j in zip(to, rows, columns, strict=True):
        source.take(i, 0).take(j, 1, out=target, mode="clip")
