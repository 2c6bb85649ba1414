"""MLflow: what a sweep found, for people who look at runs.

One parent run a sweep, one child a (data set, classifier, defence, seed). Everything logged is recomputed from
rows, by the driver alone; running the sweep again finds the runs by their ids and updates what changed, so that
nothing is there twice. The default store is SQLite in the folder of the results, since MLflow refuses file stores.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from defense.spec import digest
from workflows.audit import Finding, counts, rules_on
from workflows.grid.load import Cell, Sweep
from workflows.tables.certified import family
from workflows.tables.columns import format_eps
from workflows.tables.render import render
from workflows.tables.sections import Section
from workflows.tracking.aliases import OUTCOMES
from workflows.tracking.metrics import section_metrics

__all__ = ["default_uri", "track"]

_STATISTICS = ("avg", "worst", "vote", "fixed", "accuracy")
_RUN = ("utilisation", "units_per_second", "images_per_second", "wall_seconds", "workers_at_most")
_COMBINED = ("lowest", "selected", "fixed_aa_mean", "fixed_aa_any")


def default_uri(store_uri: str) -> str | None:
    """Tracking URI for a store: the environment's, else SQLite beside local results, else none."""
    said = os.environ.get("MLFLOW_TRACKING_URI")
    if said:
        return said
    return None if "://" in store_uri else f"sqlite:///{Path(store_uri) / 'mlflow.db'}"


