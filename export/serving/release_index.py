"""`demport.json`: what a published folder holds, with the hash of every file; read as what it may be, anything."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from runtime.documents import Kind, Section
from runtime.errors import UserError
from runtime.files import sha256, write_json
from runtime.images import Policy

INDEX = "demport.json"
MAX_BYTES = 16 << 20
_KIND = Kind("the index of a folder that demport published", "publish it again", MAX_BYTES, links=False)
MAX_VALUES = 1 << 28  # of one image
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
Level = Annotated[int, Field(ge=0, le=255)]
Size = Annotated[int, Field(ge=1, le=1 << 20)]


class ImageInput(Section):
    """Images that a model takes: (height, width, channels), pixels from 0 to `high`; `fit`, `resize` and `background`
    say how a picture of another size becomes one (`runtime.images.Fit`)."""

    height: Size
    width: Size
    channels: Size
    dtype: Literal["uint8", "float32"]
    high: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    fit: Policy = "stretch"
    resize: Size | None = None
    background: list[Level] = Field(default_factory=lambda: [255] * 3, min_length=3, max_length=3)

    @model_validator(mode="after")
    def _can_be_held(self) -> Self:
        if self.height * self.width * self.channels > MAX_VALUES:
            raise ValueError(f"an image of more than {MAX_VALUES} values")
        return self


class PublishedModel(Section):
    """One model: `sha256` of each version's file, none for an ensemble; `image` where it takes images as pixels."""

    name: Name
    platform: Literal["onnxruntime_onnx", "tensorrt_plan", "ensemble"]
    max_batch_size: Annotated[int, Field(ge=0, lt=1 << 31)]
    sha256: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")], Digest]
    image: ImageInput | None = None


class Index(Section):
    """`serial` counts the releases of a folder; `files` are all files beside the index, by their path in the folder."""

    schema_: Literal[1] = Field(1, alias="schema")
    kind: Literal["triton", "bundle"]
    serial: Annotated[int, Field(ge=1, lt=1 << 53)]
    models: list[PublishedModel] = Field(min_length=1, max_length=4096)
    files: dict[Annotated[str, Field(min_length=1, max_length=1024)], Digest]


def read_index(folder: Path) -> Index:
    """`UserError` if it is missing, no plain file, over 16 MiB, no JSON, no index of ours, or leads outside."""
    path = folder / INDEX
    index = _KIND.document(path, Index)
    for name in index.files:
        parts = name.split("/")
        if "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise UserError(f"{path} lists {name[:80]!a}", "paths inside the folder", _KIND.remedy)
    return index


def write_index(folder: Path, kind: Literal["triton", "bundle"], serial: int, models: list[PublishedModel]) -> Index:
    """Writes the index of what lies in `folder`."""
    files = {name: sha256(folder / name) for name in sorted(_names(folder)) if name != INDEX}
    index = Index(kind=kind, serial=serial, models=models, files=files, schema=1)
    write_json(folder / INDEX, index.model_dump(by_alias=True))
    return index


def verify_release(folder: Path) -> Index:
    """The index, once the folder holds its files with their hashes, and nothing else; `UserError` if not."""
    index = read_index(folder)
    remedy = "publish it again"
    there = set(_names(folder)) - {INDEX}
    if there != index.files.keys():
        name = min(there ^ index.files.keys())
        what = "holds" if name in there else "lacks"
        raise UserError(f"{folder} {what} {name[:80]!a}", f"the files that its {INDEX} lists", remedy)
    for name, digest in index.files.items():
        path = folder / name
        if not stat.S_ISREG(path.lstat().st_mode) or sha256(path) != digest:
            raise UserError(f"{path} was changed", f"the file that {INDEX} lists", remedy)
    return index


def _names(folder: Path) -> Iterator[str]:
    """What is not a folder, links included and not followed, relative to `folder`."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix()
