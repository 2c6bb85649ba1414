"""The leaderboard: a line for each classifier and defence, with what every kind of threat leaves of it."""

from collections.abc import Iterator

import pandas as pd

from workflows.tables.common import (
    CLASSIFIER,
    DATASET,
    DEFENCE,
    EPS,
    NORM,
    PLANNED,
    SEED,
    intervals_note,
    with_guarantee,
)
from workflows.tables.table import Column, Row, Table, cells_of, frame_only, missing, several

__all__ = ["KEY", "largest_budgets", "leaderboard_table"]

KEY = ("dataset", "seed", "classifier", "defence")
"""What a line is of, beside norm and budget."""

_NOTE = (
    "Worst static and worst adaptive: the lowest Avg under any attack of that kind at this budget (Fixed-AA, mean); "
    "an adaptive attacker knows the purifier. For the bare classifier the two are one. Wor-M: the lowest share of "
    "images right however often the attacker submits."
)


def leaderboard_table(frame: pd.DataFrame) -> Table | None:
    """Return the leaderboard; None where nothing is judged.

    Lines of the largest budget of each norm are shown; CSV and JSON have all budgets.

    Arguments:
        frame: From :func:`workflows.analysis.leaderboard.leaderboard_frame`.
    """
    if frame.empty:
        return None
    shown = largest_budgets(frame)
    note, columns = f"{intervals_note(frame)} {_NOTE}", with_guarantee(tuple(_columns(frame)), frame)
    return Table(
        "leaderboard",
        "Leaderboard",
        columns,
        frame,
        note,
        remarks=tuple(_remarks(frame, shown)),
        shown=shown,
        cells=cells_of(shown, "cells"),
        groups=("dataset", "seed", "classifier", "norm"),
    )


def largest_budgets(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the lines at the largest budget of each data set and norm, and those that met no attack."""
    top = frame.groupby(["dataset", "norm"], dropna=False)["eps"].transform("max")
    # A line that met no attack has no budget, and stays.
    return frame[frame["norm"].isna() | (frame["eps"] == top)].reset_index(drop=True)


def _columns(frame: pd.DataFrame) -> Iterator[Column]:
    yield from (DATASET, SEED, CLASSIFIER, DEFENCE, NORM_OF, BUDGET)
    yield Column("images", "images", "images", "Fewest images behind a number of the line.", drop=2)
    yield Column(
        "clean", "clean", "interval", "Share of right draws on clean images.", when=_known, cell="clean_cell"
    )
    yield Column(
        "static",
        "worst static",
        "interval",
        "Lowest Avg under attacks on the bare classifier.",
        when=_known,
        drop=7,
        cell="static_cell",
    )
    yield Column(
        "adaptive",
        "worst adaptive",
        "interval",
        "Lowest Avg under attacks that know the purifier.",
        when=_known,
        cell="adaptive_cell",
    )
    yield Column(
        "worst",
        "Wor-M",
        "interval",
        "Lowest share of images right on each of M draws.",
        when=_known,
        drop=4,
        cell="worst_cell",
    )
    at = "".join(f" r={radius:g}" for radius in frame["radius"].dropna().unique())
    meaning = "Share of images certified right at that l_2 radius or more, by the best sigma."
    yield Column("certified", f"certified{at}", "interval", meaning, when=_known, drop=6)
    yield Column(
        "corruptions", "corruptions", "interval", "Mean accuracy over the common corruptions.", when=_known, drop=5
    )
    yield Column("evaluations", "evals", "count", "Network evaluations for one answer.", when=_known, drop=3)
    yield Column("attack", "strongest attack", "text", "The attack behind the lowest Avg.", when=_known, drop=1)
    yield Column("static_attack", "static attack", "text", "The attack behind the worst static.", when=frame_only)
    yield Column(
        "adaptive_attack", "adaptive attack", "text", "The attack behind the worst adaptive.", when=frame_only
    )
    yield Column("resubmissions", "M", "integer", "How often the attacker may submit an image.", when=frame_only)
    yield Column("radius", "radius", "number", "The l_2 radius of `certified`.", "pixels in [0, 1]", when=frame_only)
    yield Column("sigma", "sigma", "number", "The noise behind `certified`.", "pixels in [0, 1]", when=frame_only)
    yield Column("origin", "origin", "text", "Where the corrupted images come from.", when=frame_only)
    for name in ("clean", "static", "adaptive", "worst"):
        yield Column(f"{name}_cell", f"{name} cell", "text", f"Id of the cell of `{name}`.", when=frame_only)
    yield Column("bare", "bare", "text", "Whether it is the classifier without a purifier.", when=frame_only)
    yield Column("cells", "cells", "text", "Ids of the cells of the line.", when=frame_only)
    yield PLANNED


def _known(frame: pd.DataFrame, name: str) -> bool:
    return bool(frame[name].notna().any())


def _budget(row: Row) -> str:
    return "-" if missing(row["norm"]) else EPS.text(row)


NORM_OF = Column("norm", "norm", "text", NORM.meaning, when=several)
BUDGET = Column("eps", "eps", "budget", "Budget of the attacks.", when=_known, show=_budget)


def _remarks(frame: pd.DataFrame, shown: pd.DataFrame) -> Iterator[str]:
    if len(shown) < len(frame):
        yield "Shown is the largest budget of each norm; JSON, CSV and the robustness table have all."
    attacked = shown[shown["norm"].notna() & shown["static"].notna()]
    upper = attacked["adaptive"].isna()
    if upper.any():
        which = "Defences" if upper.all() else f"{upper.sum()} of {len(attacked)} lines"
        yield (
            f"{which} without a worst adaptive met static attacks alone: that accuracy is an upper bound, and says "
            "nothing about an attacker who knows the defence."
        )
