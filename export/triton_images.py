"""Which TensorRT is in which Triton image: the table that `demport preflight --triton-image` looks a tag up in.

Sources. Tags with `trtllm`: the release compatibility matrix of triton-inference-server/server
(docs/introduction/compatibility.md). Plain `py3` tags: NVIDIA's release notes of the TensorRT container of the same
month, whose TensorRT is the one in Triton's image of that month, as far as public copies of them could be read; CUDA of
both from the same matrix. Other months are left out: an unknown tag is told as unknown, with the command that asks the
image itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.errors import UserError

REPOSITORY = "nvcr.io/nvidia/tritonserver"

# month -> (TensorRT, CUDA)
_PY3 = {
    "24.05": ("10.0.1.6", "12.4.1"),
    "24.07": ("10.2.0", "12.5.1"),
    "24.08": ("10.3.0", "12.6.0"),
    "25.06": ("10.11.0", "12.9.0"),
    "25.09": ("10.13.3.9", "13.0.1"),
    "26.03": ("10.16.0.72", "13.2.0"),
    "26.04": ("10.16.1.11", "13.2.1"),
    "26.05": ("10.16.1.11", "13.2.1"),
}
_TRTLLM = {
    "24.08": ("10.3.0", "12.5.1"),
    "24.09": ("10.4.0", "12.5.1"),
    "24.10": ("10.4.0", "12.5.1"),
    "24.11": ("10.6.0", "12.6.3"),
    "24.12": ("10.7.0", "12.6.3"),
    "25.01": ("10.8.0.43", "12.8.0"),
    "25.02": ("10.8.0.43", "12.8.0"),
    "25.03": ("10.9.0.34", "12.8.1"),
    "25.04": ("10.9.0.34", "12.8.1"),
    "25.05": ("10.9.0.34", "12.8.1"),
    "25.06": ("10.10.0.31", "12.9.0"),
    "25.07": ("10.10.0.31", "12.9.0"),
    "25.08": ("10.11.0.33", "12.9.0"),
    "25.09": ("10.11.0.33", "12.9.1"),
    "25.10": ("10.11.0.33", "12.9.1"),
    "25.11": ("10.13.3.9", "13.0.2"),
    "25.12": ("10.13.3.9", "13.0.2"),
    "26.01": ("10.13.3.9", "13.0.2"),
    "26.02": ("10.13.3.9", "13.0.2"),
    "26.03": ("10.14.1.48", "13.1.0"),
    "26.04": ("10.14.1.48", "13.1.0"),
    "26.05": ("10.14.1.48", "13.1.0"),
    "26.06": ("10.14.1.48", "13.1.0"),
    "26.07": ("10.14.1.48", "13.1.0"),
}
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


def triton_image(text: str) -> TritonImage:
    """The image of a tag such as 25.09, 25.09-py3, or nvcr.io/nvidia/tritonserver:25.09-py3. `UserError`: not one."""
    told = _TAG.fullmatch(text)
    if told is None:
        raise UserError(
            f"--triton-image {text!r}",
            "a release of Triton such as 25.09-py3 or 25.11-trtllm-python-py3",
            "give the tag of the image that will serve",
        )
    month, kind = told["month"], told["kind"] or "py3"
    version, cuda = (_PY3 if kind == "py3" else _TRTLLM).get(month, (None, None))
    return TritonImage(f"{month}-{kind}", version, cuda)
