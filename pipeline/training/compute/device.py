"""The same seed gives the same weights: seeds derived from (seed, purpose, number), and torch's global state for a
while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic

from runtime.errors import UserError

PURPOSES = ("init", "step", "noise", "census", "masks", "channels", "east")


def derived_seed(seed: int, purpose: str, number: int = 0) -> int:
    """In [0, 2**63)."""
    state = np.random.SeedSequence([seed, PURPOSES.index(purpose), number]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


@contextmanager
def repeatable(threads: int, device: torch.device, deterministic: bool | None = None) -> Iterator[None]:
    """Exactly `threads` threads; deterministic algorithms, by default on the CPU. The old global state, random state
    included, comes back at the end."""
    deterministic = device.type == "cpu" if deterministic is None else deterministic
    if deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    threads_before = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # its settings are properties that type checkers do not see
    fill = memory.fill_uninitialized_memory
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_num_threads(threads)
        if deterministic:
            torch.use_deterministic_algorithms(True)
            # Filling every new tensor with NaN only helps to find reads of unset memory.
            memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            memory.fill_uninitialized_memory = fill


def torch_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one. Raises UserError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is there", "--device cpu or a machine with a GPU", "give --device cpu")
    return torch.device(name)
