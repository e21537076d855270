"""Loggers of a training: every figure of the history's rows, at the number of its epoch. One is one file and one row of
`LOGGERS`: `package()`, which imports what it needs, and a class that takes a `Described` and the name of the run to go
on with, if any, and has `run`, `scalars` and `close`.

What cannot begin is told before the first step; what fails later is noted once, and the training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from runtime.errors import UserError, one_line
from runtime.files import read_json, write_json

LOGGERS = {
    "tensorboard": ("pipeline.training.log.tensorboard", "TensorBoard", "tensorboard"),
    "mlflow": ("pipeline.training.log.mlflow", "MLflow", "mlflow"),
    "wandb": ("pipeline.training.log.wandb", "Wandb", "wandb"),
}
"""Name -> module, class, package of the extra."""
PROJECT = "demport"
RUNS = "loggers.json"


@dataclass(frozen=True)
class Described:
    """A training for people who look at many: `name`, its settings, and the folder of its stage. `checkpoints`: the
    folder that a training goes on from after a kill; the names of its runs lie there."""

    name: str
    parameters: Mapping[str, Any]
    out: Path
    checkpoints: Path | None = None


class Logger(Protocol):
    run: str | None
    """What the logger calls this run; None where it goes by folders."""

    def scalars(self, figures: Mapping[str, float], epoch: int) -> None: ...

    def close(self, ended: bool) -> None:
        """`ended`: whether the training came to its end."""


class Loggers:
    """All that a training asks for. Raises UserError where one is not installed or cannot begin."""

    def __init__(self, names: Sequence[str], training: Described, note: Callable[[str], None]) -> None:
        demand_loggers(names)
        self._note, self._open = note, dict[str, Logger]()
        file = None if training.checkpoints is None else training.checkpoints / RUNS
        runs = _runs(file)
        for name in names:
            module, kind, _ = LOGGERS[name]
            try:
                self._open[name] = getattr(import_module(module), kind)(training, runs.get(name))
            except Exception as error:  # of a server, an account, a folder: the libraries' errors share no base
                raise UserError(
                    f"log: {name} cannot begin ({one_line(str(error))[:200]})",
                    "a place to log to",
                    f"set it up as the documentation of {name} says, or take {name} out of `log`",
                ) from error
        runs |= {name: logger.run for name, logger in self._open.items() if logger.run is not None}
        if file is not None and runs:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, runs)

    def row(self, row: Mapping[str, Any]) -> None:
        """Scalars under their names; what is told by layer as `dead_by_layer/conv1` and so on."""
        figures = scalars(row)
        self._each(lambda logger: logger.scalars(figures, int(row["epoch"])))

    def close(self, ended: bool = True) -> None:
        self._each(lambda logger: logger.close(ended))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._open.items()):
            try:
                call(logger)
            except Exception as error:  # a training of hours does not end because a server is away
                self._note(f"log: {name} failed and gets no more ({one_line(str(error))[:200]})")
                del self._open[name]


def _runs(file: Path | None) -> dict[str, str]:
    """Name -> run of a training that was killed; none where the file cannot be read: then new runs begin."""
    try:
        runs = {} if file is None or not file.is_file() else read_json(file)
    except (OSError, ValueError, UserError):
        return {}
    return {k: v for k, v in runs.items() if isinstance(v, str)} if isinstance(runs, dict) else {}


def demand_loggers(names: Sequence[str]) -> None:
    """UserError where the package of one is not here."""
    for name in names:
        module, _, extra = LOGGERS[name]
        try:
            import_module(module).package()
        except ImportError as error:
            raise UserError(
                f"log: {name} is asked for and cannot be imported ({one_line(str(error))})",
                f"the {extra} extra",
                f"pip install 'demport[{extra}]', or take {name} out of `log`",
            ) from None


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Name -> value of every number in a row; those of a table by layer as `table/layer`; `removed` in all."""
    figures: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            figures |= {f"{name}/{layer}": float(count) for layer, count in value.items()}
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "epoch":
            figures[name] = float(value)
    return figures | {"removed": float(sum(r["channels"] for r in row.get("removals", ())))}
