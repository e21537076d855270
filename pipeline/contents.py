"""What a stage is made from beside the config: contents of files, the user's own code, library versions."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from export.files import sha256
from pipeline import data, lookup
from pipeline.config import Config, Model
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
    return content | _code_of(config.model)


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


def _code_of(model: Model) -> dict[str, str]:
    kind, _, _ = model.name.partition(":")
    if kind in KNOWN_MODELS:
        return {}
    top = kind.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None:
        # Importing it says what is wrong in the words that every other use of the name gets.
        lookup.function_named(model.name, "model.name")
    assert spec is not None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not folders:
        assert spec.origin is not None, spec
        return {"model.code": sha256(Path(spec.origin))}
    return {"model.code": " ".join(sha256_of_tree(_python_files(folder), folder) for folder in folders)}


def _python_files(folder: Path) -> Iterable[Path]:
    return folder.rglob("*.py")
