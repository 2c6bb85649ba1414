"""Log the results of a sweep to MLflow.

One parent run per sweep, one child per (data set, classifier, defence, seed), one model per classifier and defence.
Everything logged is recomputed from rows, by the driver alone; running the sweep again finds the runs by their ids
and updates what changed, so that nothing is there twice. The default store is SQLite in the folder of the results,
since MLflow refuses file stores.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from defense.spec import digest
from workflows.analysis import Analysis
from workflows.audit import counts, rules_on
from workflows.formats import render
from workflows.formats.machine import csv
from workflows.grid.load import Cell, Sweep
from workflows.monitoring.mlflow_client import BoundedClient, named_uri
from workflows.monitoring.mlflow_uri import is_own
from workflows.results.certificates import family
from workflows.tables.table import records
from workflows.tracking.aliases import OUTCOMES, restore_baselines
from workflows.tracking.experiments import Places
from workflows.tracking.metrics import beside, budget, plain
from workflows.tracking.models import Model
from workflows.tracking.run import Point, Run
from workflows.tracking.runs import RunLog
from workflows.tracking.tables import (
    ACCURACY,
    IMAGES,
    LISTED,
    MOST_LINES,
    accuracy_table,
    images_table,
    listed,
    outcome_lines,
)

__all__ = ["default_uri", "track"]

_READINGS = ("avg", "worst")
"""Readings of the draws that are metrics; the table of accuracies has all of them, with their intervals."""

_NOTE = 7000
"""Characters of a description, of which MLflow takes somewhat more."""

_RUN = ("utilisation", "units_per_second", "images_per_second", "wall_seconds", "workers_at_most")
_COMBINED = ("lowest", "selected", "fixed_aa_mean", "fixed_aa_any")

Times = dict[str, tuple[float, float] | None]
"""When each cell's first unit began and its last one ended."""


def default_uri(store_uri: str) -> str | None:
    """Return the tracking URI for a store: the environment's, else SQLite beside local results, else none."""
    environment = named_uri(os.environ.get("MLFLOW_TRACKING_URI") or None, "MLFLOW_TRACKING_URI")
    if environment:
        return environment
    return None if "://" in store_uri else f"sqlite:///{Path(store_uri) / 'mlflow.db'}"


def track(
    uri: str,
    analysis: Analysis,
    *,
    versions: Mapping[str, str] | None = None,
    outcomes: str | None = None,
    complete: bool = True,
    run: Mapping[str, Any] | None = None,
    pages: Mapping[str, str] | None = None,
) -> str:
    """Log or update the runs of a sweep; returns the parent's run id.

    The parent has every table as an artifact, unrounded as CSV and JSON and with its notes as Markdown. A child has
    the metrics of its cells, the few that runs are compared by (``clean``, ``strongest``, ``worst_of_m``,
    ``certified_0.25``) first, and where several attacks met them those of all together:
    ``fixed_aa_mean/3 attacks linf eps 0.1``. Their intervals, and what became of each image, are tables of the child
    (:mod:`workflows.tracking.tables`). Certificates of a defence are a child of their own, corruptions and image
    quality metrics of the defence's child. Runs last from the beginning of their first unit to the end of their last.

    Of the auditor's findings the parent gets ``findings.json`` and how many there are of each severity
    (``findings/error``), each child a tag with the rules that fired on its cells; nothing without an audit.

    Arguments:
        uri: Tracking URI.
        analysis: The results of the sweep. Artifacts lie in its store, if that is a folder.
        versions: Versions of what computed it.
        outcomes: A snapshot as JSON, by which runs are compared image by image.
        complete: Whether every unit of the sweep is committed; a parent that is not counts as failed.
        run: The record of the run, whose rates and utilisation the parent gets; a run that had nothing to compute
            leaves those of the one before.
        pages: Further artifacts of the parent by path: the report and its figures.
    """
    sweep, store_uri = analysis.sweep, analysis.results.store.uri
    robustness = analysis.robustness
    client, places = BoundedClient(uri), Places.of(uri, store_uri)
    complete = complete and (robustness.empty or bool((robustness["images"] == robustness["planned"]).all()))
    log = RunLog(client, sweep, places)
    times: Times = {cell.id: analysis.results.times(cell) for cell in sweep.cells}
    texts = dict(pages or {}) if outcomes is None else {**(pages or {}), OUTCOMES: outcomes}
    parent = log.write(
        _parent(analysis, versions or {}, texts, complete, run, _span(times, times)),
        _children(analysis, complete, times),
    )
    if places.store is not None and is_own(uri, places.store):
        restore_baselines(client, sweep, parent, places.store)
    if log.another_driver_won():
        return track(uri, analysis, versions=versions, outcomes=outcomes, complete=complete, run=run, pages=pages)
    return parent


