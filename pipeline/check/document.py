"""The whole check: every form of both networks measured, accuracy first, then speed; the gates and the verdict.

What it leaves is `check.json` (`pipeline.check.results`), the images of the worst hop in `worst/`, and manifests with
figures of the engines that ran here in `engines/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import nn

from pipeline import config
from pipeline.check import results as tree
from pipeline.check.accuracy import (
    Images,
    beside,
    by_class,
    drops,
    hop,
    macro_f1,
    metric_of,
    own_metric,
    title,
)
from pipeline.check.forms import BATCH, Bench, Form, Graphs, Results, engine_name, hops_of, pairs_of
from pipeline.check.measured_engines import write_measured
from pipeline.check.results import (
    Broken,
    CheckDocument,
    EngineFile,
    ModelFigures,
    Models,
    Worst,
)
from pipeline.check.speed import Speed, measured_speed, step
from pipeline.check.why import explanations
from pipeline.check.worst import save_images, worst_images
from pipeline.data import Split
from pipeline.data.dataset import at_once
from pipeline.progress import Progress
from pipeline.results import ROLES, Checked, EngineResult, Role
from pipeline.tasks import Task
from runtime.backends import DeviceName
from runtime.device import environment
from runtime.gate import (
    Gate,
    accuracy_gate,
    difference_gate,
    disturbance,
    engines_gate,
    hops_gate,
    metric_gate,
    speedup_gate,
    verdict,
)
from runtime.macs import denormals, macs, params
from runtime.measure.accuracy import Accuracy
from runtime.measure.conditions import complaints
from runtime.measure.statistics import PairedAccuracy

NO_IMAGES = Images()


def check(
    section: config.Check,
    *,
    dense: nn.Module,
    compact: nn.Module,
    graphs: Graphs,
    engines: Sequence[EngineResult],
    test: Split,
    max_abs_diff: float | None,
    device: DeviceName,
    out: Path,
    progress: Progress,
    task: Task,
    masked: nn.Module | None = None,
    images: Images = NO_IMAGES,
    target: Gate | None = None,
    host_code: bool = False,
    paired: bool = False,
) -> Checked:
    """Measure both networks and write `out`/check.json, and `out`/worst with images.

    `masked` is the network that compact was cut from; `graphs` maps "onnx", "simplified" and lower precisions ("fp16")
    to the two files; `max_abs_diff` is the surgery's. Engines that do not run here are null with the reason. `target`
    judges where a steered training landed. `host_code`: see Bench. `paired`: both networks were made elsewhere, so that
    nothing is claimed of their functions. Raises UserError where a graph does not load.
    """
    networks: dict[str, nn.Module] = {"dense": dense, "compact": compact} | ({"masked": masked} if masked else {})
    bench, metric = Bench(section, networks, graphs, test, device, task, host_code), own_metric(section.metric)
    forms = bench.forms = hops_of(graphs, engines, masked=masked is not None)
    results = bench.accuracies(forms, progress)
    pairs = pairs_of(graphs, engines, results)
    through_torch = _through_torch(results["dense"]), _through_torch(results["compact"])
    models = Models(*(_figures(role, networks[role], bench, results[role], metric, engines) for role in ROLES))
    speed = measured_speed(bench, pairs, engines, results, progress)
    losses = drops(forms["compact"], results["compact"], through_torch[0])
    difference = through_torch[1].judged.against(through_torch[0].judged)
    gates = _accuracy_gates(section, task.metric, difference, losses, _untrained(*through_torch, task), models)
    cut = [difference_gate(max_abs_diff, section.gates.max_abs_diff, "the surgery did not measure it")] * (not paired)
    gates += _other_gates(section, speed, cut, engines)
    limit_pp = section.limit_pp
    broken = next(((form, -one.difference_pp) for form, one in losses if -one.difference_pp > limit_pp), None)
    document = CheckDocument(
        environment=environment(),
        models=models,
        accuracy_difference=difference,
        classes=by_class(images, *through_torch, results["compact"], task),
        hops=tuple(hop(one, form, results[one], limit_pp, task) for one in ROLES for form in forms[one] if form.source),
        broken=None if broken is None else _broken(*broken, limit_pp),
        worst=_worst(broken[0] if broken else None, through_torch, results, test, images, out, bench),
        latency=speed.latency,
        reference=speed.reference,
        concurrency=speed.concurrency,
        why=step(progress, "layer by layer", lambda: explanations(bench, pairs, speed.latency, models)),
        engines=tuple(_engine(result, results[result.model], bench.gpu) for result in engines),
        verdict=(ruling := verdict([*gates, *([] if target is None else [target])])),
        metric_name=task.metric,
    )
    tree.write(path := out / "check.json", document)
    write_measured(document, engines, out)
    return Checked(path, ruling.status, through_torch[0].mean, through_torch[1].mean, speed.ratio)


def _through_torch(results: Results) -> Accuracy:
    result = results["torch"]
    assert isinstance(result, Accuracy)
    return result


def _figures(
    role: Role,
    network: nn.Module,
    bench: Bench,
    results: Results,
    metric: Callable[[Accuracy], float] | None,
    engines: Sequence[EngineResult],
) -> ModelFigures:
    files = {name: pair[role].stat().st_size for name, pair in bench.graphs.items()}
    files |= {engine_name(result): result.engine.bytes for result in engines if result.engine and result.model == role}
    classified = [(name, r) for name, r in results.items() if isinstance(r, Accuracy) and bench.task.answer]
    return ModelFigures(
        params=params(network),
        macs=macs(network, bench.input_shape),
        denormals=denormals(network),
        bytes=files["simplified"],
        files=files,
        accuracy={name: result.mean if isinstance(result, Accuracy) else None for name, result in results.items()},
        top5={name: five for name, r in classified if (five := r.top5) is not None},
        macro_f1={name: macro_f1(r, bench.task) for name, r in classified if bench.task.targets == "class"},
        beside=beside(results, bench.task),
        metric=metric_of(results, metric),
        intervals=intervals_of(results),
        reasons={name: result for name, result in results.items() if isinstance(result, str)},
    )


def _broken(form: Form, drop_pp: float, limit_pp: float) -> Broken:
    return Broken("compact", form.source or "dense", form.name, drop_pp, limit_pp)


def _worst(
    broken: Form | None,
    through_torch: tuple[Accuracy, Accuracy],
    results: Mapping[Role, Results],
    test: Split,
    images: Images,
    out: Path,
    bench: Bench,
) -> Worst:
    """The images of the hop that broke the budget; where none did, or there is none before it, against dense."""
    before, after = through_torch
    source, target = "dense", "compact"
    forms: list[tuple[Role, Form]] = [("dense", Form("torch", None)), ("compact", Form("torch", None))]
    if broken is not None:
        source, target = broken.source or "dense", broken.name
        first, second = results["compact"].get(source, before), results["compact"][target]
        assert isinstance(second, Accuracy)
        if isinstance(first, Accuracy) and source in results["compact"]:
            before, forms[0] = first, ("compact", next(one for one in bench.forms["compact"] if one.name == source))
        after, forms[1] = second, ("compact", broken)
    entries = worst_images(before, after, images, "worst", bench.task)
    networks = [partial(bench.answers, role, form) for role, form in forms]
    save_images(entries, test.batches(at_once(test, BATCH)), images, out, bench.task, networks)
    return Worst(source, target, entries, bench.task.drawn)


def _engine(result: EngineResult, results: Results, gpu: str | None) -> EngineFile:
    measured, engine = results[engine_name(result)], result.engine
    return EngineFile(
        model=result.model,
        flavour=engine.flavour if engine else None,
        precision=result.precision,
        target=result.target,
        path=f"{engine.path.parent.name}/{engine.path.name}" if engine else None,
        sha256=engine.sha256 if engine else None,
        bytes=engine.bytes if engine else None,
        measured_on=None if isinstance(measured, str) else gpu,
        reason=measured if isinstance(measured, str) else None,
    )


def _accuracy_gates(
    section: config.Check,
    metric: str,
    difference: PairedAccuracy,
    losses: Sequence[tuple[Form, PairedAccuracy]],
    untrained: str,
    models: Models,
) -> list[Gate]:
    limits = section.gates
    gates = [
        accuracy_gate(difference, section.limit_pp, untrained=untrained, metric=metric),
        hops_gate([(title(form), paired) for form, paired in losses], section.limit_pp, metric),
    ]
    if limits.max_metric_drop is not None and section.metric is not None:
        dense, compact = (model.metric.get("torch") for model in (models.dense, models.compact))
        gates.append(metric_gate(section.metric, dense, compact, limits.max_metric_drop))
    return gates


def intervals_of(results: Results) -> dict[str, tuple[float, float]]:
    """Of the metric by form, where it is no share of images."""
    measured = ((name, one.judged.interval) for name, one in results.items() if isinstance(one, Accuracy))
    return {name: interval for name, interval in measured if interval is not None}


def _untrained(dense: Accuracy, compact: Accuracy, task: Task) -> str:
    """Why a small loss says nothing; "" where the networks are trained."""
    if task.pooled is not None and task.pooled.constant is not None and dense.statistics is not None:
        constant, interval = task.pooled.constant(dense.statistics), dense.judged.interval
        if interval is None or interval[0] > constant:
            return ""
        same = f"one answer for all images and places reaches {100 * constant:.1f} %"
        return f"{same}, and the dense network {100 * dense.mean:.1f} %: train longer"
    if task.answer is None or not dense.at_chance:
        return ""
    which = "both networks are" if compact.at_chance else "the dense network is"
    return f"{which} no better than chance ({100 * dense.mean:.1f} % dense): train longer"


def _other_gates(
    section: config.Check, speed: Speed, difference: list[Gate], engines: Sequence[EngineResult]
) -> list[Gate]:
    gated, what = speed.gated, speed.what
    note = disturbance(complaints(gated.protocol["conditions"], settings=False)) if gated.protocol else ""
    missing = f"{what}: {gated.reason}"
    return [
        speedup_gate(gated.speedup, section.gates.min_speedup, what, missing, note),
        *difference,
        engines_gate(sum(r.engine is not None for r in engines), [r.reason or "" for r in engines if not r.engine]),
    ]
