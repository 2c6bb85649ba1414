"""The runs of a sweep in MLflow: each one once, found again by its key, written to where something differs.

What a run is to hold is a :class:`~workflows.tracking.run.Run`. All that are there are listed at once. A new one
takes four requests (``create_run``, ``log_inputs`` for its data set and model, ``log_batch`` for what it holds, its
end), one that differs fewer, and one that is as it should be none.

Nobody asks for the history of a metric: a point of a curve has the time at which its rows were committed, so that the
same point logged again is the same row to MLflow, and the point of newer rows a later one.

One tag, :data:`TAG`, says which run it is and what it holds: MLflow finds runs by nothing but their tags, and lists
nothing else with them. Its last part is written after all that it speaks for, so that a run whose logging was
interrupted shows.
"""

import contextlib
import getpass
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defense.redaction import redacted
from workflows.grid.load import Sweep
from workflows.monitoring.artifact_places import local_path, log_text
from workflows.monitoring.mlflow_client import BoundedClient
from workflows.monitoring.versions import source_commit
from workflows.tracking.experiments import Places, writable_experiment
from workflows.tracking.models import Models
from workflows.tracking.run import Run, dataset_input

__all__ = ["TAG", "RunLog", "runs_of"]

TAG = "puregrid.run"
"""Tag of a run: ``SWEEP KEY CONTENT``, the sweep's id, the run's key, and the digest of its curves and artifacts."""

_OLD = ("puregrid.key", "puregrid.sweep_id", "puregrid.curves", "puregrid.artifact.")
"""Tags, or beginnings of tags, that said the same in earlier versions; such runs are taken over."""

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


_Logged = tuple[str, float, int, int]
"""Name, value, time in milliseconds, step."""


@dataclass(frozen=True)
class _Difference:
    """What a run lacks. Nothing of it holds the credentials of a URI."""

    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    content: bool
    texts: dict[str, str]
    dataset: bool
    model: bool
    end: bool
    old: list[str]

    def __bool__(self) -> bool:
        lacks = (self.tags, self.params, self.metrics, self.content, self.texts, self.dataset, self.model, self.end)
        return any((*lacks, self.old))


