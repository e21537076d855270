"""Tags of Triton's images, and the rows behind them."""

from __future__ import annotations

import re

import pytest

from export import triton_images
from export.triton_images import triton_image
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "tag", "tensorrt", "cuda"),
    [
        ("25.09", "25.09-py3", "10.13.3.9", "13.0.1"),
        ("25.09-py3", "25.09-py3", "10.13.3.9", "13.0.1"),
        ("nvcr.io/nvidia/tritonserver:25.09-py3", "25.09-py3", "10.13.3.9", "13.0.1"),
        ("localhost:5000/me/tritonserver:26.05-py3", "26.05-py3", "10.16.1.11", "13.2.1"),
        ("25.09-trtllm-python-py3", "25.09-trtllm-python-py3", "10.11.0.33", "12.9.1"),
        ("99.01", "99.01-py3", None, None),
    ],
)
def test_a_tag_and_its_row(text: str, tag: str, tensorrt: str | None, cuda: str | None) -> None:
    image = triton_image(text)
    assert (image.tag, image.tensorrt, image.cuda) == (tag, tensorrt, cuda)
    assert image.reference == f"nvcr.io/nvidia/tritonserver:{tag}"


@pytest.mark.parametrize("text", ["", "latest", "25.9", "25.09-vllm-python-py3", "25.09-py3 ", "tensorrt:25.09-py3"])
def test_what_names_no_release(text: str) -> None:
    with pytest.raises(UserError) as caught:
        triton_image(text)
    assert repr(text) in caught.value.found
    assert "25.09-py3" in caught.value.expected


def test_versions_rise_with_the_months() -> None:
    for table in (triton_images._PY3, triton_images._TRTLLM):
        assert list(table) == sorted(table)
        versions = [[int(part) for part in tensorrt.split(".")[:3]] for tensorrt, _ in table.values()]
        assert versions == sorted(versions)
        assert all(re.fullmatch(r"1[23]\.\d\.\d", cuda) for _, cuda in table.values())
