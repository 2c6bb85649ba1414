"""The experiment of a sweep in MLflow, which somebody may have deleted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workflows.monitoring.mlflow_client import BoundedClient, NoAnswer, cause

__all__ = ["active_experiment", "writable_experiment"]


def active_experiment(client: BoundedClient, name: str) -> Any:
    """The experiment of a sweep, None if there is none that is not deleted."""
    found = (experiment for _, experiment in _experiments(client, name) if experiment is not None)
    return next((experiment for experiment in found if experiment.lifecycle_stage == "active"), None)


def writable_experiment(
    client: BoundedClient, name: str, folder: Path | None, say: Callable[[str], None] = lambda _: None
) -> str:
    """The id of a sweep's experiment, made if there is none.

    One that somebody deleted is restored with its runs; where that is refused, ``NAME (2)`` is begun in its place.

    Arguments:
        client: MLflow.
        name: The sweep's name.
        folder: Where a new experiment has its artifacts; None leaves that to the server.
        say: Is told of deleted experiments.
    """
    for called, experiment in _experiments(client, name):
        if experiment is None:
            location = None if folder is None else (folder / "mlartifacts" / called).absolute().as_uri()
            # The kind makes MLflow open the page of runs and charts, not that of language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(called, artifact_location=location, tags=kind))
        key = str(experiment.experiment_id)
        if experiment.lifecycle_stage == "active":
            return key
        try:
            client.restore_experiment(key)
        except NoAnswer:
            raise
        except Exception as error:  # MLflow raises whatever its stores and servers raise
            say(f"the experiment {called!r} was deleted in MLflow and cannot be restored ({cause(error)}).")
            continue
        say(f"the experiment {called!r} was deleted in MLflow; it is restored with its runs.")
        return key
    raise AssertionError("the names of experiments never end")


def _experiments(client: BoundedClient, name: str) -> Iterator[tuple[str, Any]]:
    """Names that a sweep's experiment may have and what is there; the last one is free."""
    for number in itertools.count(1):
        called = name if number == 1 else f"{name} ({number})"
        experiment = client.get_experiment_by_name(called)
        yield called, experiment
        if experiment is None:
            return
