"""What a stage is made from beside the config: contents of files, the user's own code, library versions."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline import data, lookup
from pipeline.config import Check, Config
from pipeline.config.extension import file_of
from pipeline.config.model import DEFAULT, Pair
from pipeline.config.sparse import function_of
from pipeline.data.sources import row_of
from pipeline.tasks import TASKS
from pipeline.training.methods import METHODS
from pipeline.workspace.modules import files_of, files_of_file
from runtime.errors import UserError
from runtime.files import sha256, sha256_of_json

KNOWN_MODELS = ("demo", "cifar", "mlp", "torchvision", "timm")


def of_inputs(config: Config) -> dict[str, str]:
    """Hashes of the data, of the starting weights, and of the Python files of a user's own model and task.

    UserError: a file is missing.
    """
    content = {"data": data.fingerprint(config.data)}
    if config.model.weights == DEFAULT:
        content["model.weights"] = DEFAULT  # the library's version, which says the rest, is among those of the stages
    elif config.model.weights is not None:
        path = Path(config.model.weights).expanduser()
        if not path.is_file():
            raise UserError(
                f"model.weights: {path} is no file", "a safetensors file or a checkpoint", "mend model.weights"
            )
        content["model.weights"] = sha256(path)
    if config.model.name.partition(":")[0] not in KNOWN_MODELS:
        content["model.code"] = code_of(config.model.name, "model.name")
    if config.given is not None:
        content |= _of_pair(config.given)
    if config.task.name not in TASKS:
        content["task.code"] = code_of(config.task.name, "task.name")
    return content


def _of_pair(section: Pair) -> dict[str, str]:
    from pipeline.models.pair import files_of

    content = {}
    for key, text in (("given.dense", section.dense), ("given.compact", section.compact)):
        paths = [path for one in files_of(text) for path in (model_files(one) if one.suffix == ".onnx" else [one])]
        content[key] = " ".join(sha256(path) for path in paths if path.is_file())
    if section.network is not None and section.network.partition(":")[0] not in KNOWN_MODELS:
        content["given.code"] = code_of(section.network, "given.network")
    return content


def has_own_code(config: Config) -> bool:
    """Whether the model, the data or the task is a function of the user's."""
    own_task = config.task.name not in TASKS
    pair = config.given and config.given.network
    if pair and pair.partition(":")[0] not in KNOWN_MODELS:
        return True
    return own_task or config.model.name.partition(":")[0] not in KNOWN_MODELS or row_of(config.data.source) is None


def make_importable(*folders: Path) -> None:
    """Let a user's modules be found in `folders`, after everything installed."""
    for folder in map(str, folders):
        if folder not in sys.path:
            sys.path.append(folder)


def libraries(config: Config, installed: Mapping[str, str], *names: str) -> dict[str, str]:
    """Those of the `installed` versions that are of `names`, or of libraries the config's data and model come from."""
    kinds = {config.model.name.partition(":")[0], config.data.source.partition(":")[0]}
    requested = [*names, *(kind for kind in ("torchvision", "timm") if kind in kinds)]
    return {name: installed[name] for name in requested if name in installed}


def of_check(section: Check) -> dict[str, str]:
    """Hashes of what the check reads beside the run: the reference model, and the code of the user's metric. Raises
    UserError where one of them is not there."""
    content = {}
    if section.reference is not None:
        path = Path(section.reference).expanduser()
        if not path.is_file():
            raise UserError(f"check.reference: {path} is no file", "an ONNX file", "mend check.reference")
        content["check.reference"] = " ".join(map(sha256, model_files(path)))
    if section.metric is not None:
        lookup.function_named(section.metric, "check.metric")
        content["check.metric"] = code_of(section.metric, "check.metric")
    return content


def try_check(section: Check, image: tuple[int, ...] | None = None) -> None:
    """Raises UserError where the metric or the reference model is not there, or that does not run: on images of the
    shape `image` (C, H, W) at the gated batch, where it is known."""
    of_check(section)
    if section.reference is not None:
        from runtime.backends.trial import Order, demand_runs

        shape = None if image is None else (section.gate_batch, *image)
        demand_runs(
            Order(str(Path(section.reference).expanduser()), "onnxruntime", "cpu", 1, section.gate_batch, shape)
        )


def demand_same_data(config: Config, recorded: str | None, when: str) -> None:
    """UserError where the images and labels are not those of the fingerprint that was recorded `when`."""
    if recorded is not None and data.fingerprint(config.data) != recorded:
        raise UserError(
            f"data.source {config.data.source} changed since {when}",
            "the data of the run",
            "bring it back, or run `demport run` again",
        )


def code_of(spec: str, key: str) -> str:
    """Hash of the Python files that a user's `module:function` is made of: its module or package, and whatever of the
    user's they import; of `FILE.py:function` the file in its place. `key` is the config key to blame.

    Raises UserError where there is none.
    """
    module = spec.rpartition(":")[0]
    files = files_of_file(file_of(module, key)) if module.endswith(".py") else files_of(module)
    if files is None:
        # Importing it says what is wrong in the words that every other use of the name gets.
        lookup.function_named(spec, key)
    assert files is not None, spec
    return sha256_of_json([[name, sha256(path)] for name, path in files])


def of_method(method: str) -> dict[str, str]:
    """Hash of the Python files of a user's own training method; nothing for one of ours. Raises UserError."""
    if method in METHODS:
        return {}
    if not method.rpartition(":")[0].endswith(".py"):
        return {"sparse.code": code_of(method, "sparse.method")}
    file = inspect.getsourcefile(function_of(method))
    assert file is not None, method
    return {"sparse.code": sha256_of_json([[name, sha256(path)] for name, path in files_of_file(Path(file))])}


def model_files(path: Path) -> list[Path]:
    """An ONNX file and the files beside it that hold its large tensors."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # what opens it next says what is wrong
        return [path]
    tensors = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    names = {ExternalDataInfo(tensor).location for tensor in tensors}
    return [path, *(path.parent / name for name in sorted(names))]
