"""Probes: whether the defences of a sweep are what they seem, their gradients by mode, and how they work."""

import pandas as pd

from workflows.tables.common import DATASET
from workflows.tables.table import Column, Table, frame_only

__all__ = ["mechanism_table", "probe_gradients_table", "probe_table"]

_PROBED = Column("probed", "probed", "text", "The purifier or classifier, by its name in the sweep.")
_PART = Column("part", "part", "text", "Whether it is a purifier or a classifier.", drop=1)
_GROUPS = ("dataset", "probed")


def _of(frame: pd.DataFrame, kind: str, columns: list[str]) -> pd.DataFrame:
    return frame[frame["kind"] == kind][["dataset", "probed", "part", *columns, "cells"]].reset_index(drop=True)


def probe_table(frame: pd.DataFrame) -> Table | None:
    """Return the table of checks; None without any.

    Arguments:
        frame: From :meth:`workflows.results.reader.Results.probes`.
    """
    if frame.empty:
        return None
    rows = _of(frame, "check", ["name", "verdict", "value", "threshold", "text"])
    cells = tuple(rows.pop("cells"))
    columns = (
        DATASET,
        _PROBED,
        _PART,
        Column("name", "check", "text", "Name of the check."),
        Column("verdict", "verdict", "text", "pass, fail, or not-applicable with the reason in `found`."),
        Column("value", "measured", "number", "The measured number; docs/probe.md says what it is."),
        Column("threshold", "threshold", "number", "What it is held against.", drop=2),
        Column("text", "found", "text", "What was found."),
    )
    note = "Checks of the defences themselves, on a few images; docs/probe.md has the meaning of each number."
    failed = int((rows["verdict"] == "fail").sum())
    remarks = (
        (f"{failed} checks failed: figures of the cells that use these parts stand under it.",) if failed else ()
    )
    return Table("probe", "Probe", columns, rows, note, remarks=remarks, cells=cells, groups=_GROUPS)


def probe_gradients_table(frame: pd.DataFrame) -> Table | None:
    """Return the table of gradients beside central differences; None without any."""
    if frame.empty or not (frame["kind"] == "gradient").any():
        return None
    rows = _of(frame, "gradient", ["name", "verdict", "value", "share", "cosine"])
    cells = tuple(rows.pop("cells"))
    columns = (
        DATASET,
        _PROBED,
        _PART,
        Column("name", "gradient mode", "text", "Gradient mode; autograd for a classifier."),
        Column("verdict", "meant as", "text", "`meant` for the gradient of the function, or a stand-in for it."),
        Column("value", "relative error", "number", "Median over images and directions.", show=_error),
        Column("share", "wrong", "percent", "Images and directions that disagree at every step size."),
        Column("cosine", "cosine", "number", "With differences at the scale of an attack's steps.", digits=2),
    )
    note = "Autograd beside central differences at fixed randomness, in float64 where the part allows it."
    return Table("probe_gradients", "Gradients beside differences", columns, rows, note, cells=cells, groups=_GROUPS)


def _error(row: object) -> str:
    return f"{row['value']:.1e}"  # type: ignore[index]


def mechanism_table(frame: pd.DataFrame) -> Table | None:
    """Return the numbers of the mechanism; None without any."""
    if frame.empty or not (frame["kind"] == "mechanism").any():
        return None
    rows = _of(frame, "mechanism", ["name", "value", "text"])
    cells = tuple(rows.pop("cells"))
    columns = (
        DATASET,
        _PROBED,
        Column("part", "part", "text", "Always the purifier.", when=frame_only),
        Column("name", "number", "text", "Name of the number."),
        Column("value", "value", "number", "Its value.", digits=3),
        Column("text", "meaning", "text", "What it is."),
    )
    note = "How purifiers work, in numbers without a verdict."
    return Table("mechanism", "Mechanism", columns, rows, note, cells=cells, groups=_GROUPS)