class RunLog:
    """Writes only what differs from what a run has, and nothing with the credentials of a URI."""

    def __init__(self, client: BoundedClient, sweep: Sweep, places: Places) -> None:
        self._client = client
        self._sweep = sweep
        self._experiment = writable_experiment(client, sweep.name, places)
        self._written: set[str] = set()
        self._models: dict[str, str] = {}
        self._list(old=True)

    def write(self, parent: Run, children: Sequence[Run]) -> str:
        """Write the runs of a sweep; returns the parent's id.

        The parent runs while its children are written and ends after them. Two drivers that no lock parts share the
        work: each looks from time to time which runs the other has begun, and leaves those for the end.
        """
        pending = [run for run in children if self._difference(run)]
        if not pending and not self._difference(parent):
            return str(self._have[parent.key].info.run_id)
        models = [run.model for run in pending if run.model is not None]
        self._models = Models(self._client, self._experiment).ids(models)
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
            key = _key(run)
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

    def _list(self, *, old: bool = False) -> None:
        """Ask for all runs of the sweep, those of earlier versions among them if ``old``."""
        began = time.monotonic()
        self._have: dict[str, Any] = {}
        for run in self._found(old=old):
            self._have.setdefault(_key(run), run)
        self._listed_at = time.monotonic()
        self._listed_for = max(_LISTED_SECONDS, 10 * (self._listed_at - began))

    def _found(self, *, old: bool = False) -> list[Any]:
        """The runs of the sweep; of one key that comes first which counts, the same one for every driver."""
        return runs_of(self._client, self._experiment, self._sweep.id, old=old)

    def _difference(self, run: Run) -> _Difference:
        there = self._have.get(run.key)
        tags, params = (
            _without_credentials(run.tags),
            {key: redacted(str(value)) for key, value in run.params.items()},
        )
        texts = _without_credentials(run.texts)
        tags[TAG] = f"{self._sweep.id} {run.key} {run.content}"
        if there is None:
            has = run.cell is not None, run.model is not None
            return _Difference(tags, params, dict(run.metrics), True, texts, *has, end=True, old=[])
        data, inputs = there.data, there.inputs
        changed = {key: value for key, value in tags.items() if data.tags.get(key) != value}
        kept = self._there(there, run, texts, stale=TAG in changed)
        return _Difference(
            changed,
            {key: value for key, value in params.items() if key not in data.params},
            # MLflow appends, so equal ones would pile up.
            {key: value for key, value in run.metrics.items() if data.metrics.get(key) != value},
            TAG in changed,
            {path: text for path, text in texts.items() if path not in kept},
            run.cell is not None and not (inputs and inputs.dataset_inputs),
            # Lists of runs are without their models: one that was written whole once has its.
            run.model is not None and data.tags.get(TAG, "-").endswith("-"),
            there.info.status != run.status or run.ended not in (None, there.info.end_time),
            [key for key in data.tags if key.startswith(_OLD)],
        )

    def _begin(self, run: Run, parent: str | None) -> str:
        """The id of a run, which is made if it is not there."""
        if run.key not in self._have:
            tags = {TAG: f"{self._sweep.id} {run.key} -", **_origin()}
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
            self._have[run.key] = self._client.create_run(
                self._experiment, start_time=run.began, tags=tags, run_name=redacted(run.name)
            )
        run_id = str(self._have[run.key].info.run_id)
        self._written.add(run_id)
        return run_id

    def _write(self, run: Run, parent: str | None, *, begun: bool = False) -> None:
        from mlflow.entities import LoggedModelInput, Metric, Param, RunTag

        run_id = self._begin(run, parent)
        entity, lacks = self._have[run.key], self._difference(run)
        for path, text in lacks.texts.items():
            log_text(self._client, entity, path, text)
        datasets = [dataset_input(run.cell)] if lacks.dataset and run.cell is not None else []
        models = [LoggedModelInput(self._models[run.model.key])] if lacks.model and run.model is not None else []
        if datasets or models:
            self._client.log_inputs(run_id, datasets, models)
        metrics = [Metric(*point, **about) for point, about in self._points(run, entity, lacks)]
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
        for tag in lacks.old:
            self._client.delete_tag(run_id, tag)
        if lacks or begun:
            self._client.set_terminated(run_id, status=run.status, end_time=run.ended)

    def _points(self, run: Run, entity: Any, lacks: _Difference) -> Iterator[tuple[_Logged, dict[str, str]]]:
        """What is to be logged of metrics and curves, and of which model on which data set it is.

        A value that is not there has the time of its rows, one that takes the place of another the time of now, since
        the latest one counts.
        """
        have, now = entity.data.metrics, int(time.time() * 1000)
        about = self._about(run)

        def at(key: str, value: float, seconds: float) -> int:
            if have.get(key, value) != value:
                return now
            return round(1000 * seconds) or run.ended or int(entity.info.start_time)

        for key, value in run.metrics.items():
            of_model = about if key in run.headline else {}
            if key in lacks.metrics or (lacks.content and of_model):
                yield (key, value, at(key, value, 0.0), 0), of_model
        if lacks.content:
            for key, line in run.curves.items():
                last = max(line)
                for step, point in sorted(line.items()):
                    # What MLflow has of a curve without its history is its last value.
                    known = point.value if step == last else have.get(key, point.value)
                    yield (key, point.value, at(key, known, point.at), step), {}

    def _about(self, run: Run) -> dict[str, str]:
        """The model and data set of a run, for metrics of models; nothing without a model."""
        if run.model is None or run.cell is None:
            return {}
        dataset = dataset_input(run.cell).dataset
        named = {"dataset_name": str(dataset.name), "dataset_digest": str(dataset.digest)}
        return {"model_id": self._models[run.model.key], **named}

    def _there(self, entity: Any, run: Run, texts: Mapping[str, str], *, stale: bool) -> set[str]:
        """The artifacts that are there: in a folder with this text; at a server those of the parent by their names.

        Those of children at a server are what the tag says, since asking takes a request each.
        """
        folder = local_path(entity.info.artifact_uri)
        if folder is not None:
            return {path for path, text in texts.items() if _holds(folder / path, text)}
        if stale:
            return set()
        if run.cell is not None:
            return set(texts)
        folders = {path.rpartition("/")[0] for path in texts}
        listed = {
            entry.path for name in folders for entry in self._client.list_artifacts(entity.info.run_id, name or None)
        }
        return listed.intersection(texts)


def runs_of(client: BoundedClient, experiment: str, sweep_id: str, key: str = "", *, old: bool = False) -> list[Any]:
    """Return the runs of a sweep in an experiment, sorted so that of one key the same one is first for every driver.

    Arguments:
        client: MLflow.
        experiment: Its id.
        sweep_id: The sweep's.
        key: Of one run; all by default.
        old: Whether runs of earlier versions are asked for, too: a request more.
    """
    wanted = [f"tags.`{TAG}` LIKE '{sweep_id} {key}%'"]
    if old:
        wanted.append(f"tags.`{_OLD[1]}` = '{sweep_id}'" + (f" AND tags.`{_OLD[0]}` = '{key}'" if key else ""))
    found: dict[str, Any] = {}
    for condition in wanted:
        token: str | None = None
        while True:
            page = client.search_runs([experiment], condition, page_token=token)
            found |= {run.info.run_id: run for run in page if _key(run)}
            token = page.token
            if not token:
                break
    return sorted(found.values(), key=lambda run: (run.info.start_time, run.info.run_id))


def _key(run: Any) -> str:
    """The key of a run, in whichever tag it is; "" of a run that is none of ours."""
    parts = run.data.tags.get(TAG, "").split(" ")
    return str(parts[1] if len(parts) > 1 else run.data.tags.get(_OLD[0], ""))


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _without_credentials(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: redacted(text) for name, text in texts.items()}
