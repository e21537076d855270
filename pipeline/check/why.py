"""Why the compact network is not as fast as it is small: each layer's time beside its work and the device's roofline.

Times are of one run with the profiler on, which adds some microseconds a kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.check.advice import findings
from pipeline.check.forms import Bench, Pair
from pipeline.check.results import Finding, Latencies, LatencyEntry, LayerTime, Models, RunTime, Times, Why
from pipeline.results import ROLES, Role
from runtime.backends import Array
from runtime.measure.conditions import complaints
from runtime.profile.layers import Kernel, Profile, engine_profile, ort_profile, weighted_layers
from runtime.profile.roofline import Roofline, bound, cpu_roofline, gpu_roofline

WORTHWHILE = 0.7
"""Share of the MACs ratio that a speedup should reach; below it the report explains."""


@dataclass(frozen=True)
class Measured:
    """Both profiles at one batch, and the speedup that was measured without a profiler."""

    where: str
    batch: int
    threads: int | None
    dense: Profile
    compact: Profile
    roofline: Roofline
    speedup: float
    macs_ratio: float


def explanations(
    bench: Bench, pairs: Mapping[tuple[str, str], Pair], latency: Latencies, models: Models
) -> tuple[Why, ...]:
    """fp32 through ONNX Runtime on the CPU, then each engine that was timed; at the gated batch."""
    return tuple(
        explain(measured, _doubts(backend, latency[backend][precision][f"b{bench.gate_batch}"], models))
        for (backend, precision), measured in _measured(bench, pairs, latency, models)
    )


def explain(measured: Measured, doubts: Sequence[str]) -> Why:
    """`doubts` are what else may have slowed the measurement: a busy machine, denormal weights."""
    layers = layer_times(measured)
    shares = bound_shares(measured.compact, measured.roofline)
    run_us = max(measured.compact.run_us, sum(kernel.us for kernel in measured.compact.kernels))
    advice = findings(layers, measured.dense, measured.compact, shares, measured.batch, doubts)
    return Why(
        where=measured.where,
        batch=measured.batch,
        threads=measured.threads,
        speedup=measured.speedup,
        macs_ratio=measured.macs_ratio,
        share=measured.speedup / measured.macs_ratio,
        roofline=asdict(measured.roofline),
        layers=tuple(layers),
        time=Times(parts(measured.dense), parts(measured.compact)),
        bound_pct={name: round(100 * us / run_us, 1) for name, us in shares.items()},
        verdict=max(shares, key=lambda name: shares[name]),
        findings=tuple(advice) or (_nothing(measured),),
    )


def layer_times(measured: Measured) -> list[LayerTime]:
    """Layers that both profiles know, in the order that dense runs them."""
    dense, compact = (_by_layer(profile) for profile in (measured.dense, measured.compact))
    rows = []
    for name, before in dense.items():
        if name not in compact:
            continue
        after = compact[name]
        macs, us = sum(kernel.macs for kernel in after), sum(kernel.us for kernel in after)
        floors = [measured.roofline.floor_us(kernel.macs, kernel.moved) for kernel in after]
        rows.append(
            LayerTime(
                name, before[0].channels, after[0].channels, after[0].width, sum(k.us for k in before), us,
                sum(k.macs for k in before), macs, bound(floors[0]), sum(max(floor.values()) for floor in floors),
            )
        )  # fmt: skip
    return rows


def bound_shares(profile: Profile, roofline: Roofline) -> dict[str, float]:
    """Microseconds of a run by what binds them: compute, memory, launch, reformat, between (no kernel at all)."""
    shares = dict.fromkeys(("compute", "memory", "launch", "reformat", "between"), 0.0)
    for kernel in profile.kernels:
        name = "reformat" if kernel.reformats else bound(roofline.floor_us(kernel.macs, kernel.moved))
        shares[name] += kernel.us
    return {**shares, "between": profile.between_us}


def parts(profile: Profile) -> RunTime:
    layers = sum(kernel.us for kernel in profile.kernels if kernel.layer)
    reformat = sum(kernel.us for kernel in profile.kernels if kernel.reformats)
    return RunTime(
        run_us=profile.run_us,
        layers_us=layers,
        reformat_us=reformat,
        other_us=sum(kernel.us for kernel in profile.kernels) - layers - reformat,
        between_us=profile.between_us,
        kernels=dict(Counter(kernel.operator for kernel in profile.kernels)),
    )


def _by_layer(profile: Profile) -> Mapping[str, list[Kernel]]:
    kernels: dict[str, list[Kernel]] = {}
    for kernel in profile.kernels:
        if kernel.layer:
            kernels.setdefault(kernel.layer, []).append(kernel)
    return kernels


def _nothing(measured: Measured) -> Finding:
    share = 100 * measured.speedup / measured.macs_ratio
    return Finding(
        f"no single cause: the time fell by {share:.0f} % of what the MACs fell by, spread over all layers",
        "look at the layers below whose time fell least",
        0.0,
    )


def _measured(
    bench: Bench, pairs: Mapping[tuple[str, str], Pair], latency: Latencies, models: Models
) -> Iterator[tuple[tuple[str, str], Measured]]:
    ratio = models.dense.macs / max(models.compact.macs, 1)
    batch, images = bench.gate_batch, bench.images(bench.gate_batch)
    graphs = bench.graphs["simplified"]
    profiles = {role: _on_cpu(graphs[role], images, bench.threads) for role in ROLES}
    for (backend, precision), pair in pairs.items():
        speedup = latency[backend][precision][f"b{batch}"].speedup
        if speedup is None or ((backend, precision) != ("onnxruntime", "fp32") and pair["dense"].engine is None):
            continue
        if pair["dense"].engine is None:
            profile, where, on_cpu = profiles, f"ONNX Runtime {precision} on the CPU", True
        else:
            profile = {role: _of_engine(bench, role, pair, images, profiles[role], precision) for role in ROLES}
            where, on_cpu = f"{backend} {precision}", backend == "openvino"
        roofline = cpu_roofline(bench.threads) if on_cpu else gpu_roofline(precision)
        yield (
            (backend, precision),
            Measured(
                where,
                batch,
                bench.threads if on_cpu else None,
                profile["dense"],
                profile["compact"],
                roofline.at_least((k.macs, k.us) for one in profile.values() for k in one.kernels),
                speedup.ratio,
                ratio,
            ),
        )


def _on_cpu(path: Path, images: Array, threads: int) -> Profile:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {weight.name for weight in graph.initializer}
    name = next(value.name for value in graph.input if value.name not in constants)
    return ort_profile(path, {name: images}, threads=threads)


def _of_engine(bench: Bench, role: Role, pair: Pair, images: Array, on_cpu: Profile, precision: str) -> Profile:
    """Engines report times only; the work of each layer is that which ONNX Runtime reports of the same graph, and its
    bytes are those of the engine's precision."""
    with bench.session(role, pair[role]) as session:
        session.bind({session.inputs[0].name: images})
        profile = engine_profile(session, weighted_layers(bench.graphs["simplified"][role]))
    work = {kernel.layer: kernel for kernel in on_cpu.kernels if kernel.layer}
    share = 2 if precision in ("fp16", "bf16") else 1
    kernels = tuple(
        replace(kernel, macs=own.macs, moved=own.moved // share)
        if kernel.layer and (own := work.get(kernel.layer))
        else kernel
        for kernel in profile.kernels
    )
    return replace(profile, kernels=kernels)


def _doubts(backend: str, entry: LatencyEntry, models: Models) -> list[str]:
    """What beside the networks may have slowed the measurement, or parts it from the layers' times."""
    assert entry.protocol is not None and entry.settings is not None
    doubts = complaints(entry.protocol["conditions"])
    if backend == "onnxruntime" and (device := entry.settings["dense"]["device"]) != "cpu":
        doubts.append(f"the speedup was measured on {device}, the layers on the CPU")
    for role in ROLES:
        count, settings = getattr(models, role).denormals, entry.settings[role]
        if count and "flushed" not in str(settings.get("denormals")):
            doubts.append(f"{count} weights of {role} are denormal numbers, and nothing flushes them to zero")
    return doubts