def _parent(
    analysis: Analysis,
    versions: Mapping[str, str],
    further: Mapping[str, str],
    complete: bool,
    run: Mapping[str, Any] | None,
    times: tuple[float, float] | None,
) -> Run:
    sweep, cost, findings = analysis.sweep, analysis.cost, analysis.audited
    markdown = render(analysis, "md")
    metrics = {
        "cost/seconds": float(cost["seconds"].sum()),
        "cost/denoiser_evaluations": float(cost["denoiser_evaluations"].sum()),
    }
    if run is not None and run["units"]:
        metrics |= {f"run/{name}": float(run[name]) for name in _RUN}
    texts = {
        "sweep.yaml": sweep.text,
        **{f"tables/{table.name}.csv": csv(table, findings) for table in analysis.tables},
        "tables/tables.json": render(analysis, "json"),
        "tables/tables.md": markdown,
        **further,
    }
    if findings is not None:
        texts["findings.json"] = json.dumps([finding.as_dict() for finding in findings], indent=1) + "\n"
        metrics |= {f"findings/{severity}": float(n) for severity, n in counts(findings).items()}
    return Run(
        sweep.id,
        sweep.name,
        complete,
        tags={
            "puregrid.complete": str(complete).lower(),
            **{f"version.{name}": version for name, version in versions.items()},
            "mlflow.note.content": _note(analysis, markdown),
        },
        params={"cells": len(sweep.cells), "sweep": sweep.name},
        metrics=metrics,
        texts=texts,
        times=times,
    )


def _span(times: Times, cells: Iterable[str]) -> tuple[float, float] | None:
    """From the beginning of the first of these cells to the end of the last; None if no commit tells."""
    known = [span for cell in cells if (span := times[cell]) is not None]
    return (min(begin for begin, _ in known), max(end for _, end in known)) if known else None


def _children(analysis: Analysis, complete: bool, times: Times) -> list[Run]:
    """A run for the cells that differ in attack and budget alone."""
    sweep, findings = analysis.sweep, analysis.audited
    rows, together = {row["cell"]: row for row in records(analysis.robustness)}, records(analysis.combined)
    by_image = outcome_lines(analysis.results, sweep.cells) <= MOST_LINES
    runs = []
    for key, members in _groups(sweep).items():
        cell, measured = members[0], [rows[member.id] for member in members if member.id in rows]
        ids = {member.id for member in members}
        span = _span(times, ids)
        further = beside(analysis, members, 0.0 if span is None else span[1])
        metrics = {**_headline(measured), **_metrics(measured), **_together(together, ids), **further.metrics}
        tables = {}
        if measured:
            tables[ACCURACY] = accuracy_table(measured, _of(together, ids))
            if by_image:
                tables[IMAGES] = images_table(analysis.results, members)
        tags = {} if findings is None else {"puregrid.findings": rules_on(findings, ids) or "none"}
        if tables:
            tags[LISTED] = listed(tables)
        runs.append(
            Run(
                digest(sweep.id + key),
                _name(sweep, cell),
                complete or (bool(measured) and all(row["images"] == row["planned"] for row in measured)),
                tags=tags,
                params=_params(cell),
                metrics=metrics,
                curves={**_curves(measured, times), **further.curves},
                texts=tables,
                cell=cell,
                model=_model(sweep, cell),
                headline=frozenset(name for name in metrics if "/" not in name),
                times=span,
            )
        )
    return runs


def _groups(sweep: Sweep) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        groups.setdefault(_group(cell), []).append(cell)
    return groups


def _name(sweep: Sweep, cell: Cell) -> str:
    """``resnet56 · diffpure t*=50``; for certificates without t*, which follows sigma."""
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
        *([] if stage.until is None else [stage.until]),
    ]
    return json.dumps(parts)


