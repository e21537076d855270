"""What holds a compact network back, in sentences that begin with the figure, and what to try next.

A finding names what slows the network, the remedy, and the share of compact's run that it touches, in percent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pipeline.check.results import Finding, LayerTime
from runtime.profile.layers import Profile

VECTOR = 8  # channels: fp16 tensor cores (TensorRT#3876), and the narrowest block of ONNX Runtime's layout with AVX
_NAMED = 3  # layers that a sentence names


def findings(
    layers: Sequence[LayerTime],
    dense: Profile,
    compact: Profile,
    shares: Mapping[str, float],
    batch: int,
    doubts: Sequence[str],
) -> list[Finding]:
    """Largest share first; `doubts` about the measurement last. `shares` are microseconds by what binds them."""
    run_us = max(compact.run_us, sum(kernel.us for kernel in compact.kernels))

    def rules() -> Iterator[Finding]:
        yield from _around(shares, batch, run_us)
        yield from _reformats(compact, dense, run_us)
        yield from _additions(compact, dense, run_us)
        yield from _others(compact, shares, run_us)
        yield from _widths(layers, run_us)
        yield from _behind(layers, run_us)
        yield from _uncut(layers, run_us)

    ranked = sorted(rules(), key=lambda finding: -finding.pct)
    return ranked + [Finding(doubt, "measure again without it", 0.0) for doubt in doubts]


def _around(shares: Mapping[str, float], batch: int, run_us: float) -> Iterator[Finding]:
    """Time that is not spent on arithmetic or memory."""
    pct = 100 * (shares["launch"] + shares["between"]) / run_us
    if pct >= 20:
        yield Finding(
            f"{pct:.0f} % of a run is what starting layers costs ({shares['launch']:.0f} us in layers too small to "
            f"count, {shares['between']:.0f} us between them), and that does not shrink with the channels",
            f"larger batches than {batch}, fewer threads, or on a GPU a CUDA graph",
            pct,
        )


def _reformats(compact: Profile, dense: Profile, run_us: float) -> Iterator[Finding]:
    mine = [kernel for kernel in compact.kernels if kernel.reformats]
    pct = 100 * sum(kernel.us for kernel in mine) / run_us
    if pct >= 5:
        counted = ", ".join(f"{count} {name}" for name, count in Counter(k.operator for k in mine).items())
        before = sum(kernel.reformats for kernel in dense.kernels)
        yield Finding(
            f"{pct:.0f} % of a run only changes layouts or types ({counted}; dense has {before})",
            f"one precision through the whole graph, and channels in multiples of {VECTOR} (surgery.align) so that the "
            "runtime keeps its blocked layout",
            pct,
        )


def _additions(compact: Profile, dense: Profile, run_us: float) -> Iterator[Finding]:
    """Operators without weights that only compact has; what changes layouts and types is counted above."""
    mine, theirs = ([k for k in p.kernels if k.layer is None and not k.reformats] for p in (compact, dense))
    extra = Counter(k.operator for k in mine) - Counter(k.operator for k in theirs)
    mean = {
        name: sum(k.us for k in mine if k.operator == name) / sum(k.operator == name for k in mine) for name in extra
    }
    pct = 100 * sum(mean[name] * count for name, count in extra.items()) / run_us
    if pct >= 3:
        counted = ", ".join(f"{count} {name}" for name, count in extra.items())
        yield Finding(
            f"{pct:.0f} % of a run is in operators that dense does not have ({counted})",
            "simplify.enabled: true; surgery.residual: tied, where streams were cut apart",
            pct,
        )


def _others(compact: Profile, shares: Mapping[str, float], run_us: float) -> Iterator[Finding]:
    """Operators without weights."""
    mine = [k for k in compact.kernels if k.layer is None and not k.reformats]
    us = sum(kernel.us for kernel in mine)
    pct = 100 * us / run_us
    if pct >= 25:
        largest = sorted(mine, key=lambda kernel: -kernel.us)[:_NAMED]
        named = ", ".join(f"{kernel.operator} {kernel.us:.0f} us" for kernel in largest)
        yield Finding(
            f"{pct:.0f} % of a run is in operators without weights ({named}), which MACs do not count",
            "cut the channels that they run over; let the runtime fuse them (simplify.enabled: true)",
            pct,
        )


def _widths(layers: Sequence[LayerTime], run_us: float) -> Iterator[Finding]:
    """Layers whose channels fill no whole vector, or that the kernel pads, and that are slow for their work."""
    odd = [
        layer
        for layer in layers
        if layer.channels_after
        and (layer.channels_after % VECTOR or (layer.width or 0) > layer.channels_after)
        and layer.excess_us > 0.1 * layer.compact_us
    ]
    pct = 100 * sum(layer.excess_us for layer in odd) / run_us
    if pct >= 5:
        named = ", ".join(
            f"{layer.layer} {layer.channels_after}"
            + (f" (runs as {layer.width})" if layer.width and layer.width > (layer.channels_after or 0) else "")
            for layer in sorted(odd, key=lambda layer: -layer.excess_us)[:_NAMED]
        )
        yield Finding(
            f"{pct:.0f} % of a run goes into widths that are no multiple of {VECTOR}: {named}",
            f"surgery.align: {VECTOR} or {2 * VECTOR}, or auto, which times them on this device",
            pct,
        )


def _behind(layers: Sequence[LayerTime], run_us: float) -> Iterator[Finding]:
    """Layers whose time fell by less than half of what their work fell by."""
    slow = [
        layer for layer in layers if layer.compact_macs < layer.dense_macs and layer.excess_us > 0.5 * layer.compact_us
    ]
    pct = 100 * sum(layer.excess_us for layer in slow) / run_us
    if pct < 5:
        return
    worst = sorted(slow, key=lambda layer: -layer.excess_us)[:_NAMED]
    named = "; ".join(
        f"{layer.layer}: MACs {layer.dense_macs / max(layer.compact_macs, 1):.1f}x less, time "
        f"{layer.dense_us / max(layer.compact_us, 1e-3):.1f}x, bound by {layer.bound}"
        for layer in worst
    )
    remedies = {
        "compute": "surgery.align: auto, which finds the widths that this device runs well",
        "memory": "fp16 (precision.graphs), which halves the bytes moved; cutting the layer before it too",
        "launch": "a larger batch",
    }
    yield Finding(f"{pct:.0f} % of a run is in layers that got smaller but not as fast: {named}",
                  remedies[worst[0].bound], pct)  # fmt: skip


def _uncut(layers: Sequence[LayerTime], run_us: float) -> Iterator[Finding]:
    uncut = [layer for layer in layers if layer.compact_macs == layer.dense_macs]
    pct = 100 * sum(layer.compact_us for layer in uncut) / run_us
    if pct >= 20 and len(uncut) < len(layers):
        named = ", ".join(layer.layer for layer in sorted(uncut, key=lambda layer: -layer.compact_us)[:_NAMED])
        yield Finding(
            f"{pct:.0f} % of a run is in {len(uncut)} layers that lost no work ({named})",
            "more pressure there (sparse.lambda_peak), or see under Channels why they were frozen",
            pct,
        )
