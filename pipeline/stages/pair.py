"""The line of two networks that were made elsewhere: stage 05 takes them in, and what follows needs of them what the
other line has from its trainings and its cut.

Nothing is claimed of their functions: both are measured, and how far their answers lie apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.task import task_of
from pipeline.stages import Run, Stage, tree_of
from pipeline.stages.check import CHECK, graphs_of
from pipeline.stages.engine import ENGINE, build_engines
from pipeline.stages.onnx import ONNX, metadata_of, samples_of
from pipeline.workspace import fingerprint
from pipeline.workspace.stages import PAIR as FOLDER
from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from export.onnx.from_torch import OnnxGraph
    from pipeline.config import Model
    from pipeline.results import CastGraphs, Checked, Engines, Exported, Member, Pair, Role, SimplifiedGraphs


def data_and_networks(run: Run) -> Mapping[str, Any]:
    tree = tree_of(run.config)
    content = {"content": dict(run.content), "max_abs_diff": run.config.onnx.max_abs_diff}
    return {key: tree[key] for key in ("data", "model", "task")} | content


def pair(run: Run, out: Path) -> Pair:
    """Copy both networks into `out`, and compare their answers. UserError where one does not fit the data."""
    from pipeline.models.pair import take
    from pipeline.results import Member, Pair
    from pipeline.stages.surgery import images_of
    from pipeline.surgery.proof.evidence import change_of_outputs

    section, data, task = run.config.given, run.data(), task_of(run.config.task)
    assert section is not None
    if run.until == CHECK.folder:
        fingerprint.try_check(run.config.check, data.input_shape)
    networks, members = {}, {}
    for role, text in (("dense", section.dense), ("compact", section.compact)):
        form, path, network = take(text, spec_of(run, role, text), data, task, out / role)
        difference = _demand_same(path, network, run) if form == "onnx" else None
        networks[role], members[role] = task.network(network), Member(form, path, text, difference)
    run.progress.start("pair: both networks on the test images", len(data.test))
    try:
        images = images_of(data.test, run.progress)
        change = change_of_outputs(networks["dense"], networks["compact"], images, task.answer)
    finally:
        run.progress.stop()
    changed = None if task.answer is None else change["top1_changed"]
    return Pair(members["dense"], members["compact"], change["images"], change["max_abs"], changed)


def _demand_same(path: Path, network: nn.Module, run: Run) -> float:
    """How far the torch form of an ONNX file is from the file. UserError where that is too far."""
    import torch

    from export.onnx.graph import open_graph, run_graph, worst_difference

    samples = samples_of(run.data().test)
    with torch.no_grad():
        difference = worst_difference(run_graph(open_graph(path), samples.numpy()), [network(samples).numpy()])
    if not difference <= run.config.onnx.max_abs_diff:
        raise UserError(
            f"given: the torch form of {path.name} differs from ONNX Runtime's logits by {difference:.3g}",
            f"at most {run.config.onnx.max_abs_diff:g}",
            "raise onnx.max_abs_diff if the logits are that large, else give the network in torch",
        )
    return difference


def spec_of(run: Run, role: str, text: str) -> Model:
    """What builds the network that weights or a plan are for."""
    section = run.config.given
    assert section is not None
    if role == "dense" or section.network is None:
        return run.config.model
    return run.config.model.model_copy(update={"name": section.network, "args": section.args})


def network_of(run: Run, role: Role, member: Member) -> nn.Module:
    from pipeline.models.pair import load

    return load(member.form, member.path, spec_of(run, role, member.source), run.data(), task_of(run.config.task))


def plan_of(pair: Pair) -> str | None:
    """Hash of compact's plan, where it has one."""
    from pipeline.surgery.plan import PLAN
    from runtime.files import sha256

    return sha256(pair.compact.path / PLAN) if pair.compact.form == "plan" else None


def onnx(run: Run, pair: Pair, out: Path) -> Exported:
    """Export what is no ONNX file yet. Raises UserError."""
    from pipeline.results import Exported

    return Exported(_graph(run, "dense", pair, out), _graph(run, "compact", pair, out))


def _graph(run: Run, role: Role, pair: Pair, out: Path) -> OnnxGraph:
    import json

    from export.onnx.from_torch import OnnxGraph, onnx_from_torch
    from export.onnx.graph import inputs_of, opset_of, outputs_of, read_graph, write_graph

    member: Member = getattr(pair, role)
    samples, plan, path = samples_of(run.data().test), plan_of(pair), out / f"{role}.onnx"
    name = spec_of(run, role, member.source).name if member.form != "onnx" else Path(member.source).name
    metadata = metadata_of(name, run.data()) | {"demport.input_size": json.dumps(list(samples.shape[1:]))}
    metadata |= {"demport.role": role} | ({"demport.plan_sha256": plan} if plan and role == "compact" else {})
    if member.form != "onnx":
        section, network = run.config.onnx, task_of(run.config.task).network(network_of(run, role, member))
        keys: dict[str, Any] = {"opset": section.opset, "max_abs_diff": section.max_abs_diff, "metadata": metadata}
        return onnx_from_torch(network, samples, path, **keys)
    model = read_graph(member.path)
    for key in [entry for entry in model.metadata_props if entry.key in metadata]:
        model.metadata_props.remove(key)
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    size = write_graph(model, path)
    inputs, outputs = (tuple(one.name for one in specs) for specs in (inputs_of(model), outputs_of(model)))
    assert member.max_abs_diff is not None
    return OnnxGraph(
        path, opset_of(model), len(model.graph.node), size, member.max_abs_diff, (len(samples),), inputs, outputs
    )


def engine(run: Run, pair: Pair, simplified: SimplifiedGraphs, casts: CastGraphs, out: Path) -> Engines:
    """Build the engines. Raises UserError where the library is there and refuses."""
    return build_engines(run.config.engine, simplified, casts, plan_of(pair), out, run.progress)


def check(
    run: Run,
    pair: Pair,
    exported: Exported,
    simplified: SimplifiedGraphs,
    lower: CastGraphs,
    engines: Engines,
    out: Path,
) -> Checked:
    """Measure both networks in every form. UserError: the data changed while the run went on."""
    from pipeline.check import document
    from pipeline.check.accuracy import Images

    config, data = run.config, run.data()
    fingerprint.demand_same_data(config, run.content.get("data"), "this run began")
    return document.check(
        config.check,
        dense=network_of(run, "dense", pair.dense),
        compact=network_of(run, "compact", pair.compact),
        images=Images(data.names, data.mean, data.std),
        graphs=graphs_of(exported, simplified, lower),
        engines=engines.engines,
        test=data.test,
        max_abs_diff=None,
        paired=True,
        host_code=run.own_engines and config.engine.version_compatible,
        device=run.device,
        out=out,
        progress=run.progress,
        task=task_of(config.task),
    )


def pair_bytes(run: Run, *before: object) -> int:
    """About what is copied."""
    from pipeline.models.pair import files_of

    section = run.config.given
    assert section is not None
    return sum(path.stat().st_size for text in (section.dense, section.compact) for path in files_of(text))


PAIR = Stage(FOLDER, pair, "given", libraries="torch onnx", also=data_and_networks, needs_bytes=pair_bytes)
PAIR_ONNX = replace(ONNX, function=onnx)
PAIR_ENGINE = replace(ENGINE, function=engine)
PAIR_CHECK = replace(CHECK, function=check)
