"""Weights & Biases runs of a training, in the project that WANDB_PROJECT names, else `demport`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pipeline.training.log.loggers import PROJECT, Described


def package() -> Any:
    import wandb

    return wandb


class Wandb:
    def __init__(self, training: Described, run: str | None = None) -> None:
        wandb = package()
        # stdout is for the command's JSON document, and the console for its own progress
        settings = wandb.Settings(silent=True, console="off")
        keys = {"name": training.name, "config": dict(training.parameters), "reinit": "create_new"}
        if run is not None:
            keys |= {"id": run, "resume": "allow"}
        self._run = wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), settings=settings, **keys)
        self.run: str | None = self._run.id

    def scalars(self, figures: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(figures), step=epoch)

    def close(self, ended: bool) -> None:
        self._run.finish(0 if ended else 1)
