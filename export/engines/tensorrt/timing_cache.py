"""Timing caches: how long each kernel took, so that the next build measures less and may take the same kernels.

TensorRT ties a cache to its version and the GPU, so each pair has a file of its own. Builds may run side by side: a
file is read and written under a lock (flock(2), dropped by the kernel with the process), and what a build measured is
combined with what others wrote meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.backends.trt_library import Log
from runtime.errors import UserError
from runtime.files import locked, replacing

SUFFIX = ".timing"


def cache_path(folder: Path, flavour: str, version: str, gpu: str) -> Path:
    """`folder`/tensorrt-10.13.3.9-NVIDIA_L4-SM89.timing for the GPU "NVIDIA L4-SM89"."""
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", f"{flavour}-{version}-{gpu}")
    return folder.expanduser() / f"{name}{SUFFIX}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(path.name + ".lock"), wait=True):
            yield
    except OSError as error:
        raise UserError(
            f"the timing cache {path} cannot be used ({error.strerror})",
            "a folder to write in",
            "choose another folder as engine.timing_cache, or null for none",
        ) from error


def attach(config: Any, path: Path, log: Log) -> Any:
    """Gives the builder's config the cache in `path`; the returned object must outlive the build.

    A file that this TensorRT does not take is left out with a note, and replaced after the build.
    """
    with _locked(path):
        content = path.read_bytes() if path.exists() else b""
    cache = _cache_of(config, content)
    if cache is not None and config.set_timing_cache(cache, False):
        return cache
    if content:
        log.note(f"the timing cache {path.name} is not one of this TensorRT and GPU ({log.reason()}); a new one begins")
    cache = config.create_timing_cache(b"")
    assert cache is not None and config.set_timing_cache(cache, False), "an empty timing cache is always taken"
    return cache


def save(config: Any, path: Path, log: Log) -> None:
    """Writes what the build measured, together with what other builds wrote since `attach`."""
    measured = config.get_timing_cache()
    assert measured is not None
    with _locked(path):
        if path.exists():
            others = _cache_of(config, path.read_bytes())
            if others is None or not measured.combine(others, False):
                log.note(f"the timing cache {path.name} did not combine with this build's; it was replaced")
        with replacing(path) as temporary:
            temporary.write_bytes(memoryview(measured.serialize()))


def _cache_of(config: Any, content: bytes) -> Any:
    """A cache object of these bytes, None where TensorRT takes them for none."""
    try:
        return config.create_timing_cache(content)
    except (RuntimeError, TypeError, ValueError):
        return None
