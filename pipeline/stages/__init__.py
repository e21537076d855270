"""The stages: each file holds a stage's function and its literal `Stage`, which says all that the stage depends on.

Stage modules import torch, ONNX and TensorRT inside their functions, so that a run that is up to date loads none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.progress import Progress
from pipeline.workspace.fingerprint import libraries
from pipeline.workspace.folder import Done, Workspace
from runtime import device as machine
from runtime import files
from runtime.backends import DeviceName

if TYPE_CHECKING:
    from pipeline.data import Dataset

CHECKPOINTS = {"checkpoint_s"}


@dataclass(frozen=True)
class Run:
    """What every stage may use."""

    config: Config
    data: Callable[[], Dataset]
    """Reads the data set when it is first asked for."""
    device: DeviceName
    progress: Progress
    until: str
    """The last stage that is asked for."""
    content: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the data, of the starting weights and of the user's own code."""
    own_engines: bool = True
    """The user's config asks for the engines; false where a run folder, which anybody may have made, brings both."""


def nothing(run: Run) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Stage:
    """What a stage is made from beside the stages before it, which `line.py` names."""

    folder: str
    function: Callable[..., object]
    """(run, *results of the stages before, out) -> a dataclass of `pipeline.results`."""
    section: str
    """Its section of the config."""
    libraries: str = ""
    """Those whose version decides the bytes it leaves."""
    version: int = 1
    """Of its code: raised when the same inputs would leave other bytes than before."""
    also: Callable[[Run], Mapping[str, Any]] = nothing
    """Whatever else it depends on, as JSON values."""
    needs_bytes: Callable[..., int] | None = None
    """(run, *results before) -> bytes it will write; None: as many as the stages before it."""
    checkpoints: bool = False
    """Its function takes one more folder, which outlives a killed run."""


def bring_up_to_date(run: Run, work: Workspace, stage: Stage, *before: Done) -> Done:
    """Run the stage on the results of those `before` it, unless it stands already on the same inputs."""

    def results() -> list[Any]:
        from pipeline.results import result_of

        return [result_of(done) for done in before]

    def needs_bytes() -> int:
        if stage.needs_bytes is None:
            return sum(files.bytes_in(done.folder) for done in before)
        return stage.needs_bytes(run, *results())

    return work.stage(
        stage.folder,
        lambda *folders: stage.function(run, *results(), *folders),
        inputs={**stage.also(run), stage.section: tree_of(run.config)[stage.section]},
        upstream=before,
        code=stage.version,
        versions=libraries(run.config, machine.versions(), *stage.libraries.split()),
        needs_bytes=needs_bytes,
        keeps=stage.checkpoints,
    )


def tree_of(config: Config) -> dict[str, Any]:
    """The config as JSON values, without the keys on which nothing that a stage leaves depends."""
    irrelevant: dict[str, Any] = {"data": {"workers"}, "dense": CHECKPOINTS, "sparse": CHECKPOINTS}
    return config.model_dump(mode="json", exclude={**irrelevant, "precision": {"qat": CHECKPOINTS}})
