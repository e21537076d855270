"""The run folder: each stage runs once, is whole or absent, and is skipped while what it was made from is the same.

A stage writes into `.STAGE.tmp`, which is synced and renamed to `STAGE` when it is done; the folder it replaces
waits in `.STAGE.old` for the moment between two renames. Whatever kills a run, the next one finds whole folders
and clears the rest. One process at a time: `.lock` is held by flock(2), which the kernel drops with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline import files, stage_record
from pipeline.stage_record import Basis, Record
from runtime.errors import UserError

STAGES = (
    "10-dense",
    "20-demp",
    "30-surgery",
    "40-onnx",
    "50-simplify",
    "55-precision",
    "60-engine",
    "70-check",
    "80-publish",
)
CONFIG = "config.yaml"
LOCK = ".lock"
KEPT = ".checkpoints"
REPORTS = ("report.json", "report.md", "report.html")
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
        `work(folder, kept)`, and `kept` is a folder that outlives a killed run of a stage on the same basis.
        """
        assert name in STAGES, name
        basis = Basis(name, inputs, {done.stage: done.digest for done in upstream}, code, versions)
        record = stage_record.read(self.folder / name)
        if why := self._why(record, basis):
            self.say(f"{name}: {why}")
            kept = self._kept(basis) if keeps else None
            return self._run(basis, work if kept is None else partial(_with, work, kept), needs_bytes, kept)
        assert record is not None
        self.say(f"{name}: up to date")
        return Done(name, self.folder / name, record.digest, ran=False)

    def finished(self, name: str) -> Done:
        """A stage that is there and whole, whatever the config says now; UserError if it is not."""
        record = stage_record.read(self.folder / name)
        if record is None or record.problem:
            found = "not there" if record is None else record.problem
            raise UserError(f"{self.folder / name}: {found}", "expected a finished stage", "run `demport run` first")
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

    def _kept(self, basis: Basis) -> Path:
        """Where the stage's checkpoints lie; those of other bases are removed, and all where it is to start afresh."""
        mine = self.folder / KEPT / f"{basis.stage}-{basis.fingerprint[:16]}"
        for path in (self.folder / KEPT).glob(f"{basis.stage}-*"):
            if path != mine or basis.stage in self.redo:
                files.remove(path)
        return mine

    def _run(
        self, basis: Basis, work: Callable[[Path], object], needs_bytes: Callable[[], int], kept: Path | None
    ) -> Done:
        name, final, part = basis.stage, self.folder / basis.stage, _part(self.folder, basis.stage)
        needed = max(needs_bytes(), files.bytes_in(final))
        if shutil.disk_usage(self.folder).free < needed:
            raise files.disk_full(self.folder, needed, f"stage {name}")
        try:
            part.mkdir()
            start = time.monotonic()
            result = work(part)
            facts = {"seconds": round(time.monotonic() - start, 3), **self.facts(), "command": self.command(name)}
            record = stage_record.write(part, basis, result, facts, final)
            files.sync_tree(part)
            self._promote(name)
            if kept is not None:
                files.remove(kept)
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
        for name in STAGES:
            record = stage_record.read_unverified(self.folder / name)
            if record is None:
                continue
            upstream = record.get("upstream")
            if isinstance(upstream, dict) and any(digests.get(stage) != told for stage, told in upstream.items()):
                self.say(f"{name}: removed, it was made from an earlier instance of what comes before it")
                (self.folder / name).rename(_old(self.folder, name))
                files.remove(_old(self.folder, name))
                continue
            digests[name] = str(record.get("digest"))

    def repair(self) -> None:
        """Clear what a killed run left: promote a stage that was complete, put back one that was being replaced."""
        for name in STAGES:
            final, part, old = self.folder / name, _part(self.folder, name), _old(self.folder, name)
            left = stage_record.read(part)
            if left is not None and left.problem is None:
                self.say(f"{name}: kept, an interrupted run had finished it")
                files.remove(old)
                self._promote(name)
            elif old.exists() and not final.exists():
                self.say(f"{name}: put back, an interrupted run was replacing it")
                old.rename(final)
            elif left is not None:
                self.say(f"{name}: removed the half-written folder of an interrupted run")
            files.remove(part)
            files.remove(old)
        for path in self.folder.glob(".*.tmp"):
            files.remove(path)


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
    """Whether `folder` is a run folder."""
    return any((folder / name).exists() for name in (LOCK, CONFIG, *STAGES))


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
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _not_ours(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"{folder}: in use by process {holder}",
                "expected one run at a time in a folder",
                "wait for it or choose another --out",
            ) from None
        except OSError as error:
            raise _not_ours(folder, error) from error
        os.pwrite(descriptor, f"{os.getpid():<31}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _not_ours(folder: Path, error: OSError) -> Exception:
    """The error for a folder we cannot make, list or lock; a full disk is told by `open_workspace`."""
    if files.is_disk_full(error):
        return error
    return UserError(f"{folder}: {error.strerror}", "expected a folder to write to", "choose another --out")


def _with(work: Callable[[Path, Path], object], kept: Path, part: Path) -> object:
    return work(part, kept)


def _part(folder: Path, name: str) -> Path:
    return folder / f".{name}.tmp"


def _old(folder: Path, name: str) -> Path:
    return folder / f".{name}.old"
