"""The folders that stages leave in a run folder, in the order of the line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import Config

STAGES = (
    "10-dense", "20-sparse", "30-surgery", "40-onnx", "50-simplify", "55-precision", "60-engine", "70-check",
    "80-publish",
)  # fmt: skip
PAIR = "05-pair"
"""In the place of the first three, where a run begins with two networks made elsewhere."""
EVERY = (PAIR, *STAGES)
LAST = "70-check"


def stages_of(config: Config) -> tuple[str, ...]:
    """The folders of a run of this config, up to the check."""
    line = STAGES if config.given is None else (PAIR, *STAGES[3:])
    return tuple(stage for stage in line if stage <= LAST)
