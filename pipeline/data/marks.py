"""Fingerprints of data sources; nothing here decodes an image or imports torch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.data.paths import file_path, folder_path, root_path, torchvision_files

DIGITS_RULE = "RandomState(0).permutation(1797), 1400/397"
CHUNK = 1 << 20


def of_digits() -> str:
    """Of scikit-learn's file and the rule of the split."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None, "scikit-learn is a dependency"
    return of_files([Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"], DIGITS_RULE)


def of_npz(text: str) -> str:
    return of_files([file_path(text)], "npz")


def of_torchvision(name: str, root: str) -> str:
    files = torchvision_files(name, root_path(root))
    if not files:
        from pipeline.data import sources

        sources.torchvision_set(name, root_path(root))
        files = torchvision_files(name, root_path(root))
    return of_files(files, f"torchvision:{name}")


def of_folder(text: str) -> str:
    """Of relative path, size and modification time (ns) of every file below."""
    folder = folder_path(text)
    digest = hashlib.sha256(b"imagefolder")
    for base, below, names in os.walk(folder):
        below.sort()
        for name in sorted(names):
            path = Path(base) / name
            stat = path.stat()
            digest.update(f"\0{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def of_function(spec: str) -> str:
    """Of the arrays it returns, as they are."""
    import numpy as np

    from pipeline.data import sources

    raw = sources.from_function(spec)
    digest = hashlib.sha256(repr(raw.names).encode())
    for key, array in raw.arrays().items():
        digest.update(f"{key} {array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data if not array.dtype.hasobject else b"object")
    return digest.hexdigest()


def of_files(paths: Iterable[Path], rule: str) -> str:
    """Of `rule` and the names and bytes of the files, in the order given."""
    digest = hashlib.sha256(rule.encode())
    for path in paths:
        digest.update(f"\0{path.name}\0".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
