"""Certificates, corruptions and image quality as metrics of an MLflow run.

Names begin with what is measured, so that MLflow groups their charts: ``acr/sigma 0.25 n 10000``,
``corruption/glass_blur``, ``psnr/output pgd-10 linf eps 0.1``. What has an order is a line:
``certified by radius/...`` (step: radius x 1,000), ``corruption by severity/...``.
"""

from __future__ import annotations

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

__all__ = ["Metrics", "beside", "budget", "plain"]


@dataclass
class Metrics:
    """Metrics, and lines by step."""

    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)


def beside(analysis: Analysis, members: Sequence[Cell]) -> Metrics:
    """What certificates, corruptions and image quality say of some cells, which have one defence.

    Arguments:
        analysis: The sweep's analysis.
        members: The cells.
    """
    found = Metrics()
    if members[0].certificate is not None:
        ids = {cell.id for cell in members}
        _certified(found, _of(analysis.certified, ids), _of(analysis.certified_curves, ids))
        return found
    labels = analysis.sweep.labels[members[0].id]
    where = {name: labels[name] for name in ("dataset", "classifier", "defence")} | {"seed": members[0].seed}
    _corrupted(found, _where(analysis.corruptions, where))
    _quality(found, _where(analysis.quality, where))
    return found


def _of(frame: pd.DataFrame, ids: set[str]) -> list[dict[str, Any]]:
    return [] if frame.empty else records(frame[frame["cell"].isin(ids)])


def _where(frame: pd.DataFrame, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    return [] if frame.empty else records(frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1)])


def _way(row: dict[str, Any]) -> str:
    extra = [row[name] for name, usual in (("rule", "one-sided"), ("guarantee", "fixed-n")) if row[name] != usual]
    alpha = [] if row["alpha"] == 0.001 else [f"alpha {row['alpha']:g}"]
    return plain(" ".join([f"sigma {row['sigma']:g} n {row['n']}", *alpha, *extra]))


def _certified(found: Metrics, lines: list[dict[str, Any]], curves: list[dict[str, Any]]) -> None:
    for row in lines:
        for name in ("natural", "acr", "abstained", "samples", "bound"):
            found.metrics[f"{name}/{_way(row)}"] = float(row[name])
    for row in curves:
        line = found.curves.setdefault(f"certified by radius/{_way(row)}", {})
        line[round(1000 * row["radius"])] = float(row["accuracy"])


def _corrupted(found: Metrics, lines: list[dict[str, Any]]) -> None:
    for row in lines:
        name = row["corruption"] if row["origin"] == "official" else f"{row['corruption']} generated"
        if row["severity"] == "all":
            found.metrics[f"corruption/{name}"] = float(row["accuracy"])
        else:
            line = found.curves.setdefault(f"corruption by severity/{name}", {})
            line[int(row["severity"])] = float(row["accuracy"])


def _quality(found: Metrics, lines: list[dict[str, Any]]) -> None:
    for row in lines:
        eps = f" {budget(row['eps'])}" if row["eps"] else ""
        for name in MEASURES:
            value = float(row[name])
            if value == value and value != float("inf"):
                found.metrics[f"{name}/{row['pair']} {plain(row['threat'])}{eps}"] = value


def budget(eps: float) -> str:
    """``eps 8 of 255``: MLflow makes a group of charts of what stands before a slash."""
    return f"eps {format_eps(eps).replace('/', ' of ')}"


def plain(name: str) -> str:
    """A name with the characters that MLflow takes in metrics: ``pgd-20 linf (step_size=0.1)`` has others."""
    return " ".join(re.sub(r"[^\w.\- :]", " ", name).split())
