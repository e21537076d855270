"""The run folder: each stage runs once, is whole or absent, and is skipped while what it was made from is the same.

A stage writes into `.STAGE.tmp`, which is synced and renamed to `STAGE` when it is done; the folder it replaces
waits in `.STAGE.old` for the moment between two renames. Whatever kills a run, the next one finds whole folders
and clears the rest. One process at a time: `.lock` is held by flock(2), which the kernel drops with the process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.workspace import record as stage_record
from pipeline.workspace.record import Basis, Record
from pipeline.workspace.scratch import scratch
from pipeline.workspace.stages import EVERY
from pipeline.workspace.stages import STAGES as STAGES
from runtime import files
from runtime.errors import UserError

CONFIG = "config.yaml"
HEADER = "# The config of the last run in this folder, with every default written out.\n"
LOCK = ".lock"
CHECKPOINTS = ".checkpoints"
REPORTS = ("report.json", "report.md", "report.html")
MARK = ".rendered.json"
SCRATCH = ".scratch"
R = TypeVar("R")


@dataclass(frozen=True)
class Done:
    """A finished stage: its folder, the digest of what it left, and whether this run made it."""

    stage: str
    folder: Path
    digest: str
    ran: bool

    def result(self, kind: type[R]) -> R:
        """The dataclass the stage returned."""
        content = stage_record.read_unverified(self.folder)
        assert content is not None, self.folder
        return stage_record.revive(self.folder, kind, content["result"])


def finished(folder: Path, name: str) -> Done:
    """A stage of a run folder that is there and whole, whatever the config says now; UserError if it is not."""
    record = stage_record.read(folder / name)
    if record is None or record.problem:
        problem = "not there" if record is None else record.problem
        raise UserError(f"{folder / name}: {problem}", "expected a finished stage", "run `demport run` first")
    return Done(name, folder / name, record.digest, ran=False)


@dataclass(frozen=True)
class Workspace:
    """A locked run folder. `say` takes lines for people; `facts` (device, seed, ...) are asked for each stage.json."""

    folder: Path
    say: Callable[[str], None]
    facts: Callable[[], Mapping[str, Any]]
    command: Callable[[str], str]
    redo: frozenset[str] = frozenset()

    def stage(
        self,
        name: str,
        work: Callable[..., object],
        *,
        inputs: Mapping[str, Any],
        upstream: Sequence[Done] = (),
        code: int,
        versions: Mapping[str, str],
        needs_bytes: Callable[[], int] = lambda: 0,
        keeps: bool = False,
    ) -> Done:
        """Run `work(folder) -> dataclass` unless it ran on the same basis before; returns what is there then.

        `needs_bytes` estimates what the stage will write, and is asked only if the stage runs. With `keeps` it is
        `work(folder, checkpoints)`: a second folder, which outlives a killed run of a stage on the same basis.
        """
        assert name in EVERY, name
        basis = Basis(name, inputs, {done.stage: done.digest for done in upstream}, code, versions)
        record = stage_record.read(self.folder / name)
        if why := self._why(record, basis):
            self.say(f"{name}: {why}")
            checkpoints = self._checkpoints(basis) if keeps else None
            return self._run(
                basis, work if checkpoints is None else partial(_with, work, checkpoints), needs_bytes, checkpoints
            )
        assert record is not None
        self.say(f"{name}: up to date")
        return Done(name, self.folder / name, record.digest, ran=False)

    def _why(self, record: Record | None, basis: Basis) -> str | None:
        """Why the stage has to run, None if it has not."""
        if record is None:
            return "runs"
        if record.problem:
            return f"runs again, {record.problem}"
        if record.content["fingerprint"] != basis.fingerprint:
            return f"runs again, {stage_record.differences(record.content, basis)}"
        return "runs again, as asked" if basis.stage in self.redo else None

    def _checkpoints(self, basis: Basis) -> Path:
        """Where the stage's checkpoints lie; those of other bases are removed, and all where it is to start afresh."""
        mine = self.folder / CHECKPOINTS / f"{basis.stage}-{basis.fingerprint[:16]}"
        for path in (self.folder / CHECKPOINTS).glob(f"{basis.stage}-*"):
            if path != mine or basis.stage in self.redo:
                files.remove(path)
        return mine

    def _run(
        self, basis: Basis, work: Callable[[Path], object], needs_bytes: Callable[[], int], checkpoints: Path | None
    ) -> Done:
        name, final, part = basis.stage, self.folder / basis.stage, _part(self.folder, basis.stage)
        needed = max(needs_bytes(), files.bytes_in(final))
        if shutil.disk_usage(self.folder).free < needed:
            raise files.disk_full(self.folder, needed, f"stage {name}")
        try:
            part.mkdir()
            start = time.monotonic()
            with scratch(self.folder / SCRATCH):
                result = work(part)
            facts = {"seconds": round(time.monotonic() - start, 3), **self.facts(), "command": self.command(name)}
            record = stage_record.write(part, basis, result, facts, final)
            files.sync_tree(part)
            self._promote(name)
            if checkpoints is not None:
                files.remove(checkpoints)
        except BaseException as error:
            written = files.bytes_in(part)
            files.remove(part)
            if files.is_disk_full(error):
                raise files.disk_full(self.folder, max(needed, written + 2**20), f"stage {name}") from error
            raise
        return Done(name, final, record.digest, ran=True)

    def _promote(self, name: str) -> None:
        """Put a finished `.NAME.tmp` in the place of NAME, and remove later stages made from the old one."""
        final, part, old = self.folder / name, _part(self.folder, name), _old(self.folder, name)
        if final.exists():
            final.rename(old)
        part.rename(final)
        files.sync(self.folder)
        files.remove(old)
        self.remove_outdated()

    def remove_outdated(self) -> None:
        """Remove stages that were made from another instance of an earlier stage than the one that is there."""
        digests: dict[str, str] = {}
        for name in EVERY:
            record = stage_record.read_unverified(self.folder / name)
            if record is None:
                continue
            upstream = record.get("upstream")
            if isinstance(upstream, dict) and any(digests.get(stage) != digest for stage, digest in upstream.items()):
                self.say(f"{name}: removed, it was made from an earlier instance of what comes before it")
                (self.folder / name).rename(_old(self.folder, name))
                files.remove(_old(self.folder, name))
                continue
            digests[name] = str(record.get("digest"))

    def repair(self) -> None:
        """Clear what a killed run left: promote a stage that was complete, put back one that was being replaced."""
        for name in EVERY:
            final, part, old = self.folder / name, _part(self.folder, name), _old(self.folder, name)
            record = stage_record.read(part)
            if record is not None and record.problem is None:
                self.say(f"{name}: kept, an interrupted run had finished it")
                files.remove(old)
                self._promote(name)
            elif old.exists() and not final.exists():
                self.say(f"{name}: put back, an interrupted run was replacing it")
                old.rename(final)
            elif record is not None:
                self.say(f"{name}: removed the half-written folder of an interrupted run")
            files.remove(part)
            files.remove(old)
        for name in (CONFIG, *REPORTS, MARK):
            for path in self.folder.glob(f".{name}.*.tmp"):
                files.remove(path)
        files.remove(self.folder / SCRATCH)


