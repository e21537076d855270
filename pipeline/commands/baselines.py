"""`demport baselines`: what simpler networks come to on a finished run's data, beside its compact one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import line
from pipeline.baselines.document import FOLDER, NAME, Baseline, Baselines, Measured, sentence, write
from pipeline.baselines.networks import CANDIDATES, Beside, Candidate, candidate
from pipeline.baselines.smaller import resized
from pipeline.commands import finished_run
from pipeline.config import Config
from pipeline.config.task import task_of
from pipeline.data import Dataset
from pipeline.progress import Progress
from pipeline.report import render as rendering
from pipeline.results import Cut, SimplifiedGraphs, Trained
from pipeline.surgery import load_compact
from pipeline.training.train import trained_network
from pipeline.workspace import fingerprint
from pipeline.workspace.folder import finished
from pipeline.workspace.stages import LAST
from runtime.backends import DeviceName, Session, open_session
from runtime.device import environment
from runtime.errors import UserError
from runtime.files import sha256_of_json
from runtime.macs import macs
from runtime.measure.accuracy import Accuracy, accuracy
from runtime.measure.latency import Comparison, compare_openings

BATCH = 256
ROUND_S = 8.0  # of the search for a size: two networks exported and timed


def baselines(order: line.Order, epochs: int | None, progress: Progress) -> dict[str, Any]:
    """Train, export and measure them, write baselines.json and the report again; the JSON document that ends the
    command. What is there on the same basis is not made again. Raises UserError."""
    line.demand_device(order.device)
    config = finished_run.config_of(order.out)
    if config.given is not None:
        raise UserError(
            f"{order.out} is of two networks made elsewhere", "a run that trains", "run `demport run` on it"
        )
    fingerprint.make_importable(Path.cwd())
    with line.workspace_of(config, order, progress):
        run = line.run_of(config, order, progress)
        beside, check = _beside(config, order, epochs, progress, run.data())
        progress.note(estimate(beside, _seconds_per_epoch(order.out)))
        folder = order.out / FOLDER
        rows = {name: candidate(name, make, beside, folder) for name, make in CANDIDATES.items()}
        document = _measured(beside, rows, check, budget(config))
        write(folder / NAME, document)
        rendering.render(order.out)
    text = sentence(document)
    progress.note(text)
    report = {"report": str(order.out / "report.html"), "sentence": text}
    return {"status": "done", **report, "rows": [dataclasses.asdict(row) for row in document.rows]}


def budget(config: Config) -> int:
    """Epochs that compact's training took: those of the dense one too, where it began there."""
    return config.sparse.epochs + (config.dense.epochs if config.starts_dense else 0)


def _beside(
    config: Config, order: line.Order, epochs: int | None, progress: Progress, data: Dataset
) -> tuple[Beside, str]:
    """And the digest of the check. UserError where a stage is not there, or the data changed."""
    stages = {name: finished(order.out, name) for name in ("10-dense", "20-sparse", "30-surgery", "50-simplify", LAST)}
    finished_run.demand_same_data(config, stages["10-dense"])
    dense, cut = stages["10-dense"].result(Trained), stages["30-surgery"].result(Cut)
    whole = trained_network(config.model, data, dense)
    compact = load_compact(cut.plan.parent).eval()
    share = macs(compact, data.input_shape) / max(1, macs(whole, data.input_shape))
    trained_for = epochs or budget(config)
    digests = [stages[name].digest for name in ("10-dense", "50-simplify")]
    basis = sha256_of_json([digests, trained_for, config.check.gate_batch, config.check.threads])
    graphs = stages["50-simplify"].result(SimplifiedGraphs)
    basics = config, data, order.device, progress, trained_for
    return Beside(*basics, compact, share, dense.weights, graphs, basis), stages[LAST].digest


def _seconds_per_epoch(run: Path) -> float:
    """Of the run's slower training."""
    trainings = [finished(run, name).result(Trained) for name in ("10-dense", "20-sparse")]
    return max(one.seconds / one.epochs for one in trainings if one.epochs)


