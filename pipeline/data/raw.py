"""Sets that come as whole arrays, before what they hold is checked in `arrays.py`."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Raw:
    """Unchecked arrays; `origin` is what an error blames, e.g. the file."""

    origin: str
    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]
    names: tuple[str, ...] | None

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {key: getattr(self, key) for key in KEYS}


def fingerprint_of(raw: Raw) -> str:
    import numpy as np

    digest = hashlib.sha256(repr(raw.names).encode())
    for key, array in raw.arrays().items():
        digest.update(f"{key} {array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data if not array.dtype.hasobject else b"object")
    return digest.hexdigest()


def as_array(value: Any) -> NDArray[Any]:
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray(value, dtype=object)


def demand_keys(present: list[str], origin: str) -> None:
    for key in KEYS:
        if key not in present:
            raise UserError(
                f"{origin} has no {key} (it has {', '.join(present) or 'nothing'})",
                f"{', '.join(KEYS)} and optionally names",
                "add it",
            )


def demand_whole(archive: zipfile.ZipFile, key: str) -> None:
    """ValueError where the header of an array asks for other memory than the file holds bytes for it: numpy would
    reserve it before it reads."""
    from numpy.lib import format as npy

    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        count = dtype.itemsize
        for side in shape:
            count *= side
        if not dtype.hasobject and stream.tell() + count != info.file_size:
            raise ValueError(f"its header says {count} bytes, the file holds {info.file_size - stream.tell()}")


def raw_of(origin: str, content: dict[str, Any]) -> Raw:
    names = content.get("names")
    texts = None if names is None else tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
    x_train, y_train, x_test, y_test = (content[key] for key in KEYS)
    return Raw(origin, x_train, y_train, x_test, y_test, texts)
