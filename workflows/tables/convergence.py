"""The ablation of attacks with ``converge``: accuracy against steps, EOT draws, restarts and selection draws."""

from __future__ import annotations

import pandas as pd

from workflows.tables.common import CELL, CLASSIFIER, DATASET, DEFENCE, EPS, INTERVALS, SEED
from workflows.tables.table import Column, Row, Table, cells_of, frame_only, missing

__all__ = ["AXIS_NAMES", "convergence_table"]

AXIS_NAMES = {"steps": "steps", "eot": "EOT draws", "restarts": "restarts", "select": "selection draws"}
"""What tables and figures call what is doubled."""

_NOTE = (
    f"{INTERVALS} Each is doubled until accuracy changes by less than the half-width of its interval twice in a row "
    "(converged), or up to its largest value (not converged). Kept is the smallest value from which on nothing "
    "changed; the next is doubled from there. All are judged on the same images and fresh draws."
)


def _change(row: Row) -> str:
    return "-" if missing(row["change"]) else f"{100 * row['change']:+.1f}"


_COLUMNS = (
    DATASET,
    SEED,
    CLASSIFIER,
    DEFENCE,
    Column("attack", "attack", "text", "The attack, as the sweep file has it."),
    EPS,
    Column("axis", "doubled", "text", "What is doubled.", show=lambda row: AXIS_NAMES[row["axis"]]),
    Column("value", "value", "integer", "How many there are of it."),
    Column("avg", "Avg", "interval", "Share of right draws, averaged over images."),
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
    return Table("convergence", "Convergence", _COLUMNS, frame, _NOTE, cells=cells_of(frame), groups=groups)
