"""The cost of a sweep: network evaluations and seconds, one line per stage."""

from __future__ import annotations

import pandas as pd

from workflows.tables.common import CLASSIFIER, EPS
from workflows.tables.table import Column, Row, Table

__all__ = ["cost_table"]


def _defence(row: Row) -> str:
    return row["defence"] or "(static)"


def _rate(row: Row) -> str:
    rate = row["images_per_second"]
    return f"{rate:.1f}" if rate and rate == rate else "-"


_COLUMNS = (
    Column("stage", "stage", "text", "Kind of the stage."),
    CLASSIFIER,
    Column(
        "defence", "defence", "text", "The purifier; empty where the stage does not depend on one.", show=_defence
    ),
    Column("attack", "attack", "text", "The attack, corruption or certificate."),
    EPS,
    Column("images", "images", "integer", "Images that are committed."),
    Column("denoiser_evaluations", "denoiser evals", "count", "Evaluations of denoisers, from rows."),
    Column("classifier_evaluations", "classifier evals", "count", "Evaluations of classifiers, from rows."),
    Column("seconds", "seconds", "seconds", "Compute time of one worker, from commits."),
    Column("images_per_second", "images/s", "number", "Images of these in a second.", unit="1/s", show=_rate),
)


def cost_table(frame: pd.DataFrame) -> Table | None:
    """Return the table of ``Results.cost``; None without stages."""
    if frame.empty:
        return None
    note = "Network evaluations from rows; seconds of one worker's compute from commits."
    return Table("cost", "Cost", _COLUMNS, frame, note, groups=())
