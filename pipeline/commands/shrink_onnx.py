"""`demport shrink --onnx`: surgery on an ONNX file alone, for those who have no source network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from export.onnx import graph
from pipeline.config import Surgery
from pipeline.models.onnx import Network, network_from_model
from pipeline.models.onnx.compact import parameters_of, rewritten
from pipeline.models.onnx.compact.edit import HeldError
from pipeline.models.onnx.compact.law import check_files
from pipeline.models.onnx.file import read_model
from pipeline.progress import Progress
from pipeline.surgery import Compact, save_compact, shrink
from pipeline.surgery.proof.remainder import remainder
from runtime import files
from runtime.errors import UserError
from runtime.macs import macs_of

MODEL = "model.onnx"
ROUNDS = 100  # of nodes whose change ONNX cannot express
REAL = 8  # samples of the inputs given that the law is checked on


@dataclass(frozen=True)
class Request:
    path: Path
    out: Path
    image: tuple[int, int, int] | None
    """(C, H, W) of an input whose sizes vary."""
    inputs: Path | None
    """An .npz with rows for each input, by its name."""
    align: int
    tolerance: float


def request(
    path: Path, out: Path, image: tuple[int, int, int] | None, inputs: Path | None, section: Surgery
) -> Request:
    """The request that the command line makes; UserError where widths shall follow from timings."""
    for key, value in (("align", section.align), ("residual", section.residual)):
        if value in ("auto", "untied"):
            raise UserError(f"surgery.{key}={value} with --onnx", "widths by a whole number, streams tied",
                            "add --set surgery.align=8, say, and leave surgery.residual as it is")  # fmt: skip
    assert isinstance(section.align, int)
    return Request(path, out, image, inputs, section.align, section.law_tolerance)


def shrink_onnx(request: Request, progress: Progress) -> dict[str, Any]:
    """Write the compact ONNX file, plan, weights and certificate to a new folder; the JSON document of it."""
    with files.new_folder(request.out) as folder:
        model = read_model(request.path)
        network, after, compact = _cut(request, model, progress)
        law = check_files(model, after, _feeds(network, request.inputs), macs_of(network.module, network.example))
        compact.certificate["onnx"] = {
            "file": request.path.name,
            "sha256": files.sha256(request.path),
            "opset": graph.opset_of(model),
            "frozen": network.frozen,
            "law": asdict(law),
        }
        save_compact(compact, folder)
        size = graph.write_graph(after, folder / MODEL)
    for line in remainder(compact.certificate, request.align):
        progress.note(line)
    counts = compact.certificate["channels"]
    return {
        "status": "done",
        "out": str(request.out),
        **{f"channels_{name}": counts[name] for name in ("before", "dead", "after")},
        "removed": compact.certificate["evidence"],
        "parameters": {"before": parameters_of(model), "after": parameters_of(after)},
        "bytes": {"before": request.path.stat().st_size, "after": size},
        "max_abs_diff": law.max_abs_diff,
        "reference_rel_diff": law.reference_rel_diff,
        "frozen_nodes": len(network.frozen),
    }


def _cut(request: Request, model: onnx.ModelProto, progress: Progress) -> tuple[Network, onnx.ModelProto, Compact]:
    """The network, the compact file and what was cut; nodes whose change the file cannot express are frozen."""
    held: dict[int, str] = {}
    for _ in range(ROUNDS):
        network = network_from_model(model, request.path, request.image, held)
        compact = shrink(network.module, network.example, align=request.align, verify=False, constants=False)
        try:
            after = rewritten(network, compact.model)
        except HeldError as error:
            held[error.index] = error.reason
            continue
        for index, reason in held.items():
            node = model.graph.node[index]
            network.frozen[node.name or node.output[0]] = f"the file could not say what became of it: {reason}"
        for name, reason in network.frozen.items():
            progress.note(f"{name} is frozen: {reason}")
        real = _real(network, request.inputs)
        compact = shrink(
            network.module, network.example, align=request.align, real=real, tolerance=request.tolerance,
            constants=False,
        )  # fmt: skip
        return network, after, compact
    raise UserError(f"{request.path}: {ROUNDS} nodes that cannot be written back", "a graph that can be cut",
                    "report it with the file")  # fmt: skip


def _arrays(network: Network, path: Path) -> graph.Feeds:
    """The rows of an .npz for every input."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile's, NumPy's and the system's errors share no base
        raise UserError(
            f"{path} cannot be read ({graph.first_line(error)})",
            "an .npz with an array for each input",
            "write it with numpy.savez",
        ) from None
    feeds = graph.feeds_of(network.model, arrays, path)
    if not all(len(rows) for rows in feeds.values()):
        raise UserError(f"{path} has no rows", "an .npz with rows for each input", "write it with numpy.savez")
    return {name: graph.rows(rows, network.batch or min(REAL, len(rows))) for name, rows in feeds.items()}


def _real(network: Network, path: Path | None) -> tuple[tuple[Tensor, ...], ...]:
    if path is None:
        return ()
    arrays = _arrays(network, path)
    return (tuple(torch.from_numpy(arrays[spec.name]) for spec in graph.inputs_of(network.model)),)


def _feeds(network: Network, path: Path | None) -> dict[str, graph.Feeds]:
    """Standard normal inputs at two batch sizes, or the one that the file fixes (zeros of whole numbers), and those
    that were given."""
    noise = np.random.default_rng(0)
    feeds: dict[str, graph.Feeds] = {}
    for batch in (network.batch,) if network.batch else (2, 3):
        feeds[f"random, batch {batch}"] = {}
        for spec, example in zip(graph.inputs_of(network.model), network.example, strict=True):
            shape = (batch, *example.shape[1:])
            floats = np.dtype(spec.dtype).kind == "f"
            array = noise.standard_normal(shape) if floats else np.zeros(shape)
            feeds[f"random, batch {batch}"][spec.name] = array.astype(spec.dtype)
    if path is not None:
        feeds[path.name] = _arrays(network, path)
    return feeds
