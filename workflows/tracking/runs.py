"""The runs of a sweep in MLflow: each one once, found again by its key, written to where something differs.

What a run is to hold is a :class:`Run`. All that are there are listed at once. A new one takes four requests
(``create_run``, ``log_inputs`` for its data set, ``log_batch`` for what it holds, its end), one that differs fewer,
and one that is as it should be none.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defense.redaction import redacted
from defense.spec import digest
from workflows.grid.load import Cell, Sweep
from workflows.monitoring.artifact_places import local_path, log_text
from workflows.monitoring.mlflow_client import BoundedClient
from workflows.monitoring.versions import source_commit
from workflows.tracking.experiments import Places, writable_experiment

__all__ = ["Run", "RunLog"]

_CURVES = "puregrid.curves"
"""Tag with the digest of a run's curves, so that nobody asks for their history."""

_BATCH = 800
"""Metrics in one request; MLflow takes 1,000 entries, tags and parameters among them."""

_LISTED_SECONDS = 2.0
"""How old a list of runs may be before one is made: another driver may be making the same."""


def _origin() -> dict[str, str]:
    """Who logs, and from which source, as MLflow's columns of users and sources show them."""
    commit = (source_commit() or "").partition(" ")[0]
    tags = {"mlflow.source.name": "puregrid", "mlflow.source.type": "LOCAL"}
    tags |= {"mlflow.source.git.commit": commit} if commit else {}
    with contextlib.suppress(KeyError, OSError, ImportError):  # an account without a name, as in some containers
        tags["mlflow.user"] = redacted(getpass.getuser())
    return tags


@dataclass(frozen=True)
class Run:
    """What a run is to hold.

    Arguments:
        key: By which it is found again.
        name: What people read.
        complete: Whether every unit is committed; a run with missing ones counts as failed.
        tags: Values by name.
        params: Those of one key never change, it is made of them.
        metrics: Values by name.
        curves: Values of stepped metrics, by step.
        texts: Artifacts by path.
        cell: One of its cells, whose data set is the run's input.
    """

    key: str
    name: str
    complete: bool
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    cell: Cell | None = None

    @property
    def status(self) -> str:
        """As MLflow calls it."""
        return "FINISHED" if self.complete else "FAILED"


@dataclass(frozen=True)
class _Difference:
    """What a run lacks. Nothing of it holds the credentials of a URI."""

    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    curves: bool
    texts: dict[str, str]
    dataset: bool
    status: bool

    def __bool__(self) -> bool:
        return any((self.tags, self.params, self.metrics, self.curves, self.texts, self.dataset, self.status))


