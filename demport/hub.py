"""Compact networks on the Hugging Face Hub (the `hub` extra): plan, safetensors and a model card, nothing else.

Nothing is unpickled, and a plan from there runs no code but that of the networks demport, torchvision and timm have.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.surgery.plan import CERTIFICATE, PLAN, WEIGHTS, Source, read_plan
from runtime import files
from runtime.errors import UserError, one_line

SCHEME = "hf:"
SURGERY = "30-surgery"
TRUSTED = ("demo", "cifar", "torchvision", "timm")
"""Kinds of networks that a plan from elsewhere may name: those that importing runs no stranger's code."""
REFUSED = ("pretrained", "checkpoint", "weights", "cache")
"""How the names of a constructor's arguments begin that would read or fetch something else."""


def fetched(name: str, *, trusted: bool) -> Path:
    """The folder of `hf:user/repo` or `hf:user/repo@revision`, in the library's cache. Raises UserError, also where its
    plan names a network by `module:function` and no network is `trusted` in its place."""
    hub = _library()
    repository, _, revision = name.removeprefix(SCHEME).partition("@")
    try:
        folder = Path(hub.snapshot_download(repository, revision=revision or None,
                                            allow_patterns=[PLAN, WEIGHTS, CERTIFICATE]))  # fmt: skip
    except Exception as error:  # of the network, the account, the name: the library's errors share no base
        raise _failed(f"{name} cannot be had", error, "a repository that is there, or in the cache") from error
    if not (folder / PLAN).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{name} holds no {PLAN} and {WEIGHTS}", "what demport.push wrote", "mend the name")
    source = read_plan(folder / PLAN).source
    if not trusted and source is not None:
        _demand_harmless(name, source)
    return folder


def _demand_harmless(name: str, source: Source) -> None:
    if source.name.partition(":")[0] not in TRUSTED:
        raise UserError(
            f"the plan of {name} asks for {source.name}, which is code of its own",
            f"a network of {', '.join(TRUSTED)}, or yours",
            "look at that code, then pass the network: demport.load(name, model)",
        )
    if odd := [key for key in source.args if key.startswith(REFUSED)]:
        raise UserError(
            f"the plan of {name} builds {source.name} with {odd[0]}, which would load something else",
            "arguments that say how it is built",
            "pass the network: demport.load(name, model)",
        )


def push(folder: Path | str, to: Path | str, *, private: bool = False, message: str = "Compact network") -> str:
    """Write plan, weights, certificate and a card of the folder that `demport.save` or `demport shrink` left, or of a
    run folder, to `hf:user/repo` or to a new local folder; the address. Raises UserError."""
    source, run = Path(folder), Path(folder) / SURGERY
    place = run if run.is_dir() else source
    _demand_whole(place)
    if not str(to).startswith(SCHEME):
        with files.new_folder(Path(to)) as part:
            _fill(part, place, source if run.is_dir() else None, str(Path(to)))
        return str(to)
    hub, repository = _library(), str(to).removeprefix(SCHEME)
    with tempfile.TemporaryDirectory() as temporary:
        _fill(Path(temporary), place, source if run.is_dir() else None, str(to))
        try:
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=temporary, commit_message=message)
        except Exception as error:
            raise _failed(f"{to} cannot be written", error, "a repository of an account that is logged in") from error
    return str(to)


def _fill(part: Path, place: Path, run: Path | None, address: str) -> None:
    from pipeline.report.card import hub_card

    for name in (PLAN, WEIGHTS, CERTIFICATE):
        if (place / name).is_file():
            shutil.copyfile(place / name, part / name)
    files.write_text(part / "README.md", hub_card(place, run, address))


def _demand_whole(place: Path) -> None:
    """UserError where there is no compact network, or its weights are no safetensors."""
    from pipeline.models.weights import read_weights

    if not (place / PLAN).is_file():
        raise UserError(
            f"{place} holds no {PLAN}", "the folder of a run, of `demport shrink` or of demport.save", "name one"
        )
    read_plan(place / PLAN)
    read_weights(place / WEIGHTS)


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{SCHEME} is asked for and huggingface_hub cannot be imported ({one_line(str(error))})",
            "the hub extra",
            "pip install 'demport[hub]'",
        ) from None
    return huggingface_hub


def _failed(what: str, error: Exception, expected: str) -> UserError:
    reason = f"{type(error).__name__}: {one_line(str(error))[:200]}"
    return UserError(f"{what} ({reason})", expected, "mend the name, or log in: hf auth login")
