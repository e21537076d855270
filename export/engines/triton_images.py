"""Which TensorRT is in which Triton image: the rows of triton_images.json, each with its dated sources.

A tag without a row is unknown, and `demport preflight` answers with the command that asks the image itself.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from runtime.errors import UserError

REPOSITORY = "nvcr.io/nvidia/tritonserver"
_TAG = re.compile(r"(?:[\w./:-]*tritonserver:)?(?P<month>\d\d\.\d\d)(?:-(?P<kind>trtllm-python-py3|py3))?")


@dataclass(frozen=True)
class TritonImage:
    """`tensorrt` and `cuda` are None where the table has no row for the tag."""

    tag: str
    tensorrt: str | None
    cuda: str | None

    @property
    def reference(self) -> str:
        return f"{REPOSITORY}:{self.tag}"


@functools.cache
def table() -> dict[str, Any]:
    """`images`: tag, tensorrt, cuda, sources; `sources`: url (or null), read, says."""
    document: dict[str, Any] = json.loads(files(__package__).joinpath("triton_images.json").read_text("utf-8"))
    return document


def triton_image(text: str) -> TritonImage:
    """The image of a tag such as 26.08, 26.08-py3, or nvcr.io/nvidia/tritonserver:26.08-py3. `UserError`: not one."""
    match = _TAG.fullmatch(text)
    if match is None:
        raise UserError(
            f"--triton-image {text!r}",
            "a release of Triton such as 26.08-py3 or 25.11-trtllm-python-py3",
            "give the tag of the image that will serve",
        )
    tag = f"{match['month']}-{match['kind'] or 'py3'}"
    row: dict[str, str] = next((row for row in table()["images"] if row["tag"] == tag), {})
    return TritonImage(tag, row.get("tensorrt"), row.get("cuda"))
