"""The training of an int8 graph: the one training loop on it, learning from the fp32 graph that it was made of."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from export.precision.pairs import Values
from pipeline import config
from pipeline.training.compute import compute_of
from pipeline.training.compute.device import repeatable, torch_device
from pipeline.training.compute.distributed import ALONE
from pipeline.training.distillation import Teacher
from pipeline.training.hooks import Hooks
from pipeline.training.log.history import History
from pipeline.training.loop import Loop
from pipeline.training.quantisation.network import QuantisedNetwork, followed
from pipeline.training.snapshots.checkpoint import Checkpoints
from pipeline.training.train import Setting, training_of
from runtime.errors import UserError

HISTORY = "int8-history.jsonl"


def train_int8(
    section: config.Qat, full: onnx.ModelProto, low: onnx.ModelProto, source: Path, setting: Setting
) -> Values:
    """Weights, biases and scales of `low`, the int8 graph of `full`, after the epochs of the section.

    Writes the history into `setting.out`; with checkpoints a killed training goes on. Raises UserError.
    """
    start, device = time.perf_counter(), torch_device(setting.device)
    with repeatable(setting.threads, device, section.deterministic):

        def fresh() -> nn.Module:
            return QuantisedNetwork(full, low, source)

        compute = compute_of(section, device, ALONE)
        network = compute.placed(fresh())
        data = setting.on(device)
        history = History(setting.out / HISTORY)
        checkpoints = None if setting.checkpoints is None else Checkpoints(setting.checkpoints)
        training = training_of(section, network, data, compute, setting)
        distill = section.teaching(setting.task.distance is not None)
        teacher = None if distill is None else Teacher(followed(full, source).module, distill, compute, setting.task)
        more = compute, checkpoints, fresh, setting.task, teacher
        loop = Loop(section, network, data, Hooks(), training, history, setting.progress, *more)
        setting.progress.start("precision: training in int8", training.steps)
        try:
            loop.run()
        except torch.OutOfMemoryError as error:
            problem = f"{device} ran out of memory while training in int8 ({str(error).splitlines()[0]})"
            expected = f"room for batches of {section.batch_size}"
            raise UserError(problem, expected, "lower precision.qat.batch_size") from error
        finally:
            setting.progress.stop()
    history.rewrite()
    trained = loop.sparsifier.network
    assert isinstance(trained, QuantisedNetwork)
    values = trained.values()
    demand_finite(values)
    return Values(values.constants, values.scales, len(history.rows), time.perf_counter() - start)


def demand_finite(values: Values) -> None:
    """UserError where a weight or a scale is not."""
    for name, array in (*values.constants.items(), *values.scales.items()):
        if not np.isfinite(array).all():
            raise UserError(
                f"training in int8 ended with {name} not finite", "finite weights", "lower precision.qat.lr"
            )
