"""The experiment of a sweep in MLflow, which somebody may have deleted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from workflows.monitoring.artifact_places import FOLDER, other_store
from workflows.monitoring.mlflow_client import BoundedClient, NoAnswer, cause
from workflows.monitoring.mlflow_uri import is_own, sqlite_path

__all__ = ["Places", "active_experiments", "writable_experiment"]


@dataclass(frozen=True)
class Places:
    """Where the artifacts of a sweep may be on this machine.

    Arguments:
        folder: Below it a new experiment has its artifacts; None if a server says where.
        store: The store's folder; None for a bucket.
    """

    folder: Path | None = None
    store: Path | None = None

    @classmethod
    def of(cls, uri: str, store_uri: str) -> Places:
        """Return the places for a tracking URI and a store.

        Artifacts are beside a SQLite database, so that who copies one copies both; those of another database of this
        machine are in the store.
        """
        store = None if "://" in store_uri else Path(store_uri)
        if uri.startswith(("http://", "https://")):
            return cls(None, store)
        path = sqlite_path(uri)
        return cls(store if path is None or is_own(uri, store) else path.parent, store)

    def foreign(self, experiment: Any) -> Path | None:
        """Return the other store that has an experiment's artifacts; None if none has."""
        ours = (self.folder, self.store)
        return None if not any(ours) else other_store(experiment.artifact_location or "", *ours)


def active_experiments(client: BoundedClient, name: str, places: Places = Places()) -> list[Any]:
    """The experiments of a sweep that are not deleted, and have no artifacts in another store; the first is used."""
    found = (experiment for _, experiment in _experiments(client, name) if experiment is not None)
    return [e for e in found if e.lifecycle_stage == "active" and places.foreign(e) is None]


def writable_experiment(
    client: BoundedClient, name: str, places: Places, say: Callable[[str], None] = lambda _: None
) -> str:
    """The id of a sweep's experiment, made if there is none.

    One that somebody deleted is restored with its runs; where that is refused, ``NAME (2)`` is begun in its place. So
    it is where the artifacts of NAME are in another store, as in a database that was named by this store and by the
    one that it is a copy of.
    """
    for called, experiment in _experiments(client, name):
        if experiment is None:
            location = (
                None if places.folder is None else (places.folder / FOLDER / _file_name(called)).absolute().as_uri()
            )
            # The kind makes MLflow open the page of runs and charts, not that of language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            try:
                return str(client.create_experiment(called, artifact_location=location, tags=kind))
            except NoAnswer:
                raise
            except Exception:  # MLflow raises whatever its stores and servers raise
                if client.get_experiment_by_name(called) is None:
                    raise
                return writable_experiment(client, name, places, say)  # another driver has just made it
        key = str(experiment.experiment_id)
        if (store := places.foreign(experiment)) is not None:
            say(f"the experiment {called!r} has its artifacts in another store, {store}; it is left alone.")
            continue
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


def _file_name(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe=" ()") if "/" in name or name in (".", "..") else name


def _experiments(client: BoundedClient, name: str) -> Iterator[tuple[str, Any]]:
    """Names that a sweep's experiment may have and what is there; the last one is free."""
    for number in itertools.count(1):
        called = name if number == 1 else f"{name} ({number})"
        experiment = client.get_experiment_by_name(called)
        yield called, experiment
        if experiment is None:
            return
