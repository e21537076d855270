"""How long networks take: for trainings that are steered to a latency, or whose penalty weighs channels by theirs."""

from __future__ import annotations

import math
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.engine_from_onnx import engine_from_onnx
from export.onnx_from_torch import onnx_from_torch
from pipeline.surgery.analysis import Analysis
from pipeline.surgery.costs import Costs
from pipeline.surgery.ledger import Floats
from pipeline.surgery.rebuild import rebuild
from pipeline.surgery.select import Choice, choose
from pipeline.training.state import TrainState
from runtime.backend import Session, open_session
from runtime.latency import Comparison, compare

OPSET = 18
TIME_LIMIT_S = 4.0
ENGINE_LIMIT_S = 600.0


@dataclass(frozen=True)
class Stopwatch:
    """Times networks as ONNX graphs or engines; `shape` (C, H, W). Values are never looked at."""

    shape: tuple[int, int, int]
    batch: int = 32
    backend: str = "onnxruntime"
    threads: int = 2

    def ms(self, *networks: nn.Module) -> list[float]:
        """p50 of each in milliseconds a launch, taken in turn. Raises UserError where one cannot be exported."""
        return [row.p50_ms for row in self.compared(*networks).models]

    def compared(self, *networks: nn.Module) -> Comparison:
        """All in turn, each against the first. Raises UserError where one cannot be exported."""
        feed = np.random.default_rng(0).standard_normal((self.batch, *self.shape), dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            sessions = []
            for i, network in enumerate(networks):
                session = self._session(network, Path(folder) / f"{i}.onnx")
                sessions.append(stack.enter_context(closing(session)))
            feeds = [{session.inputs[0].name: feed} for session in sessions]
            return compare(sessions, feeds, min_blocks=10, time_limit_s=TIME_LIMIT_S * max(1, len(networks) / 2))

    def slopes(self, state: TrainState, costs: Costs) -> dict[str, float]:
        """Name of each group -> ms that one of its channels takes: half of them cut out, timed beside the whole."""
        analysis = Analysis(state.anatomy.traced).run()
        found: dict[str, float] = {}
        for group in costs.groups:
            half = group.classes[: len(group.classes) // 2]
            if not len(half):
                found[group.name] = 0.0
                continue

            def gone(choice: Choice, half: Any = half) -> None:
                choice.keep[:] = True
                choice.keep[half] = False

            choice, cut = choose(analysis, 1, gone)
            removed = int((~choice.keep[group.classes]).sum())
            whole, less = self.ms(state.network, rebuild(analysis, cut))
            found[group.name] = max(0.0, whole - less) / max(1, removed)
        return found

    def _session(self, network: nn.Module, path: Path) -> Session:
        was_training = network.training
        device = next(network.parameters()).device
        try:
            example = torch.zeros(2, *self.shape)
            onnx_from_torch(network.eval().cpu(), example, path, opset=OPSET, max_abs_diff=math.inf, metadata={})
        finally:
            network.train(was_training).to(device)
        if self.backend == "onnxruntime":
            return open_session(path, device="auto", threads=self.threads)
        return open_session(self._engine(path))

    def _engine(self, path: Path) -> Path:
        """An engine for this machine's GPU, in fp32."""
        made = path.with_suffix(".engine")
        engine_from_onnx(
            path, made, flavour=self.backend, precision="fp32", target="CURRENT", profile=(1, self.batch, self.batch),
            workspace_mib=1024, tf32=True, time_limit_s=ENGINE_LIMIT_S, plan_sha256=None,
        )  # fmt: skip
        return made


def spread(slopes: dict[str, float], costs: Costs) -> Floats:
    """Per class what its group's channels take; a group that took no measurable time the least that was measured."""
    some = [value for value in slopes.values() if value > 0]
    least = min(some, default=1.0)
    made = np.full(costs.count, least)
    for group in costs.groups:
        made[group.classes] = max(slopes.get(group.name, least), least)
    return made
