"""Opens the dense and the compact network in every form they were exported to, and measures their accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pipeline import config
from pipeline.data import Split
from pipeline.exporting import ROLES, EngineResult, Role
from pipeline.progress import Progress
from runtime.accuracy import Accuracy, accuracy
from runtime.backend import Array, DeviceName, Session, open_session
from runtime.errors import UserError
from runtime.torch_backend import TorchSession, image_inputs

BATCH = 256
TORCH_HOPS = ("masked", "torch")
MAY_NOT_RUN = ("bf16",)
"""ONNX Runtime has no bfloat16 convolution on the CPU: such a graph is null with that reason."""

Graphs = Mapping[str, Mapping[Role, Path]]
Pair = Mapping[Role, "Hop"]
Results = dict[str, Accuracy | str]
"""By hop: what was measured, or why it was not."""
Latencies = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""backend -> precision -> b<batch> -> entry."""


@dataclass(frozen=True)
class Hop:
    """A way to run a network, named by its key in `accuracy`; `source` is the hop before it."""

    name: str
    source: str | None
    engine: EngineResult | None = None


class Bench:
    """Opens each network in each form, and measures it on the test split."""

    def __init__(
        self,
        section: config.Check,
        networks: Mapping[str, nn.Module],
        graphs: Graphs,
        test: Split,
        device: DeviceName,
    ) -> None:
        """`networks` by role, and "masked": the trained network before the cut."""
        self.section, self._networks, self.graphs, self._test, self.device = section, networks, graphs, test, device
        self.gate_batch, self.threads = section.gate_batch, section.threads
        images, _ = next(iter(test.batches(max(section.batch_sizes))))
        self._images: Array = np.asarray(images)
        self.input_shape: tuple[int, ...] = self._images.shape[1:]
        self.gpu: str | None = None  # that engines ran on

    def accuracies(self, hops: Mapping[Role, Sequence[Hop]], progress: Progress) -> dict[Role, Results]:
        """On the whole test split, at every hop."""
        results: dict[Role, Results] = {role: {} for role in ROLES}
        every = [(role, hop) for role in ROLES for hop in hops[role]]
        progress.start("check: accuracy", len(every))
        try:
            for step, (role, hop) in enumerate(every):
                progress.update(step, f"accuracy of {role}, {hop.name}")
                results[role][hop.name] = self.accuracy(role, hop)
            progress.update(len(every))
        finally:
            progress.stop()
        return results

    def session(self, role: Role, hop: Hop) -> closing[Session]:
        """Closed at the end. UserError where it does not open."""
        return closing(self.open(role, hop))

    def open(self, role: Role, hop: Hop) -> Session:
        """A session of its own at every call, of which torch's is to be closed before those opened earlier. UserError
        where it does not open."""
        if hop.name in TORCH_HOPS:
            network = self._networks[role if hop.name == "torch" else hop.name]
            inputs = image_inputs(self.input_shape)
            return TorchSession(network, inputs, name=role, device=self.device, threads=self.threads)
        if hop.engine is None:
            device: DeviceName = "cpu" if self.device == "cpu" else "auto"
            return open_session(self.graphs[hop.name][role], "onnxruntime", device, self.threads)
        session = _open_engine(hop.engine)
        self.gpu = str(session.settings["gpu"])
        return session

    def accuracy(self, role: Role, hop: Hop) -> Accuracy | str:
        """On the whole test split; for an engine that does not run here, the reason."""
        try:
            with self.session(role, hop) as session:
                return accuracy(session, self._test.batches(BATCH))
        except UserError as error:
            if not may_not_run(hop):
                raise
            return error.found

    def images(self, batch: int) -> Array:
        """So many of the test split, repeated where it has too few."""
        return np.resize(self._images, (batch, *self.input_shape))


def _open_engine(result: EngineResult) -> Session:
    if result.engine is None:
        raise UserError(result.reason or "not built", "an engine", "install TensorRT")
    # a version-compatible engine brings code of its own, which this very run built
    return open_session(result.engine.path, result.engine.flavour, allow_host_code=True)


def engine_name(result: EngineResult) -> str:
    """The engine's key among the hops, e.g. `tensorrt_rtx.fp16.SM86`."""
    flavour = result.engine.flavour if result.engine else "engine"
    return f"{flavour}.{result.precision}.{result.target}"


def hops_of(graphs: Graphs, engines: Sequence[EngineResult], *, masked: bool = False) -> dict[Role, list[Hop]]:
    """torch -> onnx -> simplified -> each lower precision; each engine comes from the graph of its precision.

    With `masked` compact's line begins with the network before the cut.
    """
    lower = [name for name in graphs if name not in ("onnx", "simplified")]
    line = [Hop("torch", None), Hop("onnx", "torch"), Hop("simplified", "onnx")]
    line += [Hop(name, "simplified") for name in lower]
    lines: dict[Role, list[Hop]] = {
        role: line
        + [
            Hop(engine_name(result), result.precision if result.precision in lower else "simplified", result)
            for result in engines
            if result.model == role
        ]
        for role in ROLES
    }
    if masked:
        lines["compact"] = [Hop("masked", None), Hop("torch", "masked"), *lines["compact"][1:]]
    return lines


def pairs_of(
    graphs: Graphs, engines: Sequence[EngineResult], results: Mapping[Role, Results]
) -> dict[tuple[str, str], Pair]:
    """(backend, precision) -> what is timed against each other. Of engines for several targets, those that ran here by
    `results`, else those of the first target that were built for both networks."""
    pairs: dict[tuple[str, str], Pair] = {}
    for name in graphs:
        if name != "onnx":
            precision = "fp32" if name == "simplified" else name
            pairs["onnxruntime", precision] = {role: Hop(name, None) for role in ROLES}
    pairs["torch", "fp32"] = {role: Hop("torch", None) for role in ROLES}

    def ran(name: str) -> bool:
        return all(isinstance(results[role].get(name), Accuracy) for role in ROLES)

    for result in sorted(engines, key=lambda one: not ran(engine_name(one))):  # those that ran first
        name = engine_name(result)
        twin = next((r for r in engines if r.model == "compact" and engine_name(r) == name), None)
        if result.model == "dense" and result.engine and twin and twin.engine:
            hops: Pair = {"dense": Hop(name, None, result), "compact": Hop(name, None, twin)}
            pairs.setdefault((result.engine.flavour, result.precision), hops)
    return pairs


def may_not_run(hop: Hop) -> bool:
    """Whether it is told as null with the reason where the form does not run here; any other is an error."""
    return hop.engine is not None or hop.name in MAY_NOT_RUN
