"""What the tool says of networks whose times are written down: each cause alone is named, with its figure."""

from __future__ import annotations

import pytest

from pipeline.check.results import RunTime, Why
from pipeline.check.why import Measured, bound_shares, explain
from runtime.profile.layers import Kernel, Profile
from runtime.profile.roofline import Roofline

# 100 GFLOP/s are 50,000 multiply-accumulates a microsecond; 10 GB/s are 10,000 bytes a microsecond.
DEVICE = Roofline("onnxruntime", "cpu", 1, 100.0, ((1 << 30, 10.0),), 1.0, 3.0)


def layer(name: str, us: float, macs: int, channels: int = 32, width: int | None = None) -> Kernel:
    return Kernel(name, "Conv", name, us, macs, 1000, channels, width or channels)


def other(operator: str, us: float, moved: int = 1000) -> Kernel:
    return Kernel(operator, operator, None, us, 0, moved, None, None)


DENSE = Profile((layer("a", 100.0, 5_000_000), layer("b", 100.0, 5_000_000)), 205.0)


def explained(*kernels: Kernel, between: float = 5.0, speedup: float = 2.0, doubts: tuple[str, ...] = ()) -> Why:
    compact = Profile(kernels, sum(kernel.us for kernel in kernels) + between)
    measured = Measured("ONNX Runtime", 32, 1, DENSE, compact, DEVICE, speedup, 4.0)
    return explain(measured, doubts)


def causes(document: Why) -> list[str]:
    return [f"{finding.what} | {finding.remedy}" for finding in document.findings]


def test_layers_side_by_side() -> None:
    document = explained(layer("a", 25.0, 1_250_000, 16), layer("b", 100.0, 5_000_000))
    first = document.layers[0]
    assert (first.channels_before, first.channels_after, first.bound) == (32, 16, "compute")
    assert (first.dense_us, first.compact_us, first.floor_us) == (100.0, 25.0, 25.0)
    assert document.share == 0.5 and document.verdict == "compute"
    assert document.time.compact == RunTime(130.0, 125.0, 0, 0.0, 5.0, {"Conv": 2})
    assert causes(document)[0].startswith("77 % of a run is in 1 layers that lost no work (b)")
    assert "sparse.lambda_peak" in causes(document)[0]


def test_time_by_what_binds_it() -> None:
    kernels = (layer("a", 30.0, 1_000_000), other("Relu", 6.0, moved=50_000), other("Reshape", 2.0), other("Cast", 4.0))
    shares = bound_shares(Profile(kernels, 50.0), DEVICE)
    assert shares == {"compute": 30.0, "memory": 6.0, "launch": 2.0, "reformat": 4.0, "between": 8.0}
    assert sum(shares.values()) == 50.0


@pytest.mark.parametrize(
    ("kernels", "between", "what", "remedy"),
    [
        ([layer("a", 10.0, 500_000), layer("b", 10.0, 500_000)], 30.0, "60 % of a run is what starting layers costs",
         "larger batches than 32"),
        ([layer("a", 10.0, 500_000), layer("b", 10.0, 500_000), other("Cast", 40.0), other("Cast", 40.0)], 0.0,
         "80 % of a run only changes layouts or types (2 Cast; dense has 0)", "one precision"),
        ([layer("a", 10.0, 500_000), layer("b", 10.0, 500_000), other("Gather", 20.0, 100_000)], 0.0,
         "50 % of a run is in operators that dense does not have (1 Gather)", "surgery.residual: tied"),
        ([layer("a", 10.0, 500_000), layer("b", 10.0, 500_000), other("MaxPool", 20.0, 100_000)], 0.0,
         "50 % of a run is in operators without weights (MaxPool 20 us)", "fuse them"),
        ([layer("a", 40.0, 500_000, 13, 16), layer("b", 10.0, 500_000)], 0.0,
         "60 % of a run goes into widths that are no multiple of 8: a 13 (runs as 16)", "surgery.align: 8 or 16"),
        ([layer("a", 80.0, 1_250_000), layer("b", 25.0, 1_250_000)], 0.0,
         "52 % of a run is in layers that got smaller but not as fast: a: MACs 4.0x less, time 1.2x, bound by compute",
         "surgery.align: auto"),
    ],
    ids=["starting", "reformats", "additions", "others", "widths", "behind"],
)  # fmt: skip
def test_each_cause_is_named_with_its_figure(kernels: list[Kernel], between: float, what: str, remedy: str) -> None:
    said = causes(explained(*kernels, between=between))
    assert any(what in one and remedy in one for one in said), said
    assert "no single cause" not in " ".join(said)


def test_nothing_found_says_so_and_doubts_come_last() -> None:
    even = (layer("a", 25.0, 1_250_000), layer("b", 25.0, 1_250_000))
    document = explained(*even, speedup=2.6)
    assert causes(document)[0].startswith("no single cause: the time fell by 65 %")
    busy = explained(*even, doubts=("other processes took 40 % of the cores",))
    assert causes(busy) == ["other processes took 40 % of the cores | measure again without it"]


def test_findings_are_sorted_by_the_time_they_touch() -> None:
    document = explained(layer("a", 80.0, 1_250_000), layer("b", 25.0, 1_250_000), other("Cast", 20.0))
    shares = [finding.pct for finding in document.findings]
    assert shares == sorted(shares, reverse=True) and len(shares) >= 2
    assert all(0 <= pct <= 100 for pct in shares)
