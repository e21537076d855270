"""Check what was exported against the dense network: accuracy at every hop, paired latency, gates, verdict.

`check.json` holds the keys of report.json, filled as far as this stage knows them:

    schema            1
    environment       runtime.device.environment(): fingerprint, cpu, cores, memory_gib, gpus, os, python, versions
    models.{dense,compact}
        params        int, all parameters
        macs          int, multiply-accumulates of one image (batch 1)
        bytes         int, the simplified fp32 ONNX file: what is deployed
        denormals     int, weights so small that a processor computes with them slowly unless it flushes them
        files         {"onnx" | "simplified" | "fp16" | "<engine>": bytes of the file}
        accuracy      {"masked" | "torch" | "onnx" | "simplified" | "fp16" | "<engine>": fraction of the test split, or
                      null}; "masked", of compact, is the trained network before the cut, its dead channels still there
        top5          the same, of more than five classes; metric: check.metric at every measured form
        reasons       {"<key of accuracy that is null>": why}
    accuracy_difference   dense against compact, through torch, on the same images: {n, only_first, only_second,
                      difference_pp, ci95_pp: [lo, hi], p_value, method}; difference_pp = compact - dense, in
                      percentage points
    classes[]         {name, n, dense, compact, forms: {"<form>": fraction}}: accuracy through torch, the class that
                      lost most first; forms: compact at every measured form
    hops[]            {model: "dense"|"compact", from, to, max_abs, max_rel, top1_agreement, accuracy_delta,
                      paired: as accuracy_difference, non_inferior: "yes"|"no"|"undecided", reason}
    broken            null, or {model, from, to, drop_pp, limit_pp}: the first hop of compact beyond max_accuracy_drop
    worst             {from, to, images[]: {index, label, before, after, p_before, p_after, file}}: what the broken hop
                      (else the way from dense to compact) got wrong that was right before
    latency.<backend>.<precision>.b<batch>
        dense, compact  {name, p50_ms, p95_ms, p99_ms, mean_ms, best_ms, images_per_s, n, repeats, samples_ms: at most
                         2,000, thinned}
        speedup         {ratio: dense p50 / compact p50, ci95: [lo, hi], detectable,
                         verdict: "faster"|"not distinguishable"|"slower"}
        end_to_end      {dense, compact, speedup}: the same with the copies in and out
        settings, protocol   how it was measured
        reason          null, or why the figures are null
    reference         null without check.reference, else {file, sha256, batch, reference, compact, speedup, protocol}:
                      compact in fp32 through ONNX Runtime against that file, in turn; speedup: reference p50 over
                      compact p50
    concurrency[]     {backend, precision, streams, batch, threads, dense, compact: {images_per_s, p50_ms, p95_ms,
                      p99_ms, n}, speedup: ratio of throughputs, reason: null, or why the figures are null}; for every
                      backend and precision of `latency`, with `streams` sessions at once of `threads` each
    why[]             pipeline.why, for ONNX Runtime at gate_batch and for the engines that run here
    engines[]         {model, flavour, precision, target, path, sha256, bytes, measured_on: device name or null, reason}
    verdict           {status: "pass"|"fail"|"inconclusive", gates[]: {name, status, value, limit, reason}}

`<engine>` is `<flavour>.<precision>.<target>`, e.g. `tensorrt_rtx.fp16.SM86`; `<backend>` is `onnxruntime`, `torch`,
`tensorrt` or `tensorrt_rtx`. A figure that was not measured is null beside its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from export.files import write_json
from pipeline import config
from pipeline.data import Split
from pipeline.explaining import explanations
from pipeline.exporting import ROLES, EngineResult, Role
from pipeline.hops import Images, by_class, drops, hop_entry, keep_images, metric_of, own_metric, said, worst_images
from pipeline.latencies import against_reference, latencies
from pipeline.measured_engines import write_measured
from pipeline.measuring import Bench, Graphs, Hop, Latencies, Pair, Results, engine_name, hops_of, pairs_of
from pipeline.progress import Progress
from pipeline.throughput import throughputs
from runtime.accuracy import Accuracy
from runtime.backend import DeviceName
from runtime.conditions import complaints
from runtime.device import environment
from runtime.gate import (
    Gate,
    accuracy_gate,
    difference_gate,
    disturbance,
    engines_gate,
    hops_gate,
    metric_gate,
    non_inferiority_gate,
    speedup_gate,
    verdict,
)
from runtime.latency import Speedup
from runtime.macs import denormals, macs, params
from runtime.paired import PairedAccuracy, paired_accuracy

NO_IMAGES = Images()


@dataclass(frozen=True)
class Checked:
    """Stage 70. Accuracies are fractions of the whole test split, through torch; `speedup` is the gated one."""

    path: Path
    status: str
    accuracy_dense: float
    accuracy_compact: float
    speedup: float


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
    masked: nn.Module | None = None,
    images: Images = NO_IMAGES,
    target: Gate | None = None,
) -> Checked:
    """Measure both networks and write `out`/check.json, and `out`/worst with images.

    `masked` is the network that compact was cut from; `graphs` maps "onnx", "simplified" and lower precisions ("fp16")
    to the two files; `max_abs_diff` is the surgery's. ONNX Runtime uses CUDA only where its build has it. Engines that
    do not run here are null with the reason. `target` judges where a steered training landed. Raises UserError where a
    graph does not load or the split is empty.
    """
    networks: dict[str, nn.Module] = {"dense": dense, "compact": compact} | ({"masked": masked} if masked else {})
    bench, metric = Bench(section, networks, graphs, test, device), own_metric(section.metric)
    hops = hops_of(graphs, engines, masked=masked is not None)
    results = bench.accuracies(hops, progress)
    pairs = pairs_of(graphs, engines, results)
    through_torch = _through_torch(results["dense"]), _through_torch(results["compact"])
    difference = paired_accuracy(through_torch[0].correct, through_torch[1].correct)
    sizes = {role: _sizes(networks[role], bench.input_shape) | _files(role, graphs, engines) for role in ROLES}
    models = {role: sizes[role] | _accuracies(results[role], metric) for role in ROLES}
    reference = _against_reference(bench, progress)  # what the user named is tried before minutes of timing
    latency = latencies(bench, pairs, results, progress)
    gated = latency["onnxruntime"]["fp32"][f"b{section.gate_batch}"]
    losses = drops(hops["compact"], results["compact"], through_torch[0])
    gates = _accuracy_gates(section, difference, losses, models) + _other_gates(section, gated, max_abs_diff, engines)
    ruling = verdict([*gates, *([] if target is None else [target])])
    limit_pp = section.gates.max_accuracy_drop
    broken = next(((hop, drop) for hop, drop in losses if drop > limit_pp), None)
    document = {
        "schema": 1,
        "environment": environment(),
        "models": models,
        "accuracy_difference": asdict(difference),
        "classes": by_class(images, *through_torch, results["compact"]),
        "hops": [hop_entry(role, hop, results[role], limit_pp) for role in ROLES for hop in hops[role] if hop.source],
        "broken": _broken(broken, limit_pp),
        "worst": _worst(broken[0] if broken else None, through_torch, results, test, images, out),
        "latency": latency,
        "reference": reference,
        **_load_and_layers(bench, pairs, latency, models, progress),
        "engines": [_engine(result, results[result.model], bench.gpu) for result in engines],
        "verdict": asdict(ruling),
    }
    write_json(path := out / "check.json", document)
    write_measured(document, engines, out)
    dense_top1, compact_top1 = (one.top1 for one in through_torch)
    return Checked(path, ruling.status, dense_top1, compact_top1, float(gated["speedup"]["ratio"]))


def _load_and_layers(
    bench: Bench,
    pairs: Mapping[tuple[str, str], Pair],
    latency: Latencies,
    models: Mapping[Role, Mapping[str, Any]],
    progress: Progress,
) -> dict[str, Any]:
    concurrency = throughputs(bench, pairs, latency, progress)
    progress.start("check: layer by layer", 1)
    try:
        why = explanations(bench, pairs, latency, models)
        progress.update(1)
    finally:
        progress.stop()
    return {"concurrency": concurrency, "why": why}


def _against_reference(bench: Bench, progress: Progress) -> dict[str, Any] | None:
    if bench.section.reference is None:
        return None
    progress.start("check: against the reference model", 1)
    try:
        told = against_reference(bench, bench.section.reference)
        progress.update(1)
    finally:
        progress.stop()
    return told


def _through_torch(results: Results) -> Accuracy:
    result = results["torch"]
    assert isinstance(result, Accuracy)
    return result


def _sizes(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    return {"params": params(network), "macs": macs(network, input_shape), "denormals": denormals(network)}


def _files(role: Role, graphs: Graphs, engines: Sequence[EngineResult]) -> dict[str, Any]:
    files = {name: pair[role].stat().st_size for name, pair in graphs.items()}
    files |= {engine_name(result): result.engine.bytes for result in engines if result.engine and result.model == role}
    return {"bytes": files["simplified"], "files": files}


def _accuracies(results: Results, metric: Callable[[Accuracy], float] | None) -> dict[str, Any]:
    return {
        "accuracy": {name: result.top1 if isinstance(result, Accuracy) else None for name, result in results.items()},
        "top5": {name: five for name, r in results.items() if isinstance(r, Accuracy) and (five := r.top5) is not None},
        "metric": metric_of(results, metric),
        "reasons": {name: result for name, result in results.items() if isinstance(result, str)},
    }


def _broken(found: tuple[Hop, float] | None, limit_pp: float) -> dict[str, Any] | None:
    if found is None:
        return None
    hop, drop = found
    return {"model": "compact", "from": hop.source or "dense", "to": hop.name, "drop_pp": drop, "limit_pp": limit_pp}


def _worst(
    broken: Hop | None,
    through_torch: tuple[Accuracy, Accuracy],
    results: Mapping[Role, Results],
    test: Split,
    images: Images,
    out: Path,
) -> dict[str, Any]:
    """The images of the hop that broke the budget; where none did, or there is none before it, against dense."""
    before, after = through_torch
    source, target = "dense", "compact"
    if broken is not None:
        source, target = broken.source or "dense", broken.name
        told = results["compact"].get(source, before), results["compact"][target]
        assert isinstance(told[1], Accuracy)
        before, after = told[0] if isinstance(told[0], Accuracy) else before, told[1]
    entries = worst_images(before, after)
    keep_images(entries, test.batches(256), images, out / "worst")
    return {"from": source, "to": target, "images": entries}


def _engine(result: EngineResult, results: Results, gpu: str | None) -> dict[str, Any]:
    told, engine = results[engine_name(result)], result.engine
    return {
        "model": result.model,
        "flavour": engine.flavour if engine else None,
        "precision": result.precision,
        "target": result.target,
        "path": f"{engine.path.parent.name}/{engine.path.name}" if engine else None,
        "sha256": engine.sha256 if engine else None,
        "bytes": engine.bytes if engine else None,
        "measured_on": None if isinstance(told, str) else gpu,
        "reason": told if isinstance(told, str) else None,
    }


def _accuracy_gates(
    section: config.Check,
    difference: PairedAccuracy,
    losses: Sequence[tuple[Hop, float]],
    models: Mapping[Role, Mapping[str, Any]],
) -> list[Gate]:
    limits = section.gates
    gates = [
        accuracy_gate(difference, limits.max_accuracy_drop),
        hops_gate([(said(hop), drop) for hop, drop in losses], limits.max_accuracy_drop),
    ]
    if limits.non_inferiority_margin is not None:
        gates.append(non_inferiority_gate(difference, limits.non_inferiority_margin))
    if limits.max_metric_drop is not None:
        dense, compact = (models[role]["metric"].get("torch") for role in ROLES)
        gates.append(metric_gate(section.metric or "metric", dense, compact, limits.max_metric_drop))
    return gates


def _other_gates(
    section: config.Check, gated: Mapping[str, Any], max_abs_diff: float | None, engines: Sequence[EngineResult]
) -> list[Gate]:
    limits, what = section.gates, f"ONNX Runtime, fp32, batch {section.gate_batch}"
    blocks = gated["protocol"]["blocks"]
    few = f"{blocks} of {section.min_blocks} blocks in {section.time_limit_s} s: raise check.time_limit_s"
    doubts = [
        few if blocks < section.min_blocks else "",
        disturbance(complaints(gated["protocol"]["conditions"], settings=False)),
    ]
    return [
        speedup_gate(Speedup(**gated["speedup"]), limits.min_speedup, what, doubt="; ".join(filter(None, doubts))),
        difference_gate(max_abs_diff, limits.max_abs_diff, "the surgery did not measure it"),
        engines_gate(sum(r.engine is not None for r in engines), [r.reason or "" for r in engines if not r.engine]),
    ]
