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

from workflows.grid.cells import Cell, Sweep
from workflows.tables.columns import format_eps
from workflows.tables.quality import MEASURES
from workflows.tables.sections import Section

__all__ = ["SectionMetrics", "section_metrics"]


@dataclass
class SectionMetrics:
    """Metrics, and lines by step."""

    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)


def section_metrics(further: Sequence[Section], sweep: Sweep, members: Sequence[Cell]) -> SectionMetrics:
    """What the tables say of some cells, which have one defence.

    Arguments:
        further: The tables.
        sweep: The sweep.
        members: The cells.
    """
    frames = {section.name: section.frame for section in further}
    found = SectionMetrics()
    if members[0].certificate is not None:
        ids = {cell.id for cell in members}
        _certified(found, *(_of(frames.get(name), ids) for name in ("certified", "certified_curves")))
        return found
    labels = sweep.labels[members[0].id]
    where = {name: labels[name] for name in ("dataset", "classifier", "defence")} | {"seed": members[0].seed}
    _corrupted(found, _where(frames.get("corruptions"), where))
    _quality(found, _where(frames.get("quality"), where))
    return found


def _of(frame: pd.DataFrame | None, ids: set[str]) -> list[dict[str, Any]]:
    return [] if frame is None else _records(frame[frame["cell"].isin(ids)])


def _where(frame: pd.DataFrame | None, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    if frame is None:
        return []
    return _records(frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1)])


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _way(row: dict[str, Any]) -> str:
    extra = [row[name] for name, usual in (("rule", "one-sided"), ("guarantee", "fixed-n")) if row[name] != usual]
    alpha = [] if row["alpha"] == 0.001 else [f"alpha {row['alpha']:g}"]
    return _plain(" ".join([f"sigma {row['sigma']:g} n {row['n']}", *alpha, *extra]))


def _certified(found: SectionMetrics, lines: list[dict[str, Any]], curves: list[dict[str, Any]]) -> None:
    for row in lines:
        for name in ("natural", "acr", "abstained", "samples", "bound"):
            found.metrics[f"{name}/{_way(row)}"] = float(row[name])
    for row in curves:
        line = found.curves.setdefault(f"certified by radius/{_way(row)}", {})
        line[round(1000 * row["radius"])] = float(row["accuracy"])


def _corrupted(found: SectionMetrics, lines: list[dict[str, Any]]) -> None:
    for row in lines:
        name = row["corruption"] if row["origin"] == "official" else f"{row['corruption']} generated"
        if row["severity"] == "all":
            found.metrics[f"corruption/{name}"] = float(row["accuracy"])
        else:
            line = found.curves.setdefault(f"corruption by severity/{name}", {})
            line[int(row["severity"])] = float(row["accuracy"])


def _quality(found: SectionMetrics, lines: list[dict[str, Any]]) -> None:
    for row in lines:
        budget = f" eps {format_eps(row['eps']).replace('/', ' of ')}" if row["eps"] else ""
        for name in MEASURES:
            value = float(row[name])
            if value == value and value != float("inf"):
                found.metrics[f"{name}/{row['pair']} {_plain(row['threat'])}{budget}"] = value


def _plain(name: str) -> str:
    """A name with the characters that MLflow takes in metrics."""
    return " ".join(re.sub(r"[^\w.\- :]", " ", name).split())
