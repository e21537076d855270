"""What each stage does, as one call: gathers a stage's inputs from the folders before it and calls its function.

Nothing heavy is imported before a stage runs, so a run that is up to date costs no import of torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.files import sha256
from pipeline.files import bytes_in

if TYPE_CHECKING:
    from torch import nn

    from pipeline.check import Checked
    from pipeline.config import Config
    from pipeline.data import Dataset
    from pipeline.exporting import CastGraphs, Engines, Exported, SimplifiedGraphs
    from pipeline.progress import Progress
    from pipeline.surgery.stage import Cut
    from pipeline.training.stage import Trained
    from pipeline.workspace import Done
    from runtime.backend import DeviceName

Data = Callable[[], "Dataset"]
"""The data set, read when it is first asked for."""


def dense(config: Config, data: Data, device: str, progress: Progress, out: Path) -> Trained:
    from pipeline.training.stage import train_dense

    return train_dense(
        config.dense,
        config.model,
        data(),
        seed=config.seed,
        threads=config.threads,
        device=device,
        out=out,
        progress=progress,
    )


def demp(config: Config, data: Data, device: str, progress: Progress, out: Path) -> Trained:
    from pipeline.training.stage import train_demp

    return train_demp(
        config.demp,
        config.model,
        data(),
        seed=config.seed,
        threads=config.threads,
        device=device,
        out=out,
        progress=progress,
    )


def training_bytes(config: Config, data: Data) -> int:
    """What a training writes: its weights, and 1 MiB for history and census."""
    from pipeline.models import build

    network = build(config.model, num_classes=len(data().names), input_shape=data().input_shape)
    sizes: list[int] = [tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()]
    return 2**20 + sum(sizes)


def surgery(config: Config, data: Data, trained: Done, device: DeviceName, progress: Progress, out: Path) -> Cut:
    from pipeline.surgery.align import timing_of
    from pipeline.surgery.stage import cut
    from pipeline.training.stage import Trained

    return cut(
        config.surgery,
        config.model,
        data(),
        trained.result(Trained),
        threads=config.threads,
        timing=timing_of(config.check, device),
        out=out,
        progress=progress,
    )


def onnx(config: Config, data: Data, trained: Done, cut: Done, out: Path) -> Exported:
    from pipeline.exporting import export_graphs, samples_of

    metadata = {
        "demport.model": config.model.name,
        "demport.classes": json.dumps(list(data().names)),
        "demport.mean": json.dumps(list(data().mean)),
        "demport.std": json.dumps(list(data().std)),
        "demport.scale": json.dumps(data().scale),
    }
    pair = dense_network(config, data(), trained), compact_network(cut)
    return export_graphs(config.onnx, *pair, samples_of(data().test), metadata, out)


def simplify(config: Config, data: Data, exported: Done, out: Path) -> SimplifiedGraphs:
    from pipeline.exporting import Exported, samples_of, simplify_graphs

    return simplify_graphs(config.simplify, exported.result(Exported), samples_of(data().test), out)


def precision(config: Config, data: Data, simplified: Done, out: Path) -> CastGraphs:
    from pipeline.exporting import SimplifiedGraphs, cast_graphs, samples_of

    return cast_graphs(config.precision, simplified.result(SimplifiedGraphs), samples_of(data().test), out)


def engine(config: Config, cut: Done, simplified: Done, casts: Done, progress: Progress, out: Path) -> Engines:
    from pipeline.exporting import CastGraphs, SimplifiedGraphs, build_engines

    graphs = simplified.result(SimplifiedGraphs), casts.result(CastGraphs)
    return build_engines(config.engine, *graphs, sha256(cut.folder / "plan.json"), out, progress)


def engine_bytes(config: Config, simplified: Done) -> int:
    """What the engines take: each about as much as its graph in fp32."""
    if config.engine.flavour == "none":
        return 0
    return bytes_in(simplified.folder) * len(config.engine.targets) * len(config.engine.precisions)


def dense_network(config: Config, data: Dataset, trained: Done) -> nn.Module:
    """The dense network with its trained weights, in eval mode on the CPU."""
    from pipeline.models import build, load_weights
    from pipeline.training.stage import Trained

    fresh = config.model.model_copy(update={"weights": None})
    network = build(fresh, num_classes=len(data.names), input_shape=data.input_shape)
    load_weights(network, trained.result(Trained).weights)
    return network.eval()


def compact_network(cut: Done) -> nn.Module:
    """The compact network, in eval mode on the CPU."""
    from pipeline.surgery import load_compact

    return load_compact(cut.folder).eval()


def check(
    config: Config,
    data: Data,
    device: DeviceName,
    made: Sequence[Done],
    progress: Progress,
    out: Path,
) -> Checked:
    """`made`: the stages 10, 30, 40, 50, 55 and 60."""
    from pipeline import check as stage
    from pipeline.exporting import CastGraphs, Engines, Exported, Role, SimplifiedGraphs
    from pipeline.surgery.stage import Cut

    trained, cut, exported, simplified, casts, engines = made
    first, second, lower = exported.result(Exported), simplified.result(SimplifiedGraphs), casts.result(CastGraphs)
    graphs: dict[str, dict[Role, Path]] = {
        "onnx": {"dense": first.dense.path, "compact": first.compact.path},
        "simplified": {"dense": second.dense.path, "compact": second.compact.path},
        **{name: {"dense": lower.dense[name].path, "compact": lower.compact[name].path} for name in lower.dense},
    }
    return stage.check(
        config.check,
        dense=dense_network(config, data(), trained),
        compact=compact_network(cut),
        graphs=graphs,
        engines=engines.result(Engines).engines,
        test=data().test,
        max_abs_diff=cut.result(Cut).max_abs_diff,
        device=device,
        out=out,
        progress=progress,
    )
