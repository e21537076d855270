"""What this device can do at best: the peak of its arithmetic, the bandwidth of its memory, and what one operation
costs for being there at all.

A layer of f floating-point operations that moves b bytes takes at least max(f / peak, b / bandwidth) plus the cost of
an operation; which of the three is largest is what binds it. Williams, Waterman and Patterson, "Roofline", CACM 52
(2009). Measured with the library that runs the network: on the CPU ONNX Runtime with its threads, on a GPU torch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtime.backends import open_session

Bound = Literal["compute", "memory", "launch"]
_SIZES = (1 << 18, 1 << 21, 1 << 24, 1 << 27)  # bytes in and out; in the caches of a core, of a chip, and in memory
_SIDE = {"cpu": 768, "cuda": 4096}  # of the square matrices multiplied
_CHAIN = 64
_SHORTEST_S = 0.08  # one figure is the best of runs that last at least this long together, and of 5 at least


@dataclass(frozen=True)
class Roofline:
    """`bandwidth`: (bytes read and written by an operation, GB/s), smallest first; small ones stay in caches. `op_us`
    is what one more operation costs, `run_us` what a run costs beside its operations."""

    backend: str
    device: str
    threads: int | None
    peak_gflops: float
    bandwidth: tuple[tuple[int, float], ...]
    op_us: float
    run_us: float

    def floor_us(self, macs: int, moved: int) -> dict[Bound, float]:
        """Least microseconds of an operation of that many multiply-accumulates and bytes, by what binds it."""
        speed = next((gb for size, gb in self.bandwidth if moved <= size), self.bandwidth[-1][1])
        return {"compute": 2 * macs / self.peak_gflops / 1e3, "memory": moved / speed / 1e3, "launch": self.op_us}

    def at_least(self, kernels: Iterable[tuple[int, float]]) -> Roofline:
        """With the peak raised to what any of the kernels, (multiply-accumulates, microseconds), was seen to reach.

        On a busy machine the probe may have been slower than the network.
        """
        reached = max((2 * macs / us / 1e3 for macs, us in kernels if us > 0), default=0.0)
        return replace(self, peak_gflops=max(self.peak_gflops, reached))


def bound(floors: dict[Bound, float]) -> Bound:
    """The largest of `floor_us`."""
    return max(floors, key=lambda name: floors[name])


@cache
def cpu_roofline(threads: int) -> Roofline:
    """Of ONNX Runtime on the CPU in float32; takes about a second, once a process."""
    with tempfile.TemporaryDirectory() as folder:

        def seconds(nodes: list[tuple[str, int]], shape: tuple[int, int]) -> float:
            return _run_seconds(Path(folder) / "probe.onnx", nodes, shape, threads)

        side = _SIDE["cpu"]
        peak = 2 * side**3 / seconds([("MatMul", side)], (side, side)) / 1e9
        rates = [(size, size / seconds([("Relu", 0)], (1, size // 8)) / 1e9) for size in _SIZES]
        one, many = (seconds([("Sin", 0)] * count, (1, 8)) for count in (1, 1 + _CHAIN))
    op = max(many - one, 0.0) / _CHAIN
    return Roofline("onnxruntime", "cpu", threads, peak, tuple(rates), 1e6 * op, 1e6 * max(one - op, 0.0))


def _run_seconds(path: Path, nodes: list[tuple[str, int]], shape: tuple[int, int], threads: int) -> float:
    """Of a chain of operators on a float32 tensor: (operator, side of a square constant or 0 for none)."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    probe, constants = [], []
    for number, (operator, side) in enumerate(nodes):
        inputs = [f"x{number}"]
        if side:
            inputs.append(f"w{number}")
            constants.append(numpy_helper.from_array(np.full((side, side), 0.01, np.float32), inputs[1]))
        probe.append(helper.make_node(operator, inputs, [f"x{number + 1}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x0", f"x{len(nodes)}")]
    model = helper.make_model(
        helper.make_graph(probe, "probe", ends[:1], ends[1:], constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    checker.check_model(model)
    save(model, path)
    session = open_session(path, "onnxruntime", "cpu", threads)
    try:
        session.bind({"x0": np.full(shape, 0.5, np.float32)})
        return _best_seconds(session.launch, session.wait)
    finally:
        session.close()


def gpu_roofline(precision: str) -> Roofline:
    """Of torch on the first CUDA device, "fp32" (TF32 off) or "fp16"; takes about a second. Needs a GPU."""
    import torch

    dtype = torch.float16 if precision == "fp16" else torch.float32
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        side = _SIDE["cuda"]
        a = torch.full((side, side), 0.01, dtype=dtype, device="cuda")
        peak = 2 * side**3 / _best_seconds(lambda: a @ a, torch.cuda.synchronize) / 1e9
        rates = []
        for size in _SIZES:
            x = torch.zeros(size // 8, device="cuda")
            rates.append((size, size / _best_seconds(x.clone, torch.cuda.synchronize) / 1e9))
        small = torch.zeros(8, device="cuda")

        def chain(count: int) -> Callable[[], Any]:
            return lambda: [small.sin() for _ in range(count)]

        one, many = (_best_seconds(chain(count), torch.cuda.synchronize) for count in (1, 1 + _CHAIN))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    op = max(many - one, 0.0) / _CHAIN
    return Roofline("torch", "cuda", None, peak, tuple(rates), 1e6 * op, 1e6 * max(one - op, 0.0))


def _best_seconds(launch: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """Of a launch and its wait, after three that are not timed."""
    for _ in range(3):
        launch()
        wait()
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < _SHORTEST_S:
        start = time.perf_counter()
        launch()
        wait()
        taken.append(time.perf_counter() - start)
    return min(taken)