def track(
    uri: str,
    store_uri: str,
    sweep: Sweep,
    robustness: pd.DataFrame,
    cost: pd.DataFrame,
    versions: Mapping[str, str],
    findings: Sequence[Finding] | None = None,
    combined: pd.DataFrame | None = None,
    ladders: pd.DataFrame | None = None,
    further: Sequence[Section] = (),
    outcomes: str | None = None,
    complete: bool = True,
    run: Mapping[str, Any] | None = None,
) -> str:
    """Log or update the runs of a sweep; returns the parent's run id.

    A child has the metrics of its cells, and where ``combined`` (``Results.combined``) has several attacks on them,
    those of all together: ``fixed_aa_mean/3 attacks linf eps 0.1``. Certificates of a defence are a child of
    their own, corruptions and image quality metrics of the defence's child. ``ladders`` is in the parent's tables,
    ``outcomes`` (a snapshot as JSON) an artifact of it, by which runs are compared image by image.

    Of the auditor's findings the parent gets ``findings.json`` and how many there are of each severity
    (``findings/error``), each child a tag with the rules that fired on its cells; nothing if ``findings`` is None.
    ``complete`` says whether every unit of the sweep is committed; a parent that is not counts as failed.
    ``run`` is the record of the run, whose rates and utilisation the parent gets; a run that had nothing to compute
    leaves those of the one before.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    log = _Log(MlflowClient(tracking_uri=uri), sweep, None if "://" in store_uri else Path(store_uri))
    complete = complete and (robustness.empty or bool((robustness["images"] == robustness["planned"]).all()))
    parent = log.run(sweep.id, sweep.name, None)
    log.tags(parent, {"puregrid.complete": str(complete).lower(), **{f"version.{k}": v for k, v in versions.items()}})
    log.params(parent, {"cells": len(sweep.cells), "sweep": sweep.name})
    every = {"findings": findings, "combined": combined, "ladders": ladders, "further": further}
    markdown = render(robustness, cost, "md", title=sweep.name, **every)  # type: ignore[arg-type]
    log.tags(parent, {"mlflow.note.content": _note(markdown)})
    seconds = float(cost["seconds"].sum())
    log.metrics(
        parent, {"cost/seconds": seconds, "cost/denoiser_evaluations": float(cost["denoiser_evaluations"].sum())}
    )
    if run is not None and run["units"]:
        log.metrics(parent, {f"run/{name}": float(run[name]) for name in _RUN})
    log.texts(
        parent,
        {
            "sweep.yaml": sweep.text,
            "tables/robustness.csv": render(robustness, cost, "csv", findings=findings),
            "tables/tables.json": render(robustness, cost, "json", **every),  # type: ignore[arg-type]
            "tables/tables.md": markdown,
        },
    )
    if outcomes is not None:
        log.texts(parent, {OUTCOMES: outcomes})
    if findings is not None:
        log.texts(parent, {"findings.json": json.dumps([each.as_dict() for each in findings], indent=1) + "\n"})
        log.metrics(parent, {f"findings/{severity}": float(n) for severity, n in counts(findings).items()})
    rows = dict(zip((cell.id for cell in sweep.adversarial), robustness.to_dict("records"), strict=True))
    groups: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        groups.setdefault(_group(cell), []).append(cell)
    for key, members in groups.items():
        cell, own = members[0], [{str(k): v for k, v in rows[m.id].items()} for m in members if m.id in rows]
        ids = {member.id for member in members}
        child = log.run(digest(sweep.id + key), _name(sweep, cell), parent)
        log.params(child, _params(cell))
        log.dataset(child, cell)
        if findings is not None:
            log.tags(child, {"puregrid.findings": rules_on(findings, ids) or "none"})
        beside = section_metrics(further, sweep, members)
        log.metrics(child, {**_metrics(own), **_together(combined, ids), **beside.metrics})
        log.curves(child, {**_curves(own), **beside.curves})
        log.finish(child, complete or (bool(own) and all(row["images"] == row["planned"] for row in own)))
    log.finish(parent, complete)
    return parent


def _name(sweep: Sweep, cell: Cell) -> str:
    """``resnet56 · diffpure t*=50``; of certificates without the depth, which follows sigma."""
    labels = sweep.labels[cell.id]
    if cell.certificate is not None:
        return f"{labels['classifier']} · {family(cell)[0]} · certificates"
    return f"{labels['classifier']} · {labels['defence']}"


def _group(cell: Cell) -> str:
    if cell.certificate is not None:
        smoothed = cell.certify.smoothed
        chunks = [chunk.name for chunk in cell.images.chunks]
        of = [smoothed.dataset.id, chunks, smoothed.classifier.id, family(cell)[1], smoothed.base, smoothed.votes]
        return json.dumps(["certificates", *of, smoothed.seed])
    stage = cell.evaluate
    parts = [
        stage.dataset.id,
        [chunk.name for chunk in cell.images.chunks],
        stage.classifier.id,
        stage.purifier.id,
        stage.draws,
        cell.defence.aggregation,
        stage.seed,
    ]
    return json.dumps(parts)


def _params(cell: Cell) -> dict[str, Any]:
    purifier = {f"purifier.{k}": v for k, v in cell.defence.purifier.identity().items() if k != "denoiser"}
    denoiser = cell.defence.purifier.parameter("denoiser")
    level = cell.defence.purifier.noise_level
    if cell.certificate is not None:  # depths follow sigma: they are of a cell, not of the child
        level = None
        purifier = {k: v for k, v in purifier.items() if k not in ("purifier.t_star", "purifier.steps")}
        purifier["base"] = cell.certify.smoothed.base
    return {
        "dataset": cell.images.dataset.label(),
        "images": cell.images.count,
        "classifier": cell.classifier.classifier,
        "classifier.sha256": cell.classifier.sha256,
        **purifier,
        **({} if denoiser is None else {f"denoiser.{k}": v for k, v in denoiser.identity().items()}),
        **({} if level is None else {"abar": level.abar, "sigma_eq": level.sigma_eq}),
        "draws": cell.defence.draws,
        "aggregation": cell.defence.aggregation,
        "seed": cell.seed,
    }


def _metrics(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """``avg/pgd-20 linf eps 0.1``, ``interval/avg pgd-20 linf eps 0.1 low``; the first part groups charts."""
    found: dict[str, float] = {}
    for row in rows:
        where = (
            "clean"
            if row["attack"] == "clean"
            else f"{_plain(row['attack'])} eps {format_eps(row['eps']).replace('/', ' of ')}"
        )
        for name in _STATISTICS:
            keys = {f"{name}/{where}": name}
            keys |= {f"interval/{name} {where} {end}": f"{name}_{end}" for end in ("low", "high")}
            for key, column in keys.items():
                value = row.get(column)
                if isinstance(value, float) and value == value:
                    found[key] = value
        found[f"images/{where}"] = float(row["images"])
    return found


def _together(combined: pd.DataFrame | None, cells: set[str]) -> dict[str, float]:
    """Metrics of several attacks on these cells."""
    found: dict[str, float] = {}
    for row in [] if combined is None else combined.to_dict("records"):
        if not cells.issuperset(row["cells"]):
            continue
        where = f"{row['attacks']} attacks {row['norm']} eps {format_eps(row['eps']).replace('/', ' of ')}"
        for name in _COMBINED:
            value = row.get(name)
            if isinstance(value, float) and value == value:
                found[f"{name}/{where}"] = value
                found |= {f"interval/{name} {where} {end}": row[f"{name}_{end}"] for end in ("low", "high")}
    return found


def _curves(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Avg by budget: ``avg by eps/pgd-20 linf``, whose step is eps x 10,000; clean is step 0.

    MLflow draws a metric with several steps as a line, so the runs of a sweep become one figure.
    """
    known = [row for row in rows if isinstance(row.get("avg"), float) and row["avg"] == row["avg"]]
    clean = dict((0, row["avg"]) for row in known if row["attack"] == "clean")  # noqa: C402 - one key or none
    found: dict[str, dict[int, float]] = {}
    for row in known:
        if row["attack"] != "clean":
            line = found.setdefault(f"avg by eps/{_plain(row['attack'])}", dict(clean))
            line[round(10_000 * row["eps"])] = row["avg"]
    return found


