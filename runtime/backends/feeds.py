"""Inputs of a session: checked against its specs, or made at random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from runtime.backends import Array, Session, TensorSpec
from runtime.errors import UserError

MAX_FEED_BYTES = 4 << 30
"""Of one random input."""


def check_feeds(name: str, specs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The feeds in the order of the specs, C-contiguous; UserError (`name` is the session's) if one does not fit its
    spec."""
    names = [spec.name for spec in specs]
    if sorted(feeds) != sorted(names):
        raise UserError(f"{name} is fed {sorted(feeds)}", f"the inputs {names}", "feed every input once, by its name")
    return {spec.name: _checked(name, spec, feeds[spec.name]) for spec in specs}


def _checked(name: str, spec: TensorSpec, array: Array) -> Array:
    if not isinstance(array, np.ndarray):
        raise UserError(
            f"input {spec.name} of {name} is fed a {type(array).__name__}",
            "a NumPy array",
            "convert it with numpy.asarray",
        )
    if array.dtype != np.dtype(spec.dtype):
        raise UserError(
            f"input {spec.name} of {name} is fed {array.dtype}", spec.dtype, f"convert it with .astype({spec.dtype!r})"
        )
    axes = zip(array.shape, spec.shape, strict=False)
    if len(array.shape) != len(spec.shape) or any(size < 1 or expected not in (None, size) for size, expected in axes):
        raise UserError(
            f"input {spec.name} of {name} is fed the shape {array.shape}",
            f"{shape_text(spec)} with every axis at least 1",
            "feed arrays of that shape",
        )
    if not within(spec, array.shape):
        raise UserError(
            f"input {spec.name} of {name} is fed the shape {array.shape}",
            f"a shape from {spec.smallest} to {spec.largest}, the engine's optimisation profile",
            "feed a batch within it, or build the engine with a wider profile",
        )
    return np.ascontiguousarray(array)


def within(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    """Whether the shape lies in the engine's optimisation profile; True where there is none."""
    if spec.smallest is None or spec.largest is None:
        return True
    return all(low <= size <= high for low, size, high in zip(spec.smallest, shape, spec.largest, strict=True))


def shape_text(spec: TensorSpec) -> str:
    """`(batch, 3, 32, 32)`: names the dynamic axes."""
    axes = ["batch" if axis == 0 else f"axis{axis}" for axis in range(len(spec.shape))]
    return (
        "(" + ", ".join(name if size is None else str(size) for name, size in zip(axes, spec.shape, strict=True)) + ")"
    )


def random_feeds(session: Session, batch: int, seed: int = 0) -> dict[str, Array]:
    """Inputs of the session's own shapes with `batch` on a dynamic first axis: normal floats, uint8 in 0..255, other
    integers 0 or 1.

    A static first axis keeps its own size. UserError if another axis is dynamic: nothing says how large it is.
    """
    generator = np.random.default_rng(seed)
    return {spec.name: _random(session.name, spec, batch, generator) for spec in session.inputs}


def _random(name: str, spec: TensorSpec, batch: int, generator: np.random.Generator) -> Array:
    if None in spec.shape[1:]:
        raise UserError(
            f"input {spec.name} of {name} has the shape {shape_text(spec)}",
            "a fixed size on every axis but the first",
            "export the network with fixed sizes",
        )
    shape = tuple(batch if size is None else size for size in spec.shape)
    dtype = np.dtype(spec.dtype)
    if math.prod(shape) * dtype.itemsize > MAX_FEED_BYTES:
        raise UserError(
            f"input {spec.name} of {name} takes {math.prod(shape) * dtype.itemsize:,} bytes",
            f"at most {MAX_FEED_BYTES:,}",
            "take a smaller batch, or export the network with smaller inputs",
        )
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
