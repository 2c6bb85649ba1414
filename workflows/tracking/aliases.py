"""Baselines and verdicts in MLflow: which run is the baseline of a sweep, and the verdict of a check.

Promotion copies a snapshot into the sweep's parent run (artifact ``baselines/ALIAS.json``) and moves the alias there:
the tag ``puregrid.baseline.ALIAS``, whose value is the time. The artifact is written first, then the tag, then the
tag of the old run is removed: after a stop half way, two runs have the tag and the later time counts.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from defense.errors import InvalidInput
from defense.redaction import redacted
from workflows.grid.load import Sweep
from workflows.monitoring.artifact_places import FOLDER, log_text
from workflows.monitoring.mlflow_client import BoundedClient
from workflows.monitoring.mlflow_database import exclusive, prepare, trouble
from workflows.monitoring.mlflow_uri import sqlite_path
from workflows.tracking.experiments import Places, active_experiments
from workflows.tracking.runs import runs_of

__all__ = ["OUTCOMES", "baseline_text", "promote", "record_verdict", "restore_baselines", "valid_alias"]

OUTCOMES = "outcomes.json"
"""Artifact of every parent run: its snapshot as of the last time it was logged."""

Say = Callable[[str], None]

_NO_MLFLOW = "there is no MLflow here: set MLFLOW_TRACKING_URI or give --mlflow URI."


def _silent(_: str) -> None:
    pass


def valid_alias(alias: str) -> str:
    """Return the alias if it is valid.

    Raises:
        InvalidInput: It looks like a run id, or MLflow takes no such tag.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", alias) or _is_run(alias):
        raise InvalidInput(
            f"{alias!r} is no name for a baseline: up to 64 letters, digits, `.`, `-` and `_`, and no run id, like "
            "champion.",
            where="--alias",
        )
    return alias


def promote(uri: str | None, sweep: Sweep, alias: str, text: str, *, store_uri: str = "", say: Say = _silent) -> str:
    """Make the logged run of a sweep the baseline of that alias; returns the run's id.

    Arguments:
        uri: MLflow tracking URI.
        sweep: The sweep; its parent run must be there.
        alias: Like ``champion``.
        text: The snapshot, from :func:`workflows.regression.baselines.to_text`.
        store_uri: The sweep's store.
        say: Where notes go.

    Raises:
        InvalidInput: There is no MLflow or no such run.
    """
    tag = _tag(valid_alias(alias))
    with _writing(uri, store_uri, "--alias", say) as client:
        run = _parent(client, sweep, Places.of(str(uri), store_uri))
        if run is None:
            raise InvalidInput(
                f"sweep {sweep.name!r} ({sweep.id}) has no run in MLflow at {uri}: log it with `puregrid track`, or "
                "promote to a file with --to FILE.",
                where="--alias",
            )
        run_id = str(run.info.run_id)
        log_text(client, run, _artifact(alias), text)
        client.set_tag(run_id, tag, datetime.now(UTC).isoformat(timespec="milliseconds"))
        for other in _tagged(client, [run.info.experiment_id], tag):
            if other.info.run_id != run_id:
                client.delete_tag(other.info.run_id, tag)
    return run_id


def baseline_text(uri: str | None, sweep: str | None, name: str, where: str) -> str:
    """Return the snapshot of ``ALIAS``, ``SWEEP/ALIAS`` or a run id.

    Raises:
        InvalidInput: There is no MLflow, no such run, or it has no snapshot.
    """
    client = _reading(uri, where)
    if _is_run(name):
        return _text(client, name, OUTCOMES, where)
    named, _, alias = name.rpartition("/")
    experiment_name = named or sweep
    if experiment_name is None:
        raise InvalidInput(f"an alias belongs to a sweep: write mlflow:SWEEP/{alias}, or give a run id.", where=where)
    found = [experiment.experiment_id for experiment in active_experiments(client, experiment_name)]
    runs = _tagged(client, found, _tag(alias)) if found else []
    if not runs:
        raise InvalidInput(
            f"no run of the sweep {experiment_name!r} is the baseline {alias!r} in MLflow at {uri}: make one with "
            f"`puregrid promote SWEEP.yaml --alias {alias}`.",
            where=where,
        )
    chosen = max(runs, key=lambda run: str(run.data.tags[_tag(alias)]))
    return _text(client, str(chosen.info.run_id), _artifact(alias), where)


