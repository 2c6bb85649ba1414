"""Published and measured figures as a table, for a sweep that is named after a paper's table or figure.

Many lines differ from the paper in the same settings: a line has a letter for each, which the remarks below the table
explain. They also list the anomalies of the published table. A figure of a paper has no values in
:mod:`workflows.published.papers`; its sweep stands beside those values of the paper's tables that have a cell in it.
"""

import string
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from workflows.published.match import match_published
from workflows.published.papers import Reference, load_paper, reference
from workflows.results.reader import Results
from workflows.tables.common import CELL
from workflows.tables.table import Column, Row, Table, cells_of, missing

__all__ = ["published_table"]


_WILSON = "Wilson's 95 % interval"


def published_table(results: Results) -> Table | None:
    """Return the table of a sweep; None if it repeats no paper's (:func:`workflows.published.papers.reference`)."""
    source = reference(results.sweep.name)
    if source is None:
        return None
    frame = _frame(results, source)
    letters: dict[str, str] = {}
    for text in (text for line in frame["differs"] for text in line.split("; ") if text):
        letters.setdefault(text, _letter(len(letters)))
    paper = load_paper(source.paper)
    tables = {*frame["table"], source.table}
    anomalies = [anomaly.text for anomaly in paper.anomalies if tables.intersection(anomaly.tables)]
    measured = int(frame["measured"].notna().sum())
    of = "all tables" if source.table is None else source.table if " " in source.table else f"table {source.table}"
    stops = results.sweep.precision is not None
    interval = "a confidence sequence at 95 % (Wilson's interval where a cell may not stop)" if stops else _WILSON
    note = (
        f"{paper.title} ({paper.link}), {of}. Accuracies in %, measured ones with {interval} over "
        "images, difference in points, measured minus published. read: in the paper; inferred: a heading or setting "
        "of it is a conclusion; second-hand: another text quotes it. "
        + (f"{measured} lines were measured. " if measured else "Nothing comparable was measured. ")
        + "Letters: settings that differ, or that the paper does not state, explained below."
    )
    warning = (
        "This is a smoke test: its data, classifiers and budgets are not the paper's. It runs every part of the "
        "sweep, and its figures say nothing about the published figures beside them."
        if source.smoke
        else ""
    )
    remarks = [f"{letter}: {text}." for text, letter in letters.items()]
    remarks += [f"Anomaly in what is published: {text}" for text in dict.fromkeys(anomalies)]
    parts = ["classifier_measured", "defence_measured", "threat_measured"]
    parts += [name for name in ("dataset_measured", "seed") if frame[name].nunique() > 1]
    return Table(
        "published",
        "Published and measured" + (", in a smoke test: not comparable" if source.smoke else ""),
        _columns(letters, parts),
        frame,
        note,
        remarks=tuple(remarks),
        warning=warning,
        cells=cells_of(frame),
        groups=("table",),
    )


def _frame(results: Results, source: Reference) -> pd.DataFrame:
    """Return the lines: all published values of a table, measured or not; for a figure, those with a cell."""
    figure = source.table is not None and " " in source.table
    frame = match_published(results, [source.paper], loosely=source.smoke, unmeasured=not figure)
    if source.table is not None and not figure:
        frame = frame[frame["table"] == source.table]
    if source.dataset is not None:
        frame = frame[frame["dataset"] == source.dataset]
    return frame.assign(cell=frame["cell"].fillna(""), smoke=source.smoke).reset_index(drop=True)


def _letter(index: int) -> str:
    """Return letters a to z, then aa, ab and so on."""
    letters = string.ascii_lowercase
    return letters[index] if index < 26 else _letter(index // 26 - 1) + letters[index % 26]


def _columns(letters: Mapping[str, str], parts: Sequence[str]) -> tuple[Column, ...]:
    def measured(row: Row) -> str:
        return "not measured" if missing(row["measured"]) else plain.text(row)

    def difference(row: Row) -> str:
        return "-" if missing(row["measured"]) or row["smoke"] else f"{row['difference']:+.1f}"

    def differs(row: Row) -> str:
        texts = [] if missing(row["measured"]) else str(row["differs"]).split("; ")
        return " ".join(letters[text] for text in texts if text) or "-"

    def measured_as(row: Row) -> str:
        if missing(row["measured"]):
            return "-"
        return ", ".join(f"seed {row[name]:.0f}" if name == "seed" else str(row[name]) for name in parts)

    meaning = "Measured accuracy: mean over draws."
    plain = Column("measured", "measured", "interval", meaning, "%", ends=("low", "high"))
    of_paper = (
        Column("table", "table", "text", "Table of the paper."),
        Column("classifier", "classifier", "text", "The paper's classifier.", show=_stated("classifier")),
        Column("defence", "defence", "text", "The paper's defence.", show=_stated("defence")),
        Column("threat", "threat", "text", "What the published value is of.", show=_stated("threat")),
        Column("published", "published", "number", "Published accuracy.", "%"),
        Column("certainty", "certainty", "text", "How sure the published value is.", drop=2),
    )
    beside = (
        Column("measured", "measured", "interval", meaning, "%", ends=("low", "high"), show=measured),
        Column("difference", "difference", "number", "Measured minus published.", "points", show=difference),
        Column("differs", "differs", "text", "Settings that differ or are not stated.", show=differs, drop=4),
        Column("images", "images", "integer", "Images that were measured.", drop=3),
        Column(
            "threat_measured", "measured as", "text", "What was measured, by our names.", show=measured_as, drop=1
        ),
    )
    hidden = (
        Column("paper", "paper", "text", "Name of the paper."),
        Column("dataset", "dataset", "text", "The paper's data set."),
        Column("dataset_measured", "dataset measured", "text", "The data set of the cell."),
        Column("classifier_measured", "classifier measured", "text", "The classifier of the cell."),
        Column("defence_measured", "defence measured", "text", "The defence of the cell."),
        Column("seed", "seed", "integer", "The seed of the cell."),
        Column("anomalies", "anomalies", "text", "What is odd in the published table."),
        Column("source", "source", "text", "Where the value was seen."),
        Column("smoke", "smoke", "text", "Whether the sweep is a smoke test of the paper's sweep."),
        CELL,
    )
    return (*of_paper, *beside, *(column.hidden() for column in hidden))


def _stated(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name] or "not stated")
