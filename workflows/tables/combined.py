"""Several attacks on one defence as one attacker, and ladders rung by rung."""

from collections.abc import Sequence

import pandas as pd

from workflows.tables.common import CLASSIFIER, DATASET, DEFENCE, EPS, NORM, SEED, intervals_note, with_guarantee
from workflows.tables.table import Column, Table, cells_of, frame_only

__all__ = ["combined_table", "ladders_table"]

_COMBINED_NOTE = (
    "Lowest: for each image the lowest share of right draws under any attack, which is too low by the "
    "luck of the draws. Selected: for each image the attack is chosen on half of the draws and judged on the others, "
    "which is not too low on average. Fixed-AA (mean): the lowest Avg of any attack. Fixed-AA (any): an image counts "
    "as lost if one draw of one attack fails. They are two readings of one protocol."
)
_COMBINED = (
    DATASET,
    SEED,
    CLASSIFIER,
    DEFENCE,
    NORM,
    EPS,
    Column("attacks", "attacks", "integer", "Number of attacks at this norm and budget.", drop=1),
    Column("images", "images", "integer", "Images on which all of these attacks were judged.", drop=3),
    Column("draws", "draws", "integer", "Draws by which each attack was judged.", drop=2),
    Column("lowest", "lowest", "interval", "Mean over images of the lowest share of right draws under any attack."),
    Column(
        "selected", "selected", "interval", "Like lowest, but chosen on half of the draws and judged on the others."
    ),
    Column("fixed_aa_mean", "fixed-AA (mean)", "interval", "The lowest Avg of any attack.", drop=6),
    Column(
        "fixed_aa_any",
        "fixed-AA (any)",
        "interval",
        "Share of images right on every draw under every attack.",
        drop=5,
    ),
    Column("cells", "cells", "text", "Ids of the cells of the attacks.", when=frame_only),
)
_LADDERS_NOTE = (
    "Alone: accuracy under this attack alone. So far: mean of the per-image minimum up to this rung. "
    "Submitted: number of images for which this rung was the strongest. All three are on the draws by which "
    "the ladder chose, where a minimum is too low; its own line of the robustness table is judged on fresh draws."
)
_LADDERS = (
    DATASET,
    SEED,
    CLASSIFIER,
    DEFENCE,
    NORM,
    EPS,
    Column("rung", "rung", "integer", "Number of the rung, from 1."),
    Column("attack", "attack", "text", "The attack of the rung."),
    Column("images", "images", "integer", "Images that the ladder was given.", drop=2),
    Column("alone", "alone", "interval", "Share of right draws under this attack alone."),
    Column("so_far", "so far", "percent", "Mean of the per-image minimum up to this rung."),
    Column("submitted", "submitted", "integer", "Images for which this rung's result was submitted."),
    Column(
        "skipped",
        "skipped",
        "integer",
        "Images that this rung skipped, since an earlier rung had broken them.",
        drop=1,
    ),
)


def combined_table(frame: pd.DataFrame) -> Table | None:
    """Return the table of ``Results.combined``; None if no defence met several attacks of one budget."""
    if frame.empty:
        return None
    title = "Several attacks on one defence"
    note, columns = f"{intervals_note(frame)} {_COMBINED_NOTE}", with_guarantee(_COMBINED, frame)
    return Table("combined", title, columns, frame, note, cells=cells_of(frame, "cells"))


def ladders_table(frame: pd.DataFrame, cells: Sequence[str]) -> Table | None:
    """Return the table of ladders; None without any.

    Arguments:
        frame: From :func:`workflows.results.ladders.ladder_frame`.
        cells: The cell of each of its rows.
    """
    if frame.empty:
        return None
    note, columns = f"{intervals_note(frame)} {_LADDERS_NOTE}", with_guarantee(_LADDERS, frame)
    return Table("ladders", "Ladders", columns, frame, note, cells=tuple((cell,) for cell in cells))