@contextlib.contextmanager
def open_workspace(
    folder: Path,
    *,
    say: Callable[[str], None],
    facts: Callable[[], Mapping[str, Any]],
    command: Callable[[str], str],
    redo: frozenset[str] = frozenset(),
) -> Iterator[Workspace]:
    """Create and lock a run folder and clear what a killed run left in it; a full disk is a UserError throughout.

    UserError: the folder holds other files, cannot be written, or is in use by another process.
    """
    try:
        _make(folder)
        with _locked(folder):
            workspace = Workspace(folder, say, facts, command, redo)
            workspace.repair()
            yield workspace
    except OSError as error:
        if files.is_disk_full(error):
            raise files.disk_full(files.existing(folder), 2**20, "the run folder") from error
        raise


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run folder: it holds a stage, a config with our own first line, or nothing but what a run
    leaves that was killed before it wrote its config."""
    with contextlib.suppress(OSError):
        if (folder / CONFIG).is_file() and (folder / CONFIG).read_bytes()[: len(HEADER)] == HEADER.encode():
            return True
        if any((folder / name / stage_record.NAME).is_file() for name in EVERY):
            return True
        hidden = {LOCK, CHECKPOINTS, SCRATCH} | {f".{name}{end}" for name in EVERY for end in (".tmp", ".old")}
        return {LOCK} <= {path.name for path in folder.iterdir()} <= hidden
    return False


def demand_one_run(folder: Path) -> None:
    """UserError where a stage was made from another instance of an earlier stage than the one that is there."""
    records = {name: stage_record.read_unverified(folder / name) for name in EVERY}
    digests = {name: str(record.get("digest")) for name, record in records.items() if record is not None}
    for name, record in records.items():
        upstream = record.get("upstream") if record is not None else None
        for before, digest in upstream.items() if isinstance(upstream, dict) else ():
            if digests.get(before) != digest:
                finished(folder, before)  # refuses one that is missing or damaged
                problem = f"{folder / name} was made from another {before} than the one beside it"
                raise UserError(
                    problem, "the stages of one run", "bring the run's own back, or run `demport run` again"
                )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = any(folder.iterdir())
    except OSError as error:
        raise _not_ours(folder, error) from error
    if others and not is_run(folder):
        raise UserError(
            f"{folder}: holds files that are not a run's", "expected an empty folder or a run", "choose another --out"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(files.locked(folder / LOCK, wait=False))
        except BlockingIOError:
            holder = (folder / LOCK).read_bytes()[:32].decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"{folder}: in use by process {holder}",
                "expected one run at a time in a folder",
                "wait for it or choose another --out",
            ) from None
        except OSError as error:
            raise _not_ours(folder, error) from error
        os.pwrite(descriptor, f"{os.getpid():<31}\n".encode(), 0)
        yield


def _not_ours(folder: Path, error: OSError) -> Exception:
    """The error for a folder we cannot make, list or lock; a full disk is told by `open_workspace`."""
    if files.is_disk_full(error):
        return error
    return UserError(f"{folder}: {error.strerror}", "expected a folder to write to", "choose another --out")


def _with(work: Callable[[Path, Path], object], checkpoints: Path, part: Path) -> object:
    return work(part, checkpoints)


def _part(folder: Path, name: str) -> Path:
    return folder / f".{name}.tmp"


def _old(folder: Path, name: str) -> Path:
    return folder / f".{name}.old"
