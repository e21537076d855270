"""How long networks take: for trainings that are steered to a latency, or whose penalty weighs channels by theirs."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from export.engines import engine_from_onnx
from export.engines.options import EngineOptions, Profile
from export.onnx.from_torch import onnx_from_torch
from pipeline.surgery.channels.costs import Costs
from pipeline.surgery.channels.ledger import Flags, Floats
from pipeline.surgery.cut.choose import Choice, choose
from pipeline.surgery.cut.rebuild import rebuild
from pipeline.surgery.rules.walk import analyse
from pipeline.training.state import TrainState
from runtime.backends import OPEN_ONNX, Array, Session, open_session
from runtime.measure.latency import Comparison, compare, compare_openings

OPSET = 18
TIME_LIMIT_S, COMPARED_LIMIT_S = 4.0, 20.0
ENGINE_LIMIT_S = 600.0


@dataclass(frozen=True)
class Stopwatch:
    """Times networks as ONNX graphs or engines; `shape` (C, H, W). Values are never looked at."""

    shape: tuple[int, int, int]
    batch: int = 32
    backend: str = "onnxruntime"
    threads: int = 2

    def ms(self, *networks: nn.Module) -> list[float]:
        """p50 of each in milliseconds a launch, taken in turn, in one sitting. Raises UserError where one cannot be
        exported."""
        return [row.p50_ms for row in self._sitting(networks).models]

    def saved(self, whole: nn.Module, less: nn.Module) -> tuple[float, float, float]:
        """What `less` saves of the time of `whole`, as a share of it: the 95 % interval's low end, by the p50s, the
        interval's high end."""
        (speedup,) = self._sitting((whole, less)).speedups
        low, middle, high = (1 - 1 / ratio for ratio in (speedup.ci95[0], speedup.ratio, speedup.ci95[1]))
        return low, middle, high

    def compared(self, first: nn.Module, other: nn.Module) -> Comparison:
        """With an interval that holds for the next sitting too. Raises UserError where one cannot be exported."""
        with tempfile.TemporaryDirectory() as folder:
            openers = self._openers((first, other), Path(folder))
            with closing(openers[0]()) as session:
                feeds = self._feeds([session, session])
            return compare_openings(openers, feeds, time_limit_s=COMPARED_LIMIT_S)

    def slopes(self, state: TrainState, costs: Costs) -> dict[str, float]:
        """Name of each group -> share of the network's time that one of its channels takes: half of them cut out, timed
        beside the whole. What cannot be told from nothing is taken as its share of the MACs, as far as the interval
        goes: the noise of one sitting makes no channel free."""
        every, slopes = np.ones(costs.count, bool), {}
        for group in costs.groups:
            half = ~every
            half[group.classes[: len(group.classes) // 2]] = True
            if not half.any():
                slopes[group.name] = 0.0
                continue
            low, middle, high = self.saved(state.network, without(state, half))
            if low <= 0:
                middle = min(1 - costs.macs(~half) / costs.macs(every), high)
            slopes[group.name] = max(0.0, middle) / int(half.sum())
        return slopes

    def _sitting(self, networks: Sequence[nn.Module]) -> Comparison:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            openers = self._openers(networks, Path(folder))
            sessions = [stack.enter_context(closing(opener())) for opener in openers]
            limit_s = TIME_LIMIT_S * max(1, len(networks) / 2)
            return compare(sessions, self._feeds(sessions), min_blocks=10, time_limit_s=limit_s)

    def _feeds(self, sessions: Sequence[Session]) -> list[dict[str, Array]]:
        feed = np.random.default_rng(0).standard_normal((self.batch, *self.shape), dtype=np.float32)
        return [{session.inputs[0].name: feed} for session in sessions]

    def _openers(self, networks: Sequence[nn.Module], folder: Path) -> list[Callable[[], Session]]:
        return [self._opener(network, folder / f"{number}.onnx") for number, network in enumerate(networks)]

    def _opener(self, network: nn.Module, path: Path) -> Callable[[], Session]:
        example = torch.zeros(2, *self.shape)
        apart = copy.deepcopy(network).eval().cpu()  # in its place, a buffer would no longer be that of its twins
        onnx_from_torch(apart, example, path, opset=OPSET, max_abs_diff=math.inf, metadata={})
        if self.backend in OPEN_ONNX:
            return partial(open_session, path, self.backend, device="auto", threads=self.threads)
        return partial(open_session, self._engine(path))

    def _engine(self, path: Path) -> Path:
        """An engine for this machine's GPU, in fp32."""
        sizes = Profile(min=1, opt=self.batch, max=self.batch)
        options = EngineOptions(profile=sizes, tf32=True, timing_cache=None, time_limit_s=ENGINE_LIMIT_S)
        return engine_from_onnx(path, path.with_suffix(".engine"), flavour=self.backend, options=options).path


def without(state: TrainState, gone: Flags, align: int = 1) -> nn.Module:
    """The network less the classes `gone` (count,), whatever they hold: to be timed, not to be used. A channel stays
    where its layout or `align` asks for it."""
    analysis = analyse(state.anatomy.traced)

    def keep_rest(choice: Choice) -> None:
        choice.keep[:] = ~gone
        for group in choice.groups:
            dead = group.classes[gone[group.classes]]
            live = len(group.classes) - len(dead)
            choice.keep[dead[: max(1, -(-live // align) * align) - live]] = True

    _, cut = choose(analysis, 1, keep_rest)
    return rebuild(analysis, cut)


def spread(slopes: dict[str, float], costs: Costs) -> Floats:
    """Per class what its group's channels take; where that is nothing, the least that another's take."""
    some = [value for value in slopes.values() if value > 0]
    least = min(some, default=1.0)
    shares = np.full(costs.count, least)
    for group in costs.groups:
        shares[group.classes] = max(slopes.get(group.name, least), least)
    return shares
