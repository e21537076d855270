"""Options and arguments that several commands take."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Device(str, Enum):  # noqa: UP042  (typer of 2025 takes no StrEnum)
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


DeviceOption = Annotated[
    Device, typer.Option(help="Where torch trains and measures; auto takes a GPU if there is one.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="section.key=value", help="Override a key.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