class RunLog:
    """Writes only what differs from what a run has, and nothing with the credentials of a URI.

    Arguments:
        client: MLflow.
        sweep: The sweep.
        places: Where its artifacts may be.
    """

    def __init__(self, client: BoundedClient, sweep: Sweep, places: Places) -> None:
        self._client = client
        self._sweep = sweep
        self._experiment = writable_experiment(client, sweep.name, places)
        self._written: set[str] = set()
        self._list()

    def write(self, parent: Run, children: Sequence[Run]) -> str:
        """Write the runs of a sweep; returns the parent's id.

        The parent runs while its children are written and ends after them. Two drivers that no lock parts share the
        work: each looks from time to time which runs the other has begun, and leaves those for the end.
        """
        pending = [run for run in children if self._difference(run)]
        if not pending and not self._difference(parent):
            return str(self._have[parent.key].info.run_id)
        parent_id = self._begin(parent, None)
        if self._have[parent.key].info.status != "RUNNING":
            self._client.update_run(parent_id, status="RUNNING")
        begun = []
        for run in self._in_turn(pending):
            if run.key in self._have and self._have[run.key].info.status == "RUNNING":
                begun.append(run)
            else:
                self._write(run, parent_id)
        if begun:
            self._list()
        for run in begun:
            self._write(run, parent_id)
        self._write(parent, None, begun=True)
        return parent_id

    def another_driver_won(self) -> bool:
        """Delete second runs of one key, and return whether this driver has written to one of those.

        A store's lock lets one driver log after the other. Where there is none, two that begin at once may each make
        a run before they see the other's; that one counts which sorts first.
        """
        first: dict[str, str] = {}
        lost = False
        for run in self._found():
            key = run.data.tags["puregrid.key"]
            if first.setdefault(key, run.info.run_id) != run.info.run_id:
                lost |= run.info.run_id in self._written
                self._client.delete_run(run.info.run_id)
        return lost

    def _in_turn(self, runs: list[Run]) -> Iterator[Run]:
        """Every run once; beside another driver in random order, so that the two seldom meet."""
        left = list(reversed(runs))
        while left:
            if left[-1].key not in self._have and time.monotonic() - self._listed_at > self._listed_for:
                ours = set(self._have)
                self._list()
                if self._have.keys() - ours:
                    random.shuffle(left)
            yield left.pop()

    def _list(self) -> None:
        """Ask for all runs of the sweep."""
        began = time.monotonic()
        self._have: dict[str, Any] = {}
        for run in self._found():
            self._have.setdefault(run.data.tags["puregrid.key"], run)
        self._listed_at = time.monotonic()
        self._listed_for = max(_LISTED_SECONDS, 10 * (self._listed_at - began))

    def _found(self) -> list[Any]:
        """The runs of the sweep; of one key that comes first which counts, the same one for every driver."""
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`puregrid.sweep_id` = '{self._sweep.id}'", page_token=token
            )
            found += (run for run in page if "puregrid.key" in run.data.tags)
            token = page.token
            if not token:
                return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    def _difference(self, run: Run) -> _Difference:
        there = self._have.get(run.key)
        tags, params = (
            _without_credentials(run.tags),
            {key: redacted(str(value)) for key, value in run.params.items()},
        )
        texts = _without_credentials(run.texts)
        tags |= {f"puregrid.artifact.{path}": digest(text) for path, text in texts.items()}
        if run.curves:
            tags[_CURVES] = _digest(run.curves)
        if there is None:
            return _Difference(
                tags, params, dict(run.metrics), bool(run.curves), texts, run.cell is not None, status=True
            )
        data = there.data
        changed = {key: value for key, value in tags.items() if data.tags.get(key) != value}
        same = {path: text for path, text in texts.items() if f"puregrid.artifact.{path}" not in changed}
        kept = self._there(there, same) if same else set()
        return _Difference(
            changed,
            {key: value for key, value in params.items() if key not in data.params},
            # MLflow appends, so equal ones would pile up.
            {key: value for key, value in run.metrics.items() if data.metrics.get(key) != value},
            _CURVES in changed,
            {path: text for path, text in texts.items() if path not in kept},
            run.cell is not None and not (there.inputs and there.inputs.dataset_inputs),
            there.info.status != run.status,
        )

    def _begin(self, run: Run, parent: str | None) -> str:
        """The id of a run, which is made if it is not there."""
        if run.key not in self._have:
            tags = {"puregrid.key": run.key, "puregrid.sweep_id": self._sweep.id, **_origin()}
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
            self._have[run.key] = self._client.create_run(self._experiment, tags=tags, run_name=redacted(run.name))
        run_id = str(self._have[run.key].info.run_id)
        self._written.add(run_id)
        return run_id

    def _write(self, run: Run, parent: str | None, *, begun: bool = False) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run_id = self._begin(run, parent)
        entity, lacks = self._have[run.key], self._difference(run)
        for path, text in lacks.texts.items():
            log_text(self._client, entity, path, text)
        if lacks.dataset:
            assert run.cell is not None
            self._client.log_inputs(run_id, [_dataset(run.cell)])
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, 0) for key, value in lacks.metrics.items()]
        if lacks.curves:
            metrics += [Metric(key, value, now, step) for key, step, value in self._new_points(run, entity)]
        while len(metrics) > _BATCH:
            self._client.log_batch(run_id, metrics=metrics[:_BATCH])
            metrics = metrics[_BATCH:]
        if metrics or lacks.params or lacks.tags:
            self._client.log_batch(
                run_id,
                metrics=metrics,
                params=[Param(key, value) for key, value in lacks.params.items()],
                tags=[RunTag(key, value) for key, value in lacks.tags.items()],  # last: they say what is there
            )
        if lacks or begun:
            self._client.set_terminated(run_id, status=run.status)

    def _new_points(self, run: Run, entity: Any) -> Iterator[tuple[str, int, float]]:
        """Points of curves that are not in their history: name, step, value."""
        for key, line in run.curves.items():
            there: dict[int, float] = {}
            if key in entity.data.metrics:
                there = {
                    point.step: point.value for point in self._client.get_metric_history(entity.info.run_id, key)
                }
            yield from ((key, step, value) for step, value in sorted(line.items()) if there.get(step) != value)

    def _there(self, entity: Any, texts: Mapping[str, str]) -> set[str]:
        """The artifacts that are there: in a folder with this text, at a server by their names."""
        folder = local_path(entity.info.artifact_uri)
        if folder is not None:
            return {path for path, text in texts.items() if _holds(folder / path, text)}
        folders = {path.rpartition("/")[0] for path in texts}
        listed = {
            entry.path for name in folders for entry in self._client.list_artifacts(entity.info.run_id, name or None)
        }
        return listed.intersection(texts)


def _dataset(cell: Cell) -> Any:
    """The data set with its digest and the image ids' digest, as a run's input."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    config = cell.images.dataset
    images = digest("".join(chunk.name for chunk in cell.images.chunks))
    entity = Dataset(
        name=config.label(),
        digest=(config.digest or "")[:16],
        source_type="puregrid",
        source=redacted(json.dumps(config.identity())),
    )
    # MLflow keeps one entity per name and digest: the images that a run used are given with the run's input.
    tags = {"mlflow.data.context": "evaluation", "image_ids_digest": images, "images": str(cell.images.count)}
    return DatasetInput(entity, [InputTag(key, value) for key, value in tags.items()])


def _digest(curves: Mapping[str, Mapping[int, float]]) -> str:
    return digest(json.dumps({key: sorted(line.items()) for key, line in sorted(curves.items())}))


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _without_credentials(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: redacted(text) for name, text in texts.items()}
