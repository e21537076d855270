"""Tags of Triton's images, and the rows behind them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from export.engines import triton_images
from export.engines.triton_images import triton_image
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("text", "tag", "tensorrt", "cuda"),
    [
        ("25.09", "25.09-py3", "10.13.3.9", "13.0.1"),
        ("25.09-py3", "25.09-py3", "10.13.3.9", "13.0.1"),
        ("nvcr.io/nvidia/tritonserver:25.09-py3", "25.09-py3", "10.13.3.9", "13.0.1"),
        ("localhost:5000/me/tritonserver:26.05-py3", "26.05-py3", "10.16.1.11", "13.2.1"),
        ("26.02", "26.02-py3", "10.15.1", "13.1.1"),
        ("26.08-py3", "26.08-py3", "11.2.1.2", "13.4.1"),
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
    assert "26.08-py3" in caught.value.expected


def test_versions_rise_with_the_months() -> None:
    for kind in ("py3", "trtllm-python-py3"):
        rows = [row for row in triton_images.table()["images"] if row["tag"][6:] == kind]
        assert [row["tag"] for row in rows] == sorted({row["tag"] for row in rows})
        versions = [[int(part) for part in row["tensorrt"].split(".")[:3]] for row in rows]
        assert versions == sorted(versions)
        assert all(re.fullmatch(r"1[23]\.\d\.\d", row["cuda"]) for row in rows)


def test_every_row_has_dated_sources() -> None:
    sources = triton_images.table()["sources"]
    cited = {name for row in triton_images.table()["images"] for name in row["sources"]}
    assert cited == sources.keys() and all(row["sources"] for row in triton_images.table()["images"])
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\d", source["read"]) and source["says"] for source in sources.values())


def test_the_image_of_compose_and_the_guides_has_a_row() -> None:
    root = Path(__file__).parents[3]
    for name in ("compose.yaml", "docs/triton.md"):
        tags = re.findall(r"tritonserver:(\d\d\.\d\d-py3)", (root / name).read_text("utf-8"))
        assert tags and all(triton_image(tag).tensorrt for tag in tags), name
