"""A run on several processes: the first brings the run folder up to date, the others join its trainings.

torchrun --nproc-per-node 2 -m pipeline.cli run CONFIG --out DIR
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.progress import Silent
from pipeline.training.ranks import expected_ranks, own_device, together
from pipeline.training.repeatable import torch_device

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.data import Dataset


@contextmanager
def lead(device: str) -> Iterator[Callable[[], None]]:
    """Joins the others; yields what sends them home, which happens at the end at the latest."""
    with together(own_device(torch_device(device))) as ranks:
        sent: list[bool] = []

        def dismiss() -> None:
            if not sent:
                sent.append(True)
                ranks.agree(None)

        try:
            yield dismiss
        except BaseException:
            with suppress(RuntimeError):  # they may be gone, and what went wrong here is to be told
                dismiss()
            raise
        dismiss()


def announce(training: str, kept: Path) -> None:
    """Tell the others which training begins, and where its checkpoints lie."""
    expected_ranks().agree({"training": training, "kept": str(kept)})


def follow(config: Config, data: Callable[[], Dataset], device: str) -> None:
    """What every other process does: train with the first one until it is sent home; nothing is written."""
    from pipeline.training.stage import Task, train_demp, train_dense

    with together(own_device(torch_device(device))) as ranks, tempfile.TemporaryDirectory() as out:
        while (order := ranks.agree(None)) is not None:
            where = Path(out), Silent(), Path(order["kept"])
            task = Task(config.model, data(), config.seed, config.threads, device, *where)
            if order["training"] == "dense":
                train_dense(config.dense, task)
            else:
                train_demp(config.demp, task, align=config.surgery.align)
