"""The answers of a sweep with ``precision: {decide: ...}``."""

from __future__ import annotations

import pandas as pd

from workflows.tables.common import CLASSIFIER, DATASET, EPS, GUARANTEE, PLANNED, SEED
from workflows.tables.table import Column, Table, cells_of, frame_only

__all__ = ["decisions_table"]

_NOTE = (
    "Accuracies, or differences second minus first on the same images, in points, each with its confidence sequence "
    "at 95 % (by betting): each answer is wrong with probability 5 % at most, at whatever image it was given. It is "
    "given after the first chunk at which the interval leaves one answer."
)
_COLUMNS = (
    DATASET,
    SEED,
    CLASSIFIER,
    Column("threat", "threat", "text", "The attack; clean for none."),
    EPS,
    Column("question", "question", "text", "What is to be decided."),
    Column("answer", "answer", "text", "The answer, or that there is none on these images, or not yet."),
    Column("value", "accuracy or difference", "points", "The accuracy, or the difference, that decides."),
    Column("images", "images", "images", "Images that the answer needed, of those that the sweep names."),
    PLANNED,
    GUARANTEE,
    Column("cells", "cells", "text", "Ids of the cells.", when=frame_only),
)


def decisions_table(frame: pd.DataFrame) -> Table | None:
    """Return the table of :func:`workflows.results.decisions.decision_frame`; None where nothing is asked."""
    if frame.empty:
        return None
    return Table("decisions", "Decisions", _COLUMNS, frame, _NOTE, cells=cells_of(frame, "cells"))
