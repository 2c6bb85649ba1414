"""Certificates, corruptions and image quality as metrics of an MLflow run.

Names begin with the measure, so that MLflow groups their charts: ``acr/sigma 0.25 n 10000``,
``corruption/glass_blur``, ``psnr/output pgd-10 linf eps 0.1``. Ordered values are a line:
``certified by radius/...`` (step: radius x 1,000), ``corruption by severity/...``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from tasks.attacks.budgets import format_eps
from workflows.analysis import Analysis
from workflows.grid.cells import Cell
from workflows.results.quality import MEASURES
from workflows.tables.table import records
from workflows.tracking.run import Point

__all__ = ["Metrics", "beside", "budget", "plain"]


_RADII = (0.25, 0.5, 0.75, 1.0)
"""Radii of which the certified accuracy is a metric of its own, ``certified_0.25``."""


@dataclass
class Metrics:
    """Metrics, and lines by step.

    Arguments:
        at: When the rows behind them were committed, in seconds since 1970; 0 if that is not known.
    """

    at: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, dict[int, Point]] = field(default_factory=dict)


def beside(analysis: Analysis, members: Sequence[Cell], at: float) -> Metrics:
    """Return the metrics of certificates, corruptions and image quality of the cells of one defence.

    Arguments:
        analysis: The sweep's analysis.
        members: The cells.
        at: When the last of their rows were committed, in seconds since 1970; 0 if that is not known.
    """
    metrics = Metrics(at)
    if members[0].certificate is not None:
        ids = {cell.id for cell in members}
        _certified(metrics, _of(analysis.certified, ids), _of(analysis.certified_curves, ids))
        return metrics
    labels = analysis.sweep.labels[members[0].id]
    where = {name: labels[name] for name in ("dataset", "classifier", "defence")} | {"seed": members[0].seed}
    _corrupted(metrics, _where(analysis.corruptions, where))
    _quality(metrics, _where(analysis.quality, where))
    return metrics


def _of(frame: pd.DataFrame, ids: set[str]) -> list[dict[str, Any]]:
    return [] if frame.empty else records(frame[frame["cell"].isin(ids)])


def _where(frame: pd.DataFrame, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    return [] if frame.empty else records(frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1)])


def _way(row: dict[str, Any]) -> str:
    extra = [row[name] for name, usual in (("rule", "one-sided"), ("guarantee", "fixed-n")) if row[name] != usual]
    alpha = [] if row["alpha"] == 0.001 else [f"alpha {row['alpha']:g}"]
    return plain(" ".join([f"sigma {row['sigma']:g} n {row['n']}", *alpha, *extra]))


def _certified(metrics: Metrics, lines: list[dict[str, Any]], curves: list[dict[str, Any]]) -> None:
    for row in lines:
        for name in ("natural", "acr", "abstained", "samples", "bound"):
            metrics.metrics[f"{name}/{_way(row)}"] = float(row[name])
    for row in curves:
        line = metrics.curves.setdefault(f"certified by radius/{_way(row)}", {})
        line[round(1000 * row["radius"])] = Point(float(row["accuracy"]), metrics.at)
        if row["radius"] in _RADII:  # the best sigma for that radius
            name = f"certified_{row['radius']:g}"
            metrics.metrics[name] = max(metrics.metrics.get(name, 0.0), float(row["accuracy"]))


def _corrupted(metrics: Metrics, lines: list[dict[str, Any]]) -> None:
    for row in lines:
        name = row["corruption"] if row["origin"] == "official" else f"{row['corruption']} generated"
        if row["severity"] == "all":
            metrics.metrics[f"corruption/{name}"] = float(row["accuracy"])
        else:
            line = metrics.curves.setdefault(f"corruption by severity/{name}", {})
            line[int(row["severity"])] = Point(float(row["accuracy"]), metrics.at)


def _quality(metrics: Metrics, lines: list[dict[str, Any]]) -> None:
    for row in lines:
        eps = f" {budget(row['eps'])}" if row["eps"] else ""
        for name in MEASURES:
            value = float(row[name])
            if value == value and value != float("inf"):
                metrics.metrics[f"{name}/{row['pair']} {plain(row['threat'])}{eps}"] = value


def budget(eps: float) -> str:
    """``eps 8 of 255``: MLflow makes a group of charts of what stands before a slash."""
    return f"eps {format_eps(eps).replace('/', ' of ')}"


def plain(name: str) -> str:
    """Return a name with the characters that MLflow takes in metrics: ``pgd-20 linf (step_size=0.1)`` has others."""
    return " ".join(re.sub(r"[^\w.\- :]", " ", name).split())
