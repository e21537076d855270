"""Check what was exported against the dense network: accuracy at every hop, paired latency, gates, verdict.

`check.json` holds the keys of report.json, filled as far as this stage knows them:

    schema            1
    environment       runtime.device.environment(): fingerprint, cpu, cores, memory_gib, gpus, os, python, versions
    models.{dense,compact}
        params        int, all parameters
        macs          int, multiply-accumulates of one image (batch 1)
        bytes         int, the simplified fp32 ONNX file: what is deployed
        files         {"onnx" | "simplified" | "fp16" | "<engine>": bytes of the file}
        accuracy      {"torch" | "onnx" | "simplified" | "fp16" | "<engine>": fraction of the test split, or null}
        reasons       {"<key of accuracy that is null>": why}
    accuracy_difference   dense against compact, through torch, on the same images: {n, only_first, only_second,
                      difference_pp, ci95_pp: [lo, hi], p_value, method}; difference_pp = compact - dense, in
                      percentage points
    hops[]            {model: "dense"|"compact", from, to, max_abs, max_rel, top1_agreement, accuracy_delta, reason}
    latency.<backend>.<precision>.b<batch>
        dense, compact  {name, p50_ms, p95_ms, mean_ms, best_ms, n, repeats, samples_ms: at most 2,000, thinned}
        speedup         {ratio: dense p50 / compact p50, ci95: [lo, hi],
                         verdict: "faster"|"not distinguishable"|"slower"}
        settings, protocol   how it was measured
        reason          null, or why dense, compact and speedup are null
    engines[]         {model, flavour, precision, target, path, sha256, bytes, measured_on: device name or null, reason}
    verdict           {status: "pass"|"fail"|"inconclusive", gates[]: {name, status, value, limit, reason}}

`<engine>` is `<flavour>.<precision>.<target>`, e.g. `tensorrt_rtx.fp16.SM86`; `<backend>` is `onnxruntime`, `torch`,
`tensorrt` or `tensorrt_rtx`. A figure that was not measured is null beside its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from export.files import write_json
from pipeline import config
from pipeline.data import Split
from pipeline.exporting import ROLES, EngineResult, Role
from pipeline.measuring import Bench, Graphs, Hop, Results, engine_name, hops_of, pairs_of
from pipeline.progress import Progress
from runtime.accuracy import Accuracy
from runtime.agree import agree
from runtime.backend import DeviceName
from runtime.device import environment
from runtime.gate import Verdict, accuracy_gate, difference_gate, engines_gate, speedup_gate, verdict
from runtime.latency import Speedup
from runtime.macs import macs, params
from runtime.paired import PairedAccuracy, paired_accuracy


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
) -> Checked:
    """Measure both networks and write `out`/check.json.

    `graphs` maps "onnx", "simplified" and lower precisions ("fp16") to the two files; `max_abs_diff` is the
    surgery's. ONNX Runtime uses CUDA only where its build has it. Engines that do not run here are null with the
    reason. Raises UserError where a graph does not load or the split is empty.
    """
    networks: dict[Role, nn.Module] = {"dense": dense, "compact": compact}
    bench = Bench(section, networks, graphs, test, device)
    hops = hops_of(graphs, engines)
    results, latency = bench.measure(hops, pairs_of(graphs, engines), progress)
    through_torch = _through_torch(results["dense"]), _through_torch(results["compact"])
    difference = paired_accuracy(through_torch[0].correct, through_torch[1].correct)
    gated = latency["onnxruntime"]["fp32"][f"b{section.gate_batch}"]
    ruling = _ruling(section, difference, gated, max_abs_diff, engines)
    models = {
        role: {
            **_sizes(networks[role], bench.input_shape),
            **_files(role, graphs, engines),
            **_accuracies(results[role]),
        }
        for role in ROLES
    }
    document = {
        "schema": 1,
        "environment": environment(),
        "models": models,
        "accuracy_difference": asdict(difference),
        "hops": [_hop(role, hop, results[role]) for role in ROLES for hop in hops[role] if hop.source],
        "latency": latency,
        "engines": [_engine(result, results[result.model], bench.gpu) for result in engines],
        "verdict": asdict(ruling),
    }
    path = out / "check.json"
    write_json(path, document)
    speedup = float(gated["speedup"]["ratio"])
    return Checked(path, ruling.status, through_torch[0].top1, through_torch[1].top1, speedup)


def _through_torch(results: Results) -> Accuracy:
    result = results["torch"]
    assert isinstance(result, Accuracy)
    return result


def _sizes(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    return {"params": params(network), "macs": macs(network, input_shape)}


def _files(role: Role, graphs: Graphs, engines: Sequence[EngineResult]) -> dict[str, Any]:
    files = {name: pair[role].stat().st_size for name, pair in graphs.items()}
    files |= {engine_name(result): result.engine.bytes for result in engines if result.engine and result.model == role}
    return {"bytes": files["simplified"], "files": files}


def _accuracies(results: Results) -> dict[str, Any]:
    return {
        "accuracy": {name: result.top1 if isinstance(result, Accuracy) else None for name, result in results.items()},
        "reasons": {name: result for name, result in results.items() if isinstance(result, str)},
    }


def _hop(role: Role, hop: Hop, results: Results) -> dict[str, Any]:
    assert hop.source is not None
    entry: dict[str, Any] = {"model": role, "from": hop.source, "to": hop.name}
    before, after = results[hop.source], results[hop.name]
    figures = ("max_abs", "max_rel", "top1_agreement", "accuracy_delta")
    if isinstance(before, str) or isinstance(after, str):
        return {**entry, **dict.fromkeys(figures), "reason": after if isinstance(after, str) else before}
    told = agree(before.logits, after.logits)
    return {
        **entry,
        "max_abs": told.max_abs,
        "max_rel": told.max_rel,
        "top1_agreement": told.top1_agreement,
        "accuracy_delta": after.top1 - before.top1,
        "reason": f"logits of {told.nonfinite} images are not finite" if told.nonfinite else None,
    }


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


def _ruling(
    section: config.Check,
    difference: PairedAccuracy,
    gated: Mapping[str, Any],
    max_abs_diff: float | None,
    engines: Sequence[EngineResult],
) -> Verdict:
    limits, what = section.gates, f"ONNX Runtime, fp32, batch {section.gate_batch}"
    blocks = gated["protocol"]["blocks"]
    few = f"{blocks} of {section.min_blocks} blocks in {section.time_limit_s} s: raise check.time_limit_s"
    doubt = few if blocks < section.min_blocks else ""
    return verdict(
        [
            accuracy_gate(difference, limits.max_accuracy_drop),
            speedup_gate(Speedup(**gated["speedup"]), limits.min_speedup, what, doubt=doubt),
            difference_gate(max_abs_diff, limits.max_abs_diff, "the surgery did not measure it"),
            engines_gate(sum(r.engine is not None for r in engines), [r.reason or "" for r in engines if not r.engine]),
        ]
    )
