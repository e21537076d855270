"""MLflow runs of a training, where MLFLOW_TRACKING_URI says, else where MLflow itself puts them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pipeline.training.log.loggers import PROJECT, Described

CHUNK = 500
"""Metrics in one request; MLflow takes at most 1000, and 100 parameters."""
PARAMETERS = 100


def package() -> Any:
    import mlflow

    return mlflow


class MLflow:
    """A run in the experiment `demport`, by a client of its own: whatever run the user has open stays as it is."""

    def __init__(self, training: Described, run: str | None = None) -> None:
        from mlflow.entities import Param

        self._client = client = package().MlflowClient()
        self._logged = 0
        """Epochs that the run has already."""
        if run is not None and self._resumed(run):
            self.run: str | None = run
            return
        experiment = client.get_experiment_by_name(PROJECT)
        number = client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        self.run = client.create_run(number, run_name=training.name).info.run_id
        parameters = [Param(key, str(value)[:500]) for key, value in training.parameters.items()]
        for first in range(0, len(parameters), PARAMETERS):
            client.log_batch(self.run, params=parameters[first : first + PARAMETERS])

    def scalars(self, figures: Mapping[str, float], epoch: int) -> None:
        from mlflow.entities import Metric

        if epoch <= self._logged:
            return
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, epoch) for name, value in figures.items()]
        for first in range(0, len(metrics), CHUNK):
            self._client.log_batch(self.run, metrics=metrics[first : first + CHUNK])

    def close(self, ended: bool) -> None:
        self._client.set_terminated(self.run, "FINISHED" if ended else "FAILED")

    def _resumed(self, run: str) -> bool:
        """Whether the run is there still: then it runs again."""
        from mlflow.exceptions import MlflowException

        try:
            metrics = self._client.get_run(run).data.metrics
            history = self._client.get_metric_history(run, "loss") if "loss" in metrics else []
            self._logged = max((metric.step for metric in history), default=0)
            self._client.update_run(run, status="RUNNING")
        except MlflowException:
            return False
        return True
