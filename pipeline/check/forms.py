"""Opens the dense and the compact network in every form they were exported to, and measures the task's metric."""

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
from pipeline.data.dataset import at_once
from pipeline.progress import Progress
from pipeline.results import ROLES, EngineResult, Role
from pipeline.tasks import Task
from runtime.backends import OPTIONS, Array, DeviceName, Session, open_session
from runtime.backends.torch import TorchSession, image_inputs
from runtime.device import cpu_model
from runtime.errors import UserError
from runtime.measure.accuracy import Accuracy, accuracy, outputs_of

BATCH = 256
TORCH_HOPS = ("masked", "torch")
MAY_NOT_RUN = ("bf16",)
"""ONNX Runtime has no bfloat16 convolution on the CPU: such a graph is null with that reason."""

ONNX_RUNTIME = ("onnxruntime", "fp32")

Graphs = Mapping[str, Mapping[Role, Path]]
Pair = Mapping[Role, "Form"]
Results = dict[str, Accuracy | str]
"""By form: what was measured, or why it was not."""


@dataclass(frozen=True)
class Form:
    """A way to run a network, named by its key in `accuracy`; `source` is the form before it."""

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
        task: Task,
        host_code: bool = False,
    ) -> None:
        """`networks` by role, and "masked": the trained network before the cut. `host_code`: engines may run what they
        bring for the processor."""
        self._host_code = host_code
        self.section, self._networks, self.graphs, self._test, self.device = section, networks, graphs, test, device
        self.task, self.judge = task, task.judge(whole=section.metric is not None)
        self.gate_batch, self.threads = section.gate_batch, section.threads
        images, _ = next(iter(test.batches(max(section.batch_sizes))))
        self._images: Array = np.asarray(images)
        self.input_shape: tuple[int, ...] = self._images.shape[1:]
        self.gpu: str | None = None  # that engines ran on
        self.forms: Mapping[Role, Sequence[Form]] = {}

    def accuracies(self, hops: Mapping[Role, Sequence[Form]], progress: Progress) -> dict[Role, Results]:
        """On the whole test split, at every hop."""
        results: dict[Role, Results] = {role: {} for role in ROLES}
        every = [(role, hop) for role in ROLES for hop in hops[role]]
        progress.start(f"check: {self.task.metric}", len(every))
        try:
            for step, (role, hop) in enumerate(every):
                progress.update(step, f"{self.task.metric} of {role}, {hop.name}")
                results[role][hop.name] = self.accuracy(role, hop)
            progress.update(len(every))
        finally:
            progress.stop()
        return results

    def session(self, role: Role, hop: Form) -> closing[Session]:
        """Closed at the end. UserError where it does not open."""
        return closing(self.open(role, hop))

    def open(self, role: Role, hop: Form) -> Session:
        """A session of its own at every call, of which torch's is to be closed before those opened earlier. UserError
        where it does not open."""
        if hop.name in TORCH_HOPS:
            network = self.task.network(self._networks[role if hop.name == "torch" else hop.name])
            inputs, outputs = image_inputs(self.input_shape), self.task.outputs
            return TorchSession(network, inputs, outputs, name=role, device=self.device, threads=self.threads)
        if hop.engine is None:
            device: DeviceName = "cpu" if self.device == "cpu" else "auto"
            return open_session(self.graphs[hop.name][role], "onnxruntime", device, self.threads)
        session = _open_engine(hop.engine, self.threads, self._host_code)
        self.gpu = str(session.settings.get("gpu", cpu_model()))
        return session

    def accuracy(self, role: Role, hop: Form) -> Accuracy | str:
        """On the whole test split; for an engine that does not run here, the reason."""
        try:
            with self.session(role, hop) as session:
                return accuracy(session, self._test.batches(at_once(self._test, BATCH)), self.judge)
        except UserError as error:
            if not may_not_run(hop):
                raise
            return error.found

    def answers(self, role: Role, hop: Form, images: Array) -> Any:
        """The outputs to images (N, C, H, W), as they are judged."""
        with self.session(role, hop) as session:
            pieces: list[Any] = list(outputs_of(session, images, self.judge.outputs))
        if isinstance(pieces[0], dict):
            return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return np.concatenate(pieces)

    def images(self, batch: int) -> Array:
        """So many of the test split, repeated where it has too few."""
        return np.resize(self._images, (batch, *self.input_shape))


def _open_engine(result: EngineResult, threads: int | None, host_code: bool) -> Session:
    if result.engine is None:
        raise UserError(result.reason or "not built", "an engine", "install TensorRT")
    flavour = result.engine.flavour
    options = dict.fromkeys({"allow_host_code"} & OPTIONS.get(flavour, set()), host_code)
    return open_session(result.engine.path, flavour, "auto", threads, **options)


def engine_name(result: EngineResult) -> str:
    """The engine's key among the hops, e.g. `tensorrt_rtx.fp16.SM86`."""
    flavour = result.engine.flavour if result.engine else "engine"
    return f"{flavour}.{result.precision}.{result.target}"


def hops_of(graphs: Graphs, engines: Sequence[EngineResult], *, masked: bool = False) -> dict[Role, list[Form]]:
    """torch -> onnx -> simplified -> each lower precision; each engine comes from the graph of its precision.

    With `masked` compact's line begins with the network before the cut.
    """
    lower = [name for name in graphs if name not in ("onnx", "simplified")]
    line = [Form("torch", None), Form("onnx", "torch"), Form("simplified", "onnx")]
    line += [Form(name, "simplified") for name in lower]
    lines: dict[Role, list[Form]] = {
        role: line
        + [
            Form(engine_name(result), result.precision if result.precision in lower else "simplified", result)
            for result in engines
            if result.model == role
        ]
        for role in ROLES
    }
    if masked:
        lines["compact"] = [Form("masked", None), Form("torch", "masked"), *lines["compact"][1:]]
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
            pairs["onnxruntime", precision] = {role: Form(name, None) for role in ROLES}
    pairs["torch", "fp32"] = {role: Form("torch", None) for role in ROLES}

    for result in sorted(engines, key=lambda one: not _ran(engine_name(one), results)):  # those that ran first
        name = engine_name(result)
        twin = next((r for r in engines if r.model == "compact" and engine_name(r) == name), None)
        if result.model == "dense" and result.engine and twin and twin.engine:
            hops: Pair = {"dense": Form(name, None, result), "compact": Form(name, None, twin)}
            pairs.setdefault((result.engine.flavour, result.precision), hops)
    return pairs


def _ran(name: str, results: Mapping[Role, Results]) -> bool:
    return all(isinstance(results[role].get(name), Accuracy) for role in ROLES)


def gated_pair(
    pairs: Mapping[tuple[str, str], Pair], engines: Sequence[EngineResult], results: Mapping[Role, Results]
) -> tuple[tuple[str, str], str]:
    """The (backend, precision) whose speedup is gated, and why it is not that of an engine ("" where it is, or none was
    asked for): of the engines that ran here, those in fp32, else in the first precision; without any, ONNX Runtime."""
    ran = [key for key, pair in pairs.items() if pair["dense"].engine and _ran(pair["dense"].name, results)]
    if ran:
        return next((key for key in ran if key[1] == "fp32"), ran[0]), ""
    return ONNX_RUNTIME, "no engine ran here" if engines else ""


def may_not_run(hop: Form) -> bool:
    """Whether it is told as null with the reason where the form does not run here; any other is an error."""
    return hop.engine is not None or hop.name in MAY_NOT_RUN
