"""A run of MLflow, found again by the key of the run that it tracks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import islice

from raydml.spec import MlflowTracking
from raydml.tracking.points import Point
from raydml.tracking.tracker import Facts

KEY = "raydml.key"
STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_AT_ONCE = 1000  # numbers in one request, the most that MLflow takes
_PARAMETERS, _CHARACTERS = 100, 500  # in one request, and of one

# MLflow waits for minutes for a server that is away: here the next turn tries again.
_QUICK = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class MlflowRun:
    """One run of MLflow, whose steps are samples."""

    def __init__(self, spec: MlflowTracking, facts: Facts) -> None:
        for name, value in _QUICK.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{facts.home / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(spec.experiment)
        found = self._client.search_runs([experiment], f"tags.`{KEY}` = '{facts.key}'", max_results=1)
        run = found[0] if found else self._client.create_run(experiment, run_name=facts.name, tags={KEY: facts.key})
        self.id: str = run.info.run_id
        if not run.data.params:
            self._describe(facts)
        self._client.update_run(self.id, status="RUNNING")

    def log(self, points: Sequence[Point]) -> None:
        """Keep these."""
        from mlflow.entities import Metric

        metrics = (
            Metric(name, value, round(point.time * 1000), point.samples)
            for point in points
            for name, value in point.values.items()
        )
        while some := list(islice(metrics, _AT_ONCE)):
            self._client.log_batch(self.id, metrics=some)

    def end(self, state: str) -> None:
        """Over, as far as MLflow knows."""
        self._client.set_terminated(self.id, STATUS[state])

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # another run made it meanwhile
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _describe(self, facts: Facts) -> None:
        from mlflow.entities import Param

        parameters = (Param(name, str(value)[:_CHARACTERS]) for name, value in facts.spec.items())
        while some := list(islice(parameters, _PARAMETERS)):
            self._client.log_batch(self.id, params=some)
