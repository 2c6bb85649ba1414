"""The runs of a sweep in MLflow: each one once, found again by its key, written to where something differs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defense.redaction import redacted
from defense.spec import digest
from workflows.grid.load import Cell, Sweep
from workflows.monitoring.artifact_places import local_path, log_text
from workflows.monitoring.mlflow_client import BoundedClient
from workflows.tracking.experiments import Places, writable_experiment

__all__ = ["RunLog"]


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
        self._have: dict[str, Any] = {}
        """The runs that are written to, as they were found: each is asked for once."""

    def run(self, key: str, name: str, parent: str | None) -> str:
        """Return the run with this key; make it if necessary."""
        found = self._runs(key)
        if not found:
            tags = {"puregrid.key": key, "puregrid.sweep_id": self._sweep.id}
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
            made = str(self._client.create_run(self._experiment, tags=tags, run_name=redacted(name)).info.run_id)
            found = self._runs(key)  # another driver may have made one at the same time
            if found[0].info.run_id != made:
                self._client.delete_run(made)
        run_id = str(found[0].info.run_id)
        self._have[run_id] = found[0]
        if found[0].info.status != "RUNNING":
            self._client.set_terminated(run_id, status="RUNNING")
        return run_id

    def _runs(self, key: str) -> list[Any]:
        """The runs with this key, the one that counts first: the same one for every driver."""
        found = self._client.search_runs([self._experiment], f"tags.`puregrid.key` = '{key}'")
        return sorted(found, key=_order)

    def another_driver_won(self) -> bool:
        """Delete second runs of one key, and return whether this driver has written to one of those.

        A store's lock lets one driver log after the other. Where there is none, two that begin at once may each make
        a run before they see the other's; that one counts which sorts first.
        """
        found: list[Any] = []
        token: str | None = None
        while token is not None or not found:
            page = self._client.search_runs(
                [self._experiment], f"tags.`puregrid.sweep_id` = '{self._sweep.id}'", page_token=token
            )
            found += page
            token = page.token or None
            if not page:
                break
        first: dict[str, str] = {}
        lost = False
        for run in sorted(found, key=_order):
            key = run.data.tags["puregrid.key"]
            if first.setdefault(key, run.info.run_id) != run.info.run_id:
                lost |= run.info.run_id in self._have
                self._client.delete_run(run.info.run_id)
        return lost

    def tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags that differ."""
        have = self._have[run].data.tags
        for key, value in _without_credentials(tags).items():
            if have.get(key) != value:
                self._client.set_tag(run, key, value)

    def params(self, run: str, params: Mapping[str, Any]) -> None:
        """Log parameters that are not there; those of one key never change, it is made of them."""
        from mlflow.entities import Param

        have = self._have[run].data.params
        new = [Param(key, redacted(str(value))) for key, value in params.items() if key not in have]
        if new:
            self._client.log_batch(run, params=new)

    def metrics(self, run: str, metrics: Mapping[str, float]) -> None:
        """Log metrics whose value differs from the last: MLflow appends, so equal ones would pile up."""
        from mlflow.entities import Metric

        have = self._have[run].data.metrics
        now = int(time.time() * 1000)
        new = [Metric(key, value, now, 0) for key, value in metrics.items() if have.get(key) != value]
        if new:
            self._client.log_batch(run, metrics=new)

    def curves(self, run: str, curves: Mapping[str, Mapping[int, float]]) -> None:
        """Log points of stepped metrics that are not in their history."""
        for key, line in curves.items():
            have: dict[int, float] = {}
            if key in self._have[run].data.metrics:
                have = {point.step: point.value for point in self._client.get_metric_history(run, key)}
            for step, value in sorted(line.items()):
                if have.get(step) != value:
                    self._client.log_metric(run, key, value, step=step)

    def texts(self, run: str, texts: Mapping[str, str]) -> None:
        """Write artifacts that differ, or are gone."""
        entity = self._have[run]
        texts = _without_credentials(texts)
        have = entity.data.tags
        same = [path for path, text in texts.items() if have.get(f"puregrid.artifact.{path}") == digest(text)]
        there = self._there(run, entity.info.artifact_uri, {path: texts[path] for path in same})
        for path, text in texts.items():
            if path not in there:
                log_text(self._client, entity, path, text)
            if path not in same:
                self._client.set_tag(run, f"puregrid.artifact.{path}", digest(text))

    def _there(self, run: str, uri: str, texts: Mapping[str, str]) -> set[str]:
        """The artifacts that are there: in a folder with this text, at a server by their names."""
        folder = local_path(uri)
        if folder is not None:
            return {path for path, text in texts.items() if _holds(folder / path, text)}
        folders = {path.rpartition("/")[0] for path in texts}
        listed = {entry.path for name in folders for entry in self._client.list_artifacts(run, name or None)}
        return listed.intersection(texts)

    def dataset(self, run: str, cell: Cell) -> None:
        """The data set with its digest and the image ids' digest, as the run's input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if self._have[run].inputs.dataset_inputs:
            return
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
        self._client.log_inputs(run, [DatasetInput(entity, [InputTag(key, value) for key, value in tags.items()])])

    def finish(self, run: str, complete: bool) -> None:
        """End a run; one with missing units counts as failed until it is complete."""
        self._client.set_terminated(run, status="FINISHED" if complete else "FAILED")


def _order(run: Any) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _without_credentials(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: redacted(text) for name, text in texts.items()}