def estimate(beside: Beside, seconds_per_epoch: float) -> str:
    """One line, before it starts."""
    trainings = 3 * beside.epochs * seconds_per_epoch
    check = beside.config.check
    rest = 10 * ROUND_S + 4 * check.time_limit_s + 30
    minutes = (trainings + rest) / 60
    return (
        f"baselines: about {max(1, round(minutes))} min at most, by the run's own speed: three trainings of "
        f"{beside.epochs} epochs (--epochs N for fewer), int8, and all of them timed in turn"
    )


def _measured(beside: Beside, rows: dict[str, Candidate | str], check: str, budget: int) -> Baselines:
    graphs: dict[str, tuple[Path, Candidate | None]] = {
        "dense": (beside.graphs.dense.path, None), "compact": (beside.graphs.compact.path, None),
    }  # fmt: skip
    for row in rows.values():
        if isinstance(row, Candidate):
            graphs |= {name: (path, row) for name, path in row.graphs.items()}
    data = {name: _data_of(beside, row) for name, (_, row) in graphs.items()}
    device: DeviceName = "cpu" if beside.device == "cpu" else "auto"
    threads = beside.config.check.threads
    openers = [partial(open_session, path, "onnxruntime", device, threads) for path, _ in graphs.values()]
    compared = _in_turn(beside, openers, [data[name] for name in graphs])
    answers = {name: _accuracy(beside, opener(), data[name]) for name, opener in zip(graphs, openers, strict=True)}
    epochs = {"dense": beside.config.dense.epochs, "compact": budget}
    done = [
        Baseline(name, "" if row is None else row.what, epochs.get(name, 0) if row is None else row.epochs,
                 _figures(number, name, compared, answers), None)
        for number, (name, (_, row)) in enumerate(graphs.items())
    ]  # fmt: skip
    missing = [Baseline(name, "", 0, None, row) for name, row in rows.items() if isinstance(row, str)]
    return Baselines(
        check, task_of(beside.config.task).metric, answers["compact"].n, beside.config.check.gate_batch, threads,
        budget, environment(), dict(compared.conditions), (*done, *missing),
    )  # fmt: skip


def _data_of(beside: Beside, row: Candidate | None) -> Dataset:
    return beside.data if row is None or row.side is None else resized(beside.config, beside.data, row.side)


def _in_turn(beside: Beside, openers: Sequence[Any], data: Sequence[Dataset]) -> Comparison:
    section, feeds = beside.config.check, []
    for opener, one in zip(openers, data, strict=True):
        images, _ = next(iter(one.test.batches(section.gate_batch)))
        with closing(opener()) as session:
            batch = np.resize(np.asarray(images), (section.gate_batch, *one.input_shape))
            feeds.append({session.inputs[0].name: batch})
    beside.progress.start("baselines: latency, all in turn", 1)
    try:
        limit_s = section.time_limit_s * len(openers) / 2
        compared = compare_openings(openers, feeds, min_blocks=section.min_blocks, time_limit_s=limit_s, precision=0.02)
        beside.progress.update(1)
        return compared
    finally:
        beside.progress.stop()


def _accuracy(beside: Beside, session: Session, data: Dataset) -> Accuracy:
    with closing(session):
        return accuracy(session, data.test.batches(BATCH), task_of(beside.config.task).judge())


def _figures(number: int, name: str, compared: Comparison, answers: dict[str, Accuracy]) -> Measured:
    faster = None if number == 0 else compared.speedups[number - 1]
    against = None if name == "compact" else answers[name].judged.against(answers["compact"].judged)
    return Measured(
        compared.models[number].p50_ms,
        1.0 if faster is None else faster.ratio,
        (1.0, 1.0) if faster is None else faster.ci95,
        answers[name].mean,
        None if against is None else against.difference_pp,
        None if against is None else against.ci95_pp,
    )
