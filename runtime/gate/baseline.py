"""The accepted release that `demport gate` compares a run with: a folder with its compact network, figures and rules.

`baseline.json` (schema 2) is replaced last and at once, and names the files beside it by their hashes: whoever reads
the folder while it is updated sees the old release or the new one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from runtime.backends import companions
from runtime.documents import Kind, Section
from runtime.errors import UserError
from runtime.files import remove, replacing, sha256, sha256_of_json, write_json

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Figure = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
NAME, SCHEMA = "baseline.json", 2
ONNX = "onnx"
_FILE = re.compile(r"compact\.[\w.-]*\.?[0-9a-f]{12}\.(onnx|engine|xml|bin|xml\.json)")
_KIND = Kind(
    "a baseline that `demport gate --update` wrote",
    "check the path, or write one with `demport gate RUN --baseline DIR --update`",
    4 << 20,
)


class Rule(Section):
    """What a figure may lose against the baseline: the larger of `relative` x its value and `absolute` in its unit."""

    relative: Amount = 0.0
    absolute: Amount = 0.0

    def allowed(self, before: float) -> float:
        return max(self.relative * before, self.absolute)


class Rules(Section):
    """How much worse is a regression; null leaves that kind of figure out."""

    accuracy: Rule | None = Rule(absolute=0.02)
    params: Rule | None = Rule(relative=0.01)
    macs: Rule | None = Rule(relative=0.01)
    bytes: Rule | None = Rule(relative=0.02, absolute=4096)
    latency: Amount | None = 0.05
    """By what share of the accepted network's time the new one may take longer."""
    limits: dict[str, Figure] = Field(default_factory=dict)
    """Figure by name -> the worst it may ever be, whatever the baseline: so that many small losses do not add up."""


FileName = Annotated[str, Field(pattern=rf"^{_FILE.pattern}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class StoredFile(Section):
    """A file of the folder. `file` is its name; `device` what an engine ran on, None for ONNX; `beside` the SHA-256 of
    the files that it is opened with, by their names."""

    file: FileName
    sha256: Digest
    device: str | None = None
    beside: dict[FileName, Digest] = Field(default_factory=dict)

    def digests(self) -> dict[str, str]:
        return {self.file: self.sha256, **self.beside}


class Release(Section):
    """What a run left, as far as a baseline and a gate look at it: `figures` of the compact network (`figures_of`), the
    engines that were built for it, and what it was made from: `data` (`source` and fingerprint), `model` and `config`
    as the run's config has them."""

    figures: dict[str, Figure]
    engines: list[str]
    data: dict[str, str]
    model: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if missing := {"params", "macs", "bytes"} - self.figures.keys():
            raise ValueError(f"figures lacks {', '.join(sorted(missing))}")
        if "fingerprint" not in self.data:
            raise ValueError("data lacks fingerprint")
        return self


class Baseline(Section):
    """baseline.json. `name` is the run's. `files`: by "onnx", or the engine's name."""

    kind: Literal["demport baseline"] = "demport baseline"
    schema_: Literal[2] = Field(2, alias="schema")
    name: str
    rules: Rules = Rules()
    release: Release
    files: dict[str, StoredFile]

    def document(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


def figures_of(models: Mapping[str, Any]) -> dict[str, float]:
    """params, macs, bytes and accuracy.<form> of a check's `models.compact`; forms that were not measured are left out.
    UserError where one lacks, or is no plausible figure."""
    compact = models["compact"]
    figures = {name: float(compact[name]) for name in ("params", "macs", "bytes")}
    accuracies = {f"accuracy.{form}": value for form, value in compact["accuracy"].items() if value is not None}
    for name, value in (figures | accuracies).items():
        most = 1.0 if name in accuracies else 1e18
        if isinstance(value, bool) or not 0 <= value <= most:
            raise UserError(f"the check says {name} is {value:g}", f"0 to {most:g}", "run `demport check` again")
    return figures | {name: float(value) for name, value in accuracies.items()}


def read_baseline(folder: Path) -> Baseline:
    """UserError: missing, of one file (schema 1), no baseline of ours, or one of its files was changed."""
    path = folder / NAME
    if folder.is_file():
        raise _old(folder)
    if not folder.is_dir():
        raise _KIND.error(folder, ": no such folder")
    value = _KIND.parse(path, _KIND.read(path))
    if isinstance(value, dict) and value.get("schema") == 1:
        raise _old(path)
    baseline = _KIND.section(path, value, Baseline)
    if ONNX not in baseline.files:
        raise _KIND.error(path, ": files lacks onnx")
    for stored in baseline.files.values():
        for file, digest in stored.digests().items():
            if sha256(folder / file) != digest:
                raise _KIND.error(folder / file, " was changed")
    return baseline


def _old(path: Path) -> UserError:
    return UserError(
        f"{path} is a baseline of one file, which holds figures and no network (schema 1)",
        "a folder (schema 2)",
        "make one of the accepted run with `demport gate RUN --baseline DIR --update`",
    )


def demand_own(folder: Path) -> None:
    """UserError where an update would write into what is no baseline of ours."""
    if folder.is_file():
        raise _old(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NAME).is_file():
        raise UserError(f"{folder} holds other files", "a new or empty folder, or a baseline", "choose another folder")


def write_baseline(
    folder: Path, name: str, rules: Rules, release: Release, files: Mapping[str, tuple[Path, str | None]]
) -> None:
    """`files`: by "onnx" or the engine's name, the file and the device that an engine ran on. Links to the folder stay
    links. OSError where it cannot be written."""
    home = folder.resolve()
    home.mkdir(parents=True, exist_ok=True)
    stored = {}
    for key, (source, device) in files.items():
        digests = {path: sha256(path) for path in (source, *companions(source))}
        # an IR of other weights may be the same .xml: the name tells them apart
        content = digests[source] if len(digests) == 1 else sha256_of_json(list(digests.values()))
        stem = f"compact.{'' if key == ONNX else f'{key}.'}{content[:12]}"
        names = {path: stem + path.name.removeprefix(source.stem) for path in digests}
        for path, file in names.items():
            with replacing(home / file) as temporary:
                shutil.copyfile(path, temporary)
        beside = {file: digests[path] for path, file in names.items() if path != source}
        stored[key] = StoredFile(file=names[source], sha256=digests[source], device=device, beside=beside)
    baseline = Baseline(schema=2, name=name, rules=rules, release=release, files=stored)
    write_json((home / NAME).resolve(), baseline.document())
    current = {file for one in stored.values() for file in one.digests()}
    for path in home.iterdir():
        if _FILE.fullmatch(path.name) and path.name not in current:
            remove(path)
