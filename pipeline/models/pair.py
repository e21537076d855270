"""Two networks that were trained and cut elsewhere, from the files of the section `given`, in forms that a run folder
keeps: weights as safetensors, a plan beside them, or an ONNX file with everything in it.

Nothing is unpickled, and every misfit with the data is one line before any work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx
from torch import nn

from export.onnx.graph import TensorSpec, inputs_of, listing, open_graph, outputs_of, write_graph
from pipeline import config
from pipeline.data import Dataset
from pipeline.models import build_for
from pipeline.models.onnx import network_from_model
from pipeline.models.onnx.file import read_model
from pipeline.models.soundness import demand_task
from pipeline.models.weights import save_weights
from pipeline.surgery import load_compact
from pipeline.surgery.plan import PLAN, WEIGHTS, Plan, read_plan
from pipeline.tasks import Task
from runtime.errors import UserError

Form = Literal["weights", "plan", "onnx"]
COMPACT_ONNX = "model.onnx"
"""In the folder that `demport shrink --onnx` writes."""
Shape = tuple[int, int, int]


def source_of(text: str) -> tuple[Form, Path]:
    """What a value of `given` is, and the file or folder to read. Raises UserError."""
    path = Path(text).expanduser()
    if path.is_dir():
        if (path / COMPACT_ONNX).is_file():
            return "onnx", path / COMPACT_ONNX
        if not (path / PLAN).is_file() or not (path / WEIGHTS).is_file():
            raise UserError(
                f"given: {path} holds no {PLAN} and {WEIGHTS}",
                "the folder that `demport shrink` or `demport.save` wrote",
                "name one, or a file",
            )
        return "plan", path
    if not path.is_file():
        raise UserError(f"given: {path} is not there", "a file, or a folder that demport wrote", "mend the path")
    return ("onnx" if path.suffix == ".onnx" else "weights"), path


def files_of(text: str) -> list[Path]:
    """The files whose content decides what the network is, but for the data of an ONNX file beside it. UserError."""
    form, path = source_of(text)
    return [path / PLAN, path / WEIGHTS] if form == "plan" else [path]


def take(text: str, spec: config.Model, data: Dataset, task: Task, out: Path) -> tuple[Form, Path, nn.Module]:
    """The network, in eval mode, and its copy at `out` (a folder, or a file with a suffix of its own). `spec` builds
    the one that weights or a plan are for. Raises UserError."""
    form, path = source_of(text)
    match form:
        case "onnx":
            network, model = from_onnx(path, data, task)
            write_graph(model, copy := out.with_suffix(".onnx"))
        case "weights":
            network = build_for(spec.model_copy(update={"weights": str(path)}), data)
            save_weights(network, copy := out.with_suffix(".safetensors"))
        case "plan":
            demand_size(read_plan(path / PLAN), path, data.input_shape)
            network = _planned(path, spec, data)
            (copy := out).mkdir()
            (copy / PLAN).write_bytes((path / PLAN).read_bytes())
            save_weights(network, copy / WEIGHTS)
    demand_task(network, str(path), task, data)
    return form, copy, network.eval()


def load(form: Form, copy: Path, spec: config.Model, data: Dataset, task: Task) -> nn.Module:
    """The network of a copy that `take` wrote, in eval mode."""
    match form:
        case "onnx":
            return from_onnx(copy, data, task)[0]
        case "plan":
            return _planned(copy, spec, data)
        case "weights":
            return build_for(spec.model_copy(update={"weights": str(copy)}), data).eval()


def _planned(folder: Path, spec: config.Model, data: Dataset) -> nn.Module:
    return load_compact(folder, build_for(spec.model_copy(update={"weights": None}), data)).eval()


def demand_size(plan: Plan, folder: Path, image: Shape) -> None:
    """UserError where the plan is for images of another size, which is a warning that another network was cut."""
    shape = getattr(plan.inputs[0], "shape", None) if len(plan.inputs) == 1 else None
    if shape is None or tuple(shape[1:]) != image:
        seen = "several inputs" if shape is None else f"images {tuple(shape[1:])} (C, H, W)"
        raise UserError(
            f"given.compact: the network in {folder} was cut for {seen}, and the data has {image}",
            "one input of the data's size",
            "set data.image_size, or shrink it again with --input-shape",
        )


def from_onnx(path: Path, data: Dataset, task: Task) -> tuple[nn.Module, onnx.ModelProto]:
    """An ONNX file as torch layers, and its model with every weight inside. UserError where it does not take a batch of
    any size of the data's images, or answers with something else than an output of each class."""
    if task.named is not None:
        raise UserError(
            f"given: {path} is an ONNX file, and {task.metric} is taken of the outputs {', '.join(task.outputs)}",
            "networks in torch, whose answers this task takes apart",
            "give weights, or the folder that demport wrote",
        )
    model = read_model(path)
    inputs, outputs = inputs_of(model), outputs_of(model)
    if (
        len(inputs) != 1
        or len(outputs) != 1
        or {*inputs, *outputs} & {one for one in (*inputs, *outputs) if not one.shape}
    ):
        raise UserError(
            f"{path} has the inputs {listing(inputs)} and the outputs {listing(outputs)}", "one of each", "export it so"
        )
    image, answer = inputs[0], outputs[0]
    if image.shape[0] is not None:
        raise UserError(
            f"{path} takes batches of {image.shape[0]} only", "a free first axis", "export it with a dynamic batch"
        )
    if image.dtype != "float32" or not _takes(image, data.input_shape):
        raise UserError(
            f"{path} takes {listing(inputs)}, and the data has float32 images {data.input_shape} (C, H, W)",
            "a network for these images",
            "set data.image_size, or export it for them",
        )
    if task.answer is not None and (len(answer.shape) != 2 or answer.shape[1] not in (None, len(data.names))):
        raise UserError(
            f"{path} answers with {listing(outputs)}, and the data has {len(data.names)} classes",
            "an output for each class", "give the data it was trained on",
        )  # fmt: skip
    open_graph(model)
    return network_from_model(model, path, data.input_shape).module.eval(), model


def _takes(image: TensorSpec, shape: Shape) -> bool:
    sizes = zip(image.shape[1:], shape, strict=False)
    return len(image.shape) == 4 and all(size in (None, actual) for size, actual in sizes)
