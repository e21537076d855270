"""What a stage is made from beside the config: contents of files, the user's own code, library versions."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from export.files import sha256
from pipeline import data, lookup
from pipeline.config import Check, Config
from pipeline.files import sha256_of_tree
from runtime.errors import UserError

KNOWN_MODELS = ("demo", "cifar", "torchvision", "timm")
KNOWN_SOURCES = ("digits", "npz", "torchvision", "imagefolder")


def of_inputs(config: Config) -> dict[str, str]:
    """Hashes of the data, of the starting weights, and of the Python files of a user's own model.

    UserError: a file is missing. What a user's module imports from other packages is not followed.
    """
    content = {"data": data.fingerprint(config.data)}
    if config.model.weights is not None:
        path = Path(config.model.weights).expanduser()
        if not path.is_file():
            raise UserError(f"model.weights: {path} is no file", "a safetensors file", "mend model.weights")
        content["model.weights"] = sha256(path)
    if config.model.name.partition(":")[0] not in KNOWN_MODELS:
        content["model.code"] = code_of(config.model.name, "model.name")
    return content


def has_own_code(config: Config) -> bool:
    """Whether the model or the data is a function of the user's."""
    model, source = config.model.name.partition(":")[0], config.data.source.partition(":")[0]
    return model not in KNOWN_MODELS or source not in KNOWN_SOURCES


def make_importable(*folders: Path) -> None:
    """Let a user's modules be found in `folders`, after everything installed."""
    for folder in map(str, folders):
        if folder not in sys.path:
            sys.path.append(folder)


def libraries(config: Config, installed: Mapping[str, str], *names: str) -> dict[str, str]:
    """Those of the `installed` versions that are of `names`, or of libraries the config's data and model come from."""
    kinds = {config.model.name.partition(":")[0], config.data.source.partition(":")[0]}
    wanted = [*names, *(kind for kind in ("torchvision", "timm") if kind in kinds)]
    return {name: installed[name] for name in wanted if name in installed}


def of_check(section: Check) -> dict[str, str]:
    """Hashes of what the check reads beside the run: the reference model, and the code of the user's metric. Raises
    UserError where one of them is not there."""
    content = {}
    if section.reference is not None:
        path = Path(section.reference).expanduser()
        if not path.is_file():
            raise UserError(f"check.reference: {path} is no file", "an ONNX file", "mend check.reference")
        content["check.reference"] = sha256(path)
    if section.metric is not None:
        lookup.function_named(section.metric, "check.metric")
        content["check.metric"] = code_of(section.metric, "check.metric")
    return content


def try_check(section: Check) -> None:
    """Raises UserError where the reference model or the metric is not there or does not load."""
    of_check(section)
    if section.reference is not None:
        from runtime.backend import open_session

        open_session(Path(section.reference).expanduser(), "onnxruntime", "cpu", 1).close()


def code_of(spec: str, key: str) -> str:
    """Hash of the Python files of the package that a user's `module:function` is in; `key` is the config key to blame.

    Raises UserError where there is none.
    """
    top = spec.partition(":")[0].partition(".")[0]
    found = importlib.util.find_spec(top) if top else None
    if found is None:
        # Importing it says what is wrong in the words that every other use of the name gets.
        lookup.function_named(spec, key)
    assert found is not None
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    if not folders:
        assert found.origin is not None, found
        return sha256(Path(found.origin))
    return " ".join(sha256_of_tree(_python_files(folder), folder) for folder in folders)


def _python_files(folder: Path) -> Iterable[Path]:
    return folder.rglob("*.py")
