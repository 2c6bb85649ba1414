"""What was computed how far, and at what cost: the answers of ``decide``, the ablation of ``converge``, seconds."""

import pandas as pd

from workflows.tables.common import (
    CELL,
    CLASSIFIER,
    DATASET,
    DEFENCE,
    EPS,
    GUARANTEE,
    PLANNED,
    SEED,
    intervals_note,
    with_guarantee,
)
from workflows.tables.table import Column, Row, Table, cells_of, frame_only, missing

__all__ = ["AXIS_NAMES", "convergence_table", "cost_table", "decisions_table"]

_DECISIONS_NOTE = (
    "Accuracies, or differences second minus first on the same images, in points, each with its confidence sequence "
    "at 95 % (by betting): each answer is wrong with probability 5 % at most, at whatever image it was given. It is "
    "given after the first chunk at which the interval leaves one answer."
)
_DECISIONS = (
    DATASET,
    SEED,
    CLASSIFIER,
    Column("threat", "threat", "text", "The attack; clean for none."),
    EPS,
    Column("question", "question", "text", "What is to be decided."),
    Column("answer", "answer", "text", "The answer, or that there is none on these images, or not yet."),
    Column("value", "accuracy or difference", "points", "The accuracy, or the difference, that decides."),
    Column("images", "images", "images", "Images that the answer needed, of those that the sweep names.", drop=1),
    PLANNED,
    GUARANTEE,
    Column("cells", "cells", "text", "Ids of the cells.", when=frame_only),
)


def decisions_table(frame: pd.DataFrame) -> Table | None:
    """Return the table of :func:`workflows.results.decisions.decision_frame`; None where nothing is asked."""
    if frame.empty:
        return None
    return Table("decisions", "Decisions", _DECISIONS, frame, _DECISIONS_NOTE, cells=cells_of(frame, "cells"))


AXIS_NAMES = {"steps": "steps", "eot": "EOT draws", "restarts": "restarts", "select": "selection draws"}
"""What tables and figures call what is doubled."""

_CONVERGENCE_NOTE = (
    "Each is doubled until twice in a row, and over both together, accuracy changes by less than the "
    "half-width of its interval and not significantly (paired), or up to its largest value (not converged). Kept is "
    "the smallest value to which the lowest accuracy is no such change; the next is doubled from there. All are "
    "judged on the same images and fresh draws. One that is *warm of n* goes on from the worst image of those before."
)


def _change(row: Row) -> str:
    return "-" if missing(row["change"]) else f"{100 * row['change']:+.1f}"


def _stopping(frame: pd.DataFrame, name: str) -> bool:
    """Show it where cells may stop early."""
    return "guarantee" in frame


_CONVERGENCE = (
    DATASET,
    SEED,
    CLASSIFIER,
    DEFENCE,
    Column("attack", "attack", "text", "The attack, as the sweep file has it."),
    EPS,
    Column("axis", "doubled", "text", "What is doubled.", show=lambda row: AXIS_NAMES[row["axis"]]),
    Column("value", "value", "integer", "How many there are of it."),
    Column("avg", "Avg", "interval", "Share of right draws, averaged over images."),
    Column("images", "images", "integer", "Images that Avg is of.", when=_stopping),
    Column("change", "change", "number", "From half the value, in points.", "share", show=_change),
    Column("state", "state", "text", "What is kept, and how the doubling ended."),
    Column("most", "most", "integer", "The largest value allowed.", when=frame_only),
    CELL,
)


def convergence_table(frame: pd.DataFrame) -> Table | None:
    """Return the table of :func:`workflows.results.convergence.convergence_frame`; None where nothing is doubled."""
    if frame.empty:
        return None
    groups = ("dataset", "seed", "classifier", "defence", "attack", "eps", "axis")
    columns, note = with_guarantee(_CONVERGENCE, frame), f"{intervals_note(frame)} {_CONVERGENCE_NOTE}"
    return Table("convergence", "Convergence", columns, frame, note, cells=cells_of(frame), groups=groups)


def _defence(row: Row) -> str:
    return row["defence"] or "(static)"


def _rate(row: Row) -> str:
    rate = row["images_per_second"]
    return f"{rate:.1f}" if rate and rate == rate else "-"


def _peak(row: Row) -> str:
    return "-" if missing(row["peak_mib"]) else f"{row['peak_mib']:.0f}"


def _measured(frame: pd.DataFrame, name: str) -> bool:
    """Show it where a unit has said what it took."""
    return name in frame and bool(frame[name].notna().any())


_COST = (
    Column("stage", "stage", "text", "Kind of the stage."),
    CLASSIFIER,
    Column(
        "defence", "defence", "text", "The purifier; empty where the stage does not depend on one.", show=_defence
    ),
    Column("attack", "attack", "text", "The attack, corruption or certificate."),
    EPS,
    Column("images", "images", "integer", "Images that are committed.", drop=2),
    Column("denoiser_evaluations", "denoiser evals", "count", "Evaluations of denoisers, from rows.", drop=4),
    Column("classifier_evaluations", "classifier evals", "count", "Evaluations of classifiers, from rows.", drop=3),
    Column("seconds", "seconds", "seconds", "Compute time of one worker, from commits."),
    Column("images_per_second", "images/s", "number", "Images of these in a second.", unit="1/s", show=_rate, drop=1),
    Column(
        "peak_mib",
        "peak MiB",
        "number",
        "Memory that the largest of these units took: of the GPU, or of the worker's whole process.",
        unit="MiB",
        when=_measured,
        show=_peak,
        drop=5,
    ),
)


def cost_table(frame: pd.DataFrame) -> Table | None:
    """Return the table of ``Results.cost``; None without stages."""
    if frame.empty:
        return None
    note = "Network evaluations from rows; seconds of one worker's compute, and its memory, from commits."
    return Table("cost", "Cost", _COST, frame, note, groups=())
