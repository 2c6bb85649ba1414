"""Baselines and verdicts in MLflow: which run is the baseline of a sweep, and the verdict of a check.

Promotion copies a snapshot into the sweep's parent run (artifact ``baselines/ALIAS.json``) and moves the alias there:
the tag ``puregrid.baseline.ALIAS``, whose value is the time. The artifact is written first, then the tag, then the
tag of the old run is removed: after a stop half way, two runs have the tag and the later time counts.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from defense.errors import InvalidInput
from workflows.grid.load import Sweep
from workflows.monitoring.mlflow_client import BoundedClient
from workflows.tracking.experiments import active_experiment

__all__ = ["OUTCOMES", "baseline_text", "promote", "record_verdict", "valid_alias"]

OUTCOMES = "outcomes.json"
"""Artifact of every parent run: its snapshot as of the last time it was logged."""

_NO_MLFLOW = "there is no MLflow here: set MLFLOW_TRACKING_URI or give --mlflow URI."


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


def promote(uri: str | None, sweep: Sweep, alias: str, text: str) -> str:
    """Make the logged run of a sweep the baseline of that alias; returns the run's id.

    Arguments:
        uri: MLflow tracking URI.
        sweep: The sweep; its parent run must be there.
        alias: Like ``champion``.
        text: The snapshot, from :func:`workflows.regression.baselines.to_text`.

    Raises:
        InvalidInput: There is no MLflow or no such run.
    """
    client = _client(uri, "--alias")
    run = _parent(client, sweep)
    if run is None:
        raise InvalidInput(
            f"sweep {sweep.name!r} ({sweep.id}) has no run in MLflow at {uri}: log it with `puregrid run` (again, if "
            "it ran with `--mlflow off`), or promote to a file with --to FILE.",
            where="--alias",
        )
    tag = _tag(valid_alias(alias))
    run_id = str(run.info.run_id)
    client.log_text(run_id, text, _artifact(alias))
    client.set_tag(run_id, tag, datetime.now(UTC).isoformat(timespec="milliseconds"))
    for other in _tagged(client, run.info.experiment_id, tag):
        if other.info.run_id != run_id:
            client.delete_tag(other.info.run_id, tag)
    return run_id


def baseline_text(uri: str | None, sweep: str | None, name: str, where: str) -> str:
    """Return the snapshot of ``ALIAS``, ``SWEEP/ALIAS`` or a run id.

    Raises:
        InvalidInput: There is no MLflow, no such run, or it has no snapshot.
    """
    client = _client(uri, where)
    if _is_run(name):
        return _text(client, name, OUTCOMES, where)
    named, _, alias = name.rpartition("/")
    experiment_name = named or sweep
    if experiment_name is None:
        raise InvalidInput(f"an alias belongs to a sweep: write mlflow:SWEEP/{alias}, or give a run id.", where=where)
    experiment = active_experiment(client, experiment_name)
    runs = [] if experiment is None else _tagged(client, experiment.experiment_id, _tag(alias))
    if not runs:
        raise InvalidInput(
            f"no run of the sweep {experiment_name!r} is the baseline {alias!r} in MLflow at {uri}: make one with "
            f"`puregrid promote SWEEP.yaml --alias {alias}`.",
            where=where,
        )
    chosen = max(runs, key=lambda run: str(run.data.tags[_tag(alias)]))
    return _text(client, str(chosen.info.run_id), _artifact(alias), where)


def record_verdict(uri: str, sweep: Sweep, tags: Mapping[str, str]) -> bool:
    """Set tags ``puregrid.check.*`` on a sweep's parent run; returns whether there is one."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return False  # asking would make the database
    client = _client(uri, "--mlflow")
    run = _parent(client, sweep)
    if run is None:
        return False
    for name, value in tags.items():
        client.set_tag(run.info.run_id, f"puregrid.check.{name}", value[:4000])
    return True


def _client(uri: str | None, where: str) -> BoundedClient:
    if uri is None or uri == "off":
        raise InvalidInput(_NO_MLFLOW, where=where)
    return BoundedClient(uri)


def _parent(client: BoundedClient, sweep: Sweep) -> Any:
    experiment = active_experiment(client, sweep.name)
    if experiment is None:
        return None
    runs = client.search_runs([experiment.experiment_id], f"tags.`puregrid.key` = '{sweep.id}'", max_results=1)
    return runs[0] if runs else None


def _tagged(client: BoundedClient, experiment: str, tag: str) -> list[Any]:
    return list(client.search_runs([experiment], f"tags.`{tag}` LIKE '%'"))


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
