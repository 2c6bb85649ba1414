"""Log curves and figures of a training to MLflow, on demand.

One experiment per training kind, one run per (config, data). A training that continues finds its run by its key and
adds the missing points; since a resumed training computes the same numbers, points that are there already are right.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from defense.errors import PuregridError
from defense.redaction import redacted
from defense.spec import digest
from workflows.monitoring.artifact_places import FOLDER
from workflows.monitoring.mlflow_client import BoundedClient, cause, named_uri
from workflows.monitoring.mlflow_database import prepare
from workflows.monitoring.mlflow_uri import sqlite_path
from workflows.training.config import Training

__all__ = ["TrainingLog", "tracking_uri"]

_BUFFER = 200


_VARIABLE = "MLFLOW_TRACKING_URI"


def tracking_uri(uri: str | None, out: str) -> str | None:
    """Return the tracking URI of ``--mlflow``: ``on`` is SQLite in the out folder, ``off`` and by default nothing.

    The environment variable ``MLFLOW_TRACKING_URI`` is the default where it is set, as in ``puregrid run``. Without
    it nothing is logged: the out folder is what one ships, and a database in it would be shipped along.
    """
    chosen = (
        named_uri(uri, "--mlflow") or named_uri(os.environ.get("MLFLOW_TRACKING_URI") or None, _VARIABLE) or "off"
    )
    if chosen == "off":
        return None
    return f"sqlite:///{(Path(out) / 'mlflow.db').absolute()}" if chosen == "on" else chosen


class TrainingLog:
    """Writes to one MLflow run, or, without a URI, nothing. A context manager; a run it leaves by error is FAILED."""

    def __init__(self, client: Any, run: str | None) -> None:
        self._client = client
        self._run = run
        self._buffer: list[tuple[int, dict[str, float]]] = []
        self._known: dict[str, set[int]] = {}

    @property
    def on(self) -> bool:
        """Whether anything is written."""
        return self._run is not None

    @classmethod
    def open(
        cls,
        uri: str | None,
        config: Training,
        digests: Mapping[str, Any],
        *,
        again: bool = False,
        notify: Callable[[str], None] = lambda _: None,
    ) -> TrainingLog:
        """Return the run of a training, made if there is none.

        Arguments:
            uri: Tracking URI, or None for no log.
            config: What is trained.
            digests: Digests of the data.
            again: Make a new run even if there is one.
            notify: Where notes go.

        Raises:
            PuregridError: MLflow cannot be written.
        """
        if uri is None:
            return cls(None, None)
        try:
            # Its curves are no function of what the out folder holds: a broken database is left to its owner.
            prepare(uri, Path(config.out), notify, derived=False)
            client = BoundedClient(uri)
            return cls(client, _run(client, uri, config, digests, again))
        except Exception as error:  # MLflow raises whatever its stores and servers raise
            raise PuregridError(
                f"MLflow at {uri} cannot be written ({cause(error)}). Give --mlflow off to train without it."
            ) from error

    def point(self, step: int, figures: dict[str, float]) -> None:
        """A point of each curve; written with the next flush."""
        self._buffer.append((step, figures))
        if len(self._buffer) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write the points that the run does not have."""
        if self._run is None or not self._buffer:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = []
        for step, figures in self._buffer:
            for key, value in figures.items():
                if step not in self._steps(key):
                    self._steps(key).add(step)
                    new.append(Metric(_plain(key), value, now, step))
        for start in range(0, len(new), 1000):  # MLflow's limit of one batch
            self._client.log_batch(self._run, metrics=new[start : start + 1000])
        self._buffer.clear()

    def _steps(self, key: str) -> set[int]:
        if key not in self._known:
            self._known[key] = {point.step for point in self._client.get_metric_history(self._run, _plain(key))}
        return self._known[key]

    def finish(self, step: int, measured: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """The final figures, and the artifacts."""
        if self._run is None:
            return
        self.point(step, {f"final/{key}": value for key, value in _figures(measured).items()})
        self.flush()
        for path, text in texts.items():
            self._client.log_text(self._run, redacted(text), path)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._run is None:
            return
        if kind is None or not issubclass(kind, PuregridError):
            self.flush()
        status = "FINISHED" if kind is None else "KILLED" if kind is KeyboardInterrupt else "FAILED"
        self._client.set_terminated(self._run, status=status)


def _run(client: Any, uri: str, config: Training, digests: Mapping[str, Any], again: bool) -> str:
    from mlflow.entities import Param

    name = f"puregrid train {config.train}"
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None
        if (database := sqlite_path(uri)) is not None:
            location = (database.parent / FOLDER / config.train).as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}
        experiment_id = client.create_experiment(name, artifact_location=location, tags=kind)
    else:
        experiment_id = experiment.experiment_id
    key = digest(config.canonical() + json.dumps(dict(digests), sort_keys=True))
    runs = client.search_runs([experiment_id], f"tags.`puregrid.key` = '{key}'", max_results=1)
    if runs and not again:
        client.set_terminated(runs[0].info.run_id, status="RUNNING")
        return str(runs[0].info.run_id)
    if runs:
        client.set_tag(runs[0].info.run_id, "puregrid.key", f"{key} replaced")
    run = client.create_run(experiment_id, tags={"puregrid.key": key}, run_name=Path(config.out).name)
    params = {**_flat(config.identity()), **{f"data.{name}": value for name, value in digests.items()}}
    client.log_batch(
        run.info.run_id, params=[Param(name, redacted(str(value))[:500]) for name, value in params.items()]
    )
    return str(run.info.run_id)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _figures(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among the measures, by dotted name."""
    flat = _flat(measured)
    return {key: float(value) for key, value in flat.items() if isinstance(value, int | float) and value is not True}


def _plain(key: str) -> str:
    """Return a metric's name in the characters that MLflow takes: ``t=25`` has another."""
    return key.replace("=", " ")