def record_verdict(
    uri: str, sweep: Sweep, tags: Mapping[str, str], *, store_uri: str = "", say: Say = _silent
) -> bool:
    """Set tags ``puregrid.check.*`` on a sweep's parent run; returns whether there is one."""
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        return False  # asking would make the database
    with _writing(uri, store_uri, "--mlflow", say) as client:
        run = _parent(client, sweep, Places.of(uri, store_uri))
        if run is None:
            return False
        for name, value in tags.items():
            client.set_tag(run.info.run_id, f"puregrid.check.{name}", redacted(value)[:4000])
    return True


def restore_baselines(client: BoundedClient, sweep: Sweep, run_id: str, folder: Path) -> list[str]:
    """Give the baselines of a sweep that a database has lost to its new run; returns their aliases.

    A baseline is no function of the rows, but its artifact stays in the store when a database is set aside. One whose
    run the database knows is as somebody has left it there.
    """
    lost: dict[str, Path] = {}
    for path in sorted(
        (folder / FOLDER).glob("*/*/artifacts/baselines/*.json"), key=lambda path: path.stat().st_mtime
    ):
        if _is_run(path.parts[-4]) and not _knows(client, path.parts[-4]) and _sweep_of(path) == sweep.name:
            lost[path.stem] = path
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    restored = []
    for alias, path in lost.items():
        if not _tagged(client, [experiment], _tag(alias)):
            log_text(client, run, _artifact(alias), path.read_text(encoding="utf-8"))
            promoted = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            client.set_tag(run_id, _tag(alias), promoted.isoformat(timespec="milliseconds"))
            restored.append(alias)
    return restored


def _knows(client: BoundedClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException:
        return False
    return True


def _sweep_of(path: Path) -> str | None:
    """The name of the sweep that a baseline is of; None of a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("sweep") if isinstance(content, dict) else None


@contextlib.contextmanager
def _writing(uri: str | None, store_uri: str, where: str, say: Say) -> Iterator[BoundedClient]:
    """MLflow, to be written to by this process alone.

    Raises:
        InvalidInput: There is no MLflow.
    """
    if uri is None or uri == "off":
        raise InvalidInput(_NO_MLFLOW, where=where)
    folder = None if not store_uri or "://" in store_uri else Path(store_uri)
    with exclusive(folder, say):
        prepare(uri, folder, say)
        yield BoundedClient(uri)


def _reading(uri: str | None, where: str) -> BoundedClient:
    """MLflow, to be read from; a database is neither made nor set aside for that.

    Raises:
        InvalidInput: There is no MLflow, or a database that cannot be read.
    """
    if uri is None or uri == "off":
        raise InvalidInput(_NO_MLFLOW, where=where)
    path = sqlite_path(uri)
    if path is not None:
        again = "`puregrid track` makes it from the rows of its store"
        if not os.path.lexists(path):
            raise InvalidInput(
                f"there is no MLflow database {path}: {again}, and `puregrid promote` a baseline.", where=where
            )
        wrong = trouble(path, write=False)
        if wrong is not None:
            raise InvalidInput(
                f"the MLflow database {path} cannot be read: {wrong}. {again.capitalize()}.", where=where
            )
    return BoundedClient(uri)


def _parent(client: BoundedClient, sweep: Sweep, places: Places) -> Any:
    for experiment in active_experiments(client, sweep.name, places)[:1]:
        runs = runs_of(client, experiment.experiment_id, sweep.id, sweep.id, old=True)
        return runs[0] if runs else None
    return None


def _tagged(client: BoundedClient, experiments: list[str], tag: str) -> list[Any]:
    return list(client.search_runs(experiments, f"tags.`{tag}` LIKE '%'"))


def _tag(alias: str) -> str:
    return f"puregrid.baseline.{alias}"


def _artifact(alias: str) -> str:
    return f"baselines/{alias}.json"


def _is_run(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{32}", name) is not None


def _text(client: BoundedClient, run_id: str, path: str, where: str) -> str:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")
        except (MlflowException, OSError, ValueError) as error:
            raise InvalidInput(
                f"run {run_id} has no artifact {path} that can be read ({error}). Log the sweep again with "
                "`puregrid run`, or promote it.",
                where=where,
            ) from error
