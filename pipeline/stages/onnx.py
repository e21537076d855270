"""Stages 40 and 50: both networks as ONNX, and simplified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.task import task_of
from pipeline.stages import Run, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline import config
    from pipeline.data import Dataset, Split
    from pipeline.results import Cut, Exported, Role, SimplifiedGraphs, Trained

SAMPLES = 8


def onnx(run: Run, trained: Trained, cut: Cut, out: Path) -> Exported:
    """Export the dense and the compact network. Raises UserError."""
    from pipeline.surgery import load_compact
    from pipeline.training.train import trained_network
    from runtime.files import sha256

    data, metadata = run.data(), metadata_of(run.config.model.name, run.data())
    task = task_of(run.config.task)
    dense = task.network(trained_network(run.config.model, data, trained))
    compact = task.network(load_compact(cut.plan.parent).eval())
    return export_graphs(run.config.onnx, dense, compact, samples_of(data.test), metadata, sha256(cut.plan), out)


def metadata_of(model: str, data: Dataset) -> dict[str, str]:
    """What both files say of the network and of its images."""
    return {
        "demport.model": model,
        "demport.classes": json.dumps(list(data.names)),
        "demport.mean": json.dumps(list(data.mean)),
        "demport.std": json.dumps(list(data.std)),
        "demport.scale": json.dumps(data.scale),
    }


ONNX = Stage("40-onnx", onnx, "onnx", libraries="torch onnx onnxscript", version=2)


def simplify(run: Run, exported: Exported, out: Path) -> SimplifiedGraphs:
    """Simplify both graphs. Raises UserError."""
    return simplify_graphs(run.config.simplify, exported, samples_of(run.data().test), out)


SIMPLIFY = Stage("50-simplify", simplify, "simplify", libraries="onnx onnxsim onnxslim onnxruntime", version=2)


def samples_of(split: Split, count: int = SAMPLES) -> Tensor:
    """The first `count` images, normalised: float32 (N, C, H, W) on the CPU."""
    images, _ = next(iter(split.batches(count)))
    return images.cpu()


def export_graphs(
    section: config.Onnx,
    dense: nn.Module,
    compact: nn.Module,
    samples: Tensor,
    metadata: dict[str, str],
    plan_sha256: str,
    out: Path,
) -> Exported:
    """Write both networks as ONNX; `metadata` goes into both files, with the role of each and the size of its input,
    and compact's with the hash of its plan. Raises UserError.
    """
    from export.onnx.from_torch import OnnxGraph, onnx_from_torch
    from pipeline.results import Exported

    common = {**metadata, "demport.input_size": json.dumps(list(samples.shape[1:]))}
    own = {"dense": {}, "compact": {"demport.plan_sha256": plan_sha256}}

    def graph(role: Role, network: nn.Module) -> OnnxGraph:
        return onnx_from_torch(
            network,
            samples,
            out / f"{role}.onnx",
            opset=section.opset,
            max_abs_diff=section.max_abs_diff,
            metadata={**common, **own[role], "demport.role": role},
        )

    return Exported(graph("dense", dense), graph("compact", compact))


def simplify_graphs(section: config.Simplify, exported: Exported, samples: Tensor, out: Path) -> SimplifiedGraphs:
    """Simplify both graphs, or copy them where the section says so. Raises UserError."""
    import onnx
    import torch

    from export.onnx.simplify import Simplified, simplify
    from export.onnx.weights import weights_of
    from pipeline.results import SimplifiedGraphs

    def graph(source: Path) -> Simplified:
        path = out / source.name
        if section.enabled:
            images = samples.to(torch.float32).numpy()
            return simplify(source, path, max_abs_diff=section.max_abs_diff, samples=images)
        shutil.copyfile(source, path)
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
        return Simplified(path, "original", nodes, nodes, 0.0, {"every simplifier": "simplify.enabled is false"})

    dense, compact = graph(exported.dense.path), graph(exported.compact.path)
    weights = weights_of(compact.path, out / "compact.sparse.onnx", samples.to(torch.float32).numpy())
    return SimplifiedGraphs(dense, compact, weights)
