"""MLflow (extra `tracking`, by its client alone: mlflow-skinny)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from raybm.core.errors import UserError
from raybm.core.spec import Spec
from raybm.tracking.protocol import Tracker, flattened, missing, numbers

log = logging.getLogger(__name__)
PARAMETERS_AT_ONCE = 100  # that a request may hold (MLflow's REST API, runs/log-batch)


class Mlflow(Spec):
    """A run of an MLflow experiment, with the job's keys as parameters."""

    kind: Literal["mlflow"] = "mlflow"
    uri: str | None = None
    """The tracking server, such as http://127.0.0.1:5000. Default: the environment's MLFLOW_TRACKING_URI."""
    experiment: str | None = None
    """Its name; it is made where there is none. Default: the job's name."""

    def start(self, run: str, job: Mapping[str, Any], folder: Path) -> Tracker:
        return MlflowRun(self, run, job)


class MlflowRun:
    """The server is asked once before the job starts; what is logged later goes through MLflow's own queue."""

    def __init__(self, spec: Mlflow, run: str, job: Mapping[str, Any]) -> None:
        uri = spec.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise UserError("no server is named.", where="tracking.uri", remedy="Give the address of one, or set MLFLOW_TRACKING_URI.")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is away is told in seconds, not in minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # to MLflow's makers
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise missing("MLflow", "tracking.kind", error) from None
        self.metric, self.refused, self.step = Metric, MlflowException, 0
        name = spec.experiment or str(job["name"])
        try:
            self.client = MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            self.run = self.client.create_run(experiment, run_name=run).info.run_id
            parameters = [Param(key, value) for key, value in flattened(job)]
            for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
                self.client.log_batch(self.run, params=parameters[start : start + PARAMETERS_AT_ONCE])
        except MlflowException as error:
            what = f"MLflow refuses: {str(error).splitlines()[0]}"
            raise UserError(what, where="tracking.uri", remedy=f"Check that a server answers at {uri}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.client.set_terminated(self.run, "FINISHED" if kind is None else "FAILED")
        except self.refused as error:
            log.warning("MLflow was not told that the run is over: %s", error)

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        self.step, now = fields.get("step", self.step), int(time.time() * 1000)
        if kind == "stage":
            return
        try:
            self.client.log_batch(
                self.run, [self.metric(name, value, now, self.step) for name, value in numbers(kind, fields).items()], synchronous=False
            )
        except self.refused as error:
            log.warning("MLflow did not take step %d: %s", self.step, error)