def _plain(name: str) -> str:
    """A name with the characters that MLflow takes in metrics: ``pgd-20 linf (step_size=0.1)`` has others."""
    return " ".join(re.sub(r"[^\w.\- :]", " ", name).split())


def _note(markdown: str) -> str:
    """The tables as the run's description, or where to find them if they are longer than MLflow takes."""
    return markdown if len(markdown) < 7000 else "The tables are in the artifact tables/tables.md."


class _Log:
    """Writes only what differs from what a run has."""

    def __init__(self, client: Any, sweep: Sweep, folder: Path | None) -> None:
        self._client = client
        self._sweep = sweep
        experiment = client.get_experiment_by_name(sweep.name)
        if experiment is None:
            location = None if folder is None else (folder / "mlartifacts" / sweep.name).absolute().as_uri()
            # The kind makes MLflow open the page of runs and charts, not that of language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            self._experiment = client.create_experiment(sweep.name, artifact_location=location, tags=kind)
        else:
            self._experiment = experiment.experiment_id

    def run(self, key: str, name: str, parent: str | None) -> str:
        """The run with this key, made if there is none."""
        found = self._client.search_runs([self._experiment], f"tags.`puregrid.key` = '{key}'", max_results=1)
        if found:
            self._client.set_terminated(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        tags = {"puregrid.key": key, "puregrid.sweep_id": self._sweep.id}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        return str(self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id)

    def tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags that differ."""
        have = self._client.get_run(run).data.tags
        for key, value in tags.items():
            if have.get(key) != value:
                self._client.set_tag(run, key, value)

    def params(self, run: str, params: Mapping[str, Any]) -> None:
        """Log parameters that are not there; those of one key never change, it is made of them."""
        from mlflow.entities import Param

        have = self._client.get_run(run).data.params
        new = [Param(key, str(value)) for key, value in params.items() if key not in have]
        self._client.log_batch(run, params=new)

    def metrics(self, run: str, metrics: Mapping[str, float]) -> None:
        """Log metrics whose value differs from the last: MLflow appends, so equal ones would pile up."""
        import time

        from mlflow.entities import Metric

        have = self._client.get_run(run).data.metrics
        now = int(time.time() * 1000)
        new = [Metric(key, value, now, 0) for key, value in metrics.items() if have.get(key) != value]
        self._client.log_batch(run, metrics=new)

    def curves(self, run: str, curves: Mapping[str, Mapping[int, float]]) -> None:
        """Log points of stepped metrics that are not in their history."""
        for key, line in curves.items():
            have = {point.step: point.value for point in self._client.get_metric_history(run, key)}
            for step, value in sorted(line.items()):
                if have.get(step) != value:
                    self._client.log_metric(run, key, value, step=step)

    def texts(self, run: str, texts: Mapping[str, str]) -> None:
        """Write artifacts that differ."""
        have = self._client.get_run(run).data.tags
        for path, text in texts.items():
            tag = f"puregrid.artifact.{path}"
            if have.get(tag) != digest(text):
                self._client.log_text(run, text, path)
                self._client.set_tag(run, tag, digest(text))

    def dataset(self, run: str, cell: Cell) -> None:
        """The data set with its digest and the image ids' digest, as the run's input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if self._client.get_run(run).inputs.dataset_inputs:
            return
        config = cell.images.dataset
        images = digest("".join(chunk.name for chunk in cell.images.chunks))
        entity = Dataset(
            name=config.label(),
            digest=(config.digest or "")[:16],
            source_type="puregrid",
            source=json.dumps(config.identity()),
        )
        # MLflow keeps one entity per name and digest: which images of it a run used is said with the run's input.
        tags = {"mlflow.data.context": "evaluation", "image_ids_digest": images, "images": str(cell.images.count)}
        self._client.log_inputs(run, [DatasetInput(entity, [InputTag(key, value) for key, value in tags.items()])])

    def finish(self, run: str, complete: bool) -> None:
        """End a run; one with missing units counts as failed until it is complete."""
        self._client.set_terminated(run, status="FINISHED" if complete else "FAILED")