def _model(sweep: Sweep, cell: Cell) -> Model:
    """What the run evaluates: its parameters without the images and the seed."""
    params = {name: str(v) for name, v in _params(cell).items() if name not in ("dataset", "images", "seed")}
    key = digest(
        json.dumps([cell.classifier.id, family(cell)[1] if cell.certificate else cell.defence.purifier.id, params])
    )
    return Model(key, _name(sweep, cell), params)


def _params(cell: Cell) -> dict[str, Any]:
    purifier = {f"purifier.{k}": v for k, v in cell.defence.purifier.identity().items() if k != "denoiser"}
    denoiser = cell.defence.purifier.parameter("denoiser")
    level = cell.defence.purifier.noise_level
    if cell.certificate is not None:  # t* follows sigma: it belongs to a cell, not to the child
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
        **cell.defence.answers,
        "seed": cell.seed,
    }


def _headline(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the few that MLflow's page compares runs by: ``clean``, ``strongest`` and ``worst_of_m``.

    The latter two are the lowest Avg and Wor-M under any attack and budget of the sweep.
    """
    attacked = [row for row in rows if row["attack"] != "clean"]
    found = {
        "clean": [row.get("avg") for row in rows if row["attack"] == "clean"],
        "strongest": [row.get("avg") for row in attacked],
        "worst_of_m": [row.get("worst") for row in attacked],
    }
    known = {name: [v for v in values if isinstance(v, float) and v == v] for name, values in found.items()}
    return {name: min(values) for name, values in known.items() if values}


def _metrics(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """``avg/pgd-20 linf eps 0.1``; the first part groups charts."""
    metrics: dict[str, float] = {}
    for row in rows:
        where = "clean" if row["attack"] == "clean" else f"{plain(row['attack'])} {budget(row['eps'])}"
        for name in _READINGS:
            value = row.get(name)
            if isinstance(value, float) and value == value:
                metrics[f"{name}/{where}"] = value
    return metrics


def _of(combined: Iterable[dict[str, Any]], cells: set[str]) -> list[dict[str, Any]]:
    """The lines of several attacks together that are of these cells."""
    return [row for row in combined if cells.issuperset(row["cells"])]


def _together(combined: Iterable[dict[str, Any]], cells: set[str]) -> dict[str, float]:
    """Return the metrics of several attacks on these cells."""
    metrics: dict[str, float] = {}
    for row in _of(combined, cells):
        where = f"{row['attacks']} attacks {row['norm']} {budget(row['eps'])}"
        for name in _COMBINED:
            value = row.get(name)
            if isinstance(value, float) and value == value:
                metrics[f"{name}/{where}"] = value
    return metrics


def _curves(rows: list[dict[str, Any]], times: Times) -> dict[str, dict[int, Point]]:
    """Avg by budget: ``avg by eps/pgd-20 linf``, whose step is eps x 10,000; clean is step 0.

    MLflow draws a metric with several steps as a line, so the runs of a sweep become one figure.
    """
    known = [row for row in rows if isinstance(row.get("avg"), float) and row["avg"] == row["avg"]]
    points = {row["cell"]: Point(row["avg"], (times[row["cell"]] or (0.0, 0.0))[1]) for row in known}
    clean = dict((0, points[row["cell"]]) for row in known if row["attack"] == "clean")  # noqa: C402 - one or none
    curves: dict[str, dict[int, Point]] = {}
    for row in known:
        if row["attack"] != "clean":
            line = curves.setdefault(f"avg by eps/{plain(row['attack'])}", dict(clean))
            line[round(10_000 * row["eps"])] = points[row["cell"]]
    return curves


def _note(analysis: Analysis, markdown: str) -> str:
    """Return the tables as the run's description; if they are longer than MLflow takes the leaderboard alone."""
    if len(markdown) < _NOTE:
        return markdown
    where = "The other tables are in the artifact tables/tables.md."
    names = [table.name for table in analysis.tables]
    first = render(analysis, "md", only="leaderboard", findings=False) if "leaderboard" in names else ""
    return f"{first}\n{where}" if first and len(first) < _NOTE else where.replace("other ", "")
