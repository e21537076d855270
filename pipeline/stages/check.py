"""Stage 70: measure every form of both networks, and judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.task import task_of
from pipeline.stages import Run, Stage
from pipeline.workspace import fingerprint
from runtime import device as machine
from runtime.errors import UserError

if TYPE_CHECKING:
    from pipeline.results import CastGraphs, Checked, Cut, Engines, Exported, Role, SimplifiedGraphs, Trained


def where_measured(run: Run) -> Mapping[str, Any]:
    """The machine, and the content of the reference model and of the user's metric."""
    content = fingerprint.of_check(run.config.check)
    return {"machine": machine.fingerprint(), "device": run.device, "content": content}


def check(
    run: Run,
    trained: Trained,
    sparse: Trained,
    cut: Cut,
    exported: Exported,
    simplified: SimplifiedGraphs,
    lower: CastGraphs,
    engines: Engines,
    out: Path,
) -> Checked:
    """Measure what the stages 10 to 60 left. UserError: the data changed while the run went on, or the dense network
    does not have the accuracy that its training saw."""
    from pipeline.check import document
    from pipeline.check.accuracy import Images
    from pipeline.check.target import landing
    from pipeline.surgery import load_compact
    from pipeline.training.loop import metric_of
    from pipeline.training.train import trained_network

    config, data = run.config, run.data()
    fingerprint.demand_same_data(config, run.content.get("data"), "this run began")
    dense, masked = (trained_network(config.model, data, one) for one in (trained, sparse))
    compact = load_compact(cut.plan.parent).eval()
    target = landing(config.sparse.asked, sparse, cut, (dense, compact), data.input_shape, config.threads)
    checked = document.check(
        config.check,
        dense=dense,
        masked=masked,
        images=Images(data.names, data.mean, data.std),
        compact=compact,
        graphs=graphs_of(exported, simplified, lower),
        engines=engines.engines,
        test=data.test,
        max_abs_diff=cut.max_abs_diff,
        target=target,
        host_code=run.own_engines and config.engine.version_compatible,
        device=run.device,
        out=out,
        progress=run.progress,
        task=task_of(config.task),
    )
    seen = checked.accuracy_dense
    if data.validation is not None:
        seen = metric_of(dense, data.validation, task=task_of(config.task))
    demand_accuracy(trained.accuracy, seen, len(data.choosing), data.choosing.name)
    return checked


def graphs_of(exported: Exported, simplified: SimplifiedGraphs, lower: CastGraphs) -> dict[str, dict[Role, Path]]:
    """Both files of every form, in the order of the line."""
    return {
        "onnx": {"dense": exported.dense.path, "compact": exported.compact.path},
        "simplified": {"dense": simplified.dense.path, "compact": simplified.compact.path},
        **{name: {"dense": lower.dense[name].path, "compact": lower.compact[name].path} for name in lower.dense},
    }


ROUNDING = 0.01
"""Share of the images whose answer a sum in another order or another number format may turn."""


def demand_accuracy(trained: float, checked: float, images: int, split: str = "test") -> None:
    """UserError where the dense network's accuracy is not what its training saw, which is of the same images."""
    if abs(trained - checked) * images > max(1.5, ROUNDING * images):
        raise UserError(
            f"the dense network scores {checked:.2%} on the {split} images, and did {trained:.2%} when it was trained",
            "the same images and a network whose answer to one does not depend on those beside it",
            "look at data.source and the network, then run again with --redo dense",
        )


CHECK = Stage(
    "70-check",
    check,
    "check",
    libraries="torch onnxruntime tensorrt tensorrt-rtx-cu13 pycuda",
    version=4,
    also=where_measured,
    needs_bytes=lambda run, *before: 0,
)
