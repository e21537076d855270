"""Measures what `pipeline.why` explains: both networks under the runtime's profiler, and the device's roofline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.exporting import ROLES, Role
from pipeline.measuring import Bench, Latencies, Pair
from pipeline.why import Measured, explain
from runtime.backend import Array
from runtime.conditions import complaints
from runtime.layers import Profile, ort_profile, trt_profile, weighted_layers
from runtime.roofline import cpu_roofline, gpu_roofline

Models = Mapping[Role, Mapping[str, Any]]


def explanations(
    bench: Bench, pairs: Mapping[tuple[str, str], Pair], latency: Latencies, models: Models
) -> list[dict[str, Any]]:
    """check.json's `why`: fp32 through ONNX Runtime on the CPU, then each engine that was timed; at the gated batch."""
    return [
        explain(measured, _doubts(backend, latency[backend][precision][f"b{bench.gate_batch}"], models))
        for (backend, precision), measured in _measured(bench, pairs, latency, models)
    ]


def _measured(
    bench: Bench, pairs: Mapping[tuple[str, str], Pair], latency: Latencies, models: Models
) -> Iterator[tuple[tuple[str, str], Measured]]:
    ratio = models["dense"]["macs"] / max(models["compact"]["macs"], 1)
    batch, images = bench.gate_batch, bench.images(bench.gate_batch)
    graphs = bench.graphs["simplified"]
    profiles = {role: _on_cpu(graphs[role], images, bench.threads) for role in ROLES}
    for (backend, precision), pair in pairs.items():
        speedup = latency[backend][precision][f"b{batch}"]["speedup"]
        if speedup is None or ((backend, precision) != ("onnxruntime", "fp32") and pair["dense"].engine is None):
            continue
        if pair["dense"].engine is None:
            told, roofline = profiles, cpu_roofline(bench.threads)
            where, threads = f"ONNX Runtime {precision} on the CPU", bench.threads
        else:
            told = {role: _on_gpu(bench, role, pair, images, profiles[role], precision) for role in ROLES}
            roofline, where, threads = gpu_roofline(precision), f"{backend} {precision}", None
        yield (
            (backend, precision),
            Measured(
                where,
                batch,
                threads,
                told["dense"],
                told["compact"],
                roofline.at_least((k.macs, k.us) for profile in told.values() for k in profile.kernels),
                speedup["ratio"],
                ratio,
            ),
        )


def _on_cpu(path: Path, images: Array, threads: int) -> Profile:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {weight.name for weight in graph.initializer}
    name = next(value.name for value in graph.input if value.name not in constants)
    return ort_profile(path, {name: images}, threads=threads)


def _on_gpu(bench: Bench, role: Role, pair: Pair, images: Array, on_cpu: Profile, precision: str) -> Profile:
    """TensorRT tells times only; the work of each layer is that which ONNX Runtime tells of the same graph, and its
    bytes are those of the engine's precision."""
    with bench.session(role, pair[role]) as session:
        session.bind({session.inputs[0].name: images})
        profile = trt_profile(session, weighted_layers(bench.graphs["simplified"][role]))
    work = {kernel.layer: kernel for kernel in on_cpu.kernels if kernel.layer}
    share = 2 if precision == "fp16" else 1
    kernels = tuple(
        replace(kernel, macs=known.macs, moved=known.moved // share)
        if kernel.layer and (known := work.get(kernel.layer))
        else kernel
        for kernel in profile.kernels
    )
    return replace(profile, kernels=kernels)


def _doubts(backend: str, entry: Mapping[str, Any], models: Models) -> list[str]:
    """What beside the networks may have slowed the measurement, or parts it from the layers' times."""
    found = complaints(entry["protocol"]["conditions"])
    if backend == "onnxruntime" and (device := entry["settings"]["dense"]["device"]) != "cpu":
        found.append(f"the speedup was measured on {device}, the layers on the CPU")
    for role in ROLES:
        count, settings = models[role]["denormals"], entry["settings"][role]
        if count and "flushed" not in str(settings.get("denormals")):
            found.append(f"{count} weights of {role} are denormal numbers, and nothing flushes them to zero")
    return found
