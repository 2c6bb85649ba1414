"""Published and measured figures as a table of a report, for a sweep that is named after a paper's table or figure.

Settings that differ repeat themselves: a line has a letter for each, and the remarks below the table say what it
stands for. The anomalies of the published table are there too. A figure of a paper has no values in
:mod:`workflows.published.papers`; its sweep stands beside those values of the paper's tables that have a cell in it.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from workflows.published.match import match_published
from workflows.published.papers import Reference, load_paper, reference
from workflows.results.reader import Results
from workflows.tables.sections import Section

__all__ = ["PublishedTable", "published_table"]

_HEAD = ["table", "classifier", "defence", "threat", "published", "certainty", "measured", "difference"]
_TAIL = ["differs", "images", "measured as"]


@dataclass(frozen=True)
class PublishedTable:
    """The table.

    Arguments:
        section: Its frame (of :func:`~workflows.published.match.match_published`, with ``smoke``) and grid; in %.
        warning: What has to be read before it; "" if nothing.
        remarks: Settings that differ by their letters, then the anomalies of what is published.
    """

    section: Section
    warning: str
    remarks: tuple[str, ...]

    def as_text(self) -> Section:
        """With the warning and the remarks in its note, for formats that have no other place for them."""
        return replace(self.section, note=" ".join([self.warning, self.section.note, *self.remarks]).strip())


def published_table(results: Results) -> PublishedTable | None:
    """The table of a sweep; None if it repeats no paper's (:func:`workflows.published.papers.reference`)."""
    found = reference(results.sweep.name)
    if found is None:
        return None
    frame = _frame(results, found)
    letters: dict[str, str] = {}
    for text in (text for line in frame["differs"] for text in line.split("; ") if text):
        letters.setdefault(text, _letter(len(letters)))
    parts = ["classifier_measured", "defence_measured", "threat_measured"]
    parts += [name for name in ("dataset_measured", "seed") if frame[name].nunique() > 1]
    lines = [_line(row, letters, parts) for row in frame.to_dict("records")]
    paper = load_paper(found.paper)
    tables = {*frame["table"], found.table}
    anomalies = [each.text for each in paper.anomalies if tables.intersection(each.tables)]
    measured = int(frame["measured"].notna().sum())
    of = "all tables" if found.table is None else found.table if " " in found.table else f"table {found.table}"
    note = (
        f"{paper.title} ({paper.link}), {of}. Accuracies in %, measured ones with Wilson's 95 % interval over "
        "images, difference in points, measured minus published. read: in the paper; inferred: a heading or setting "
        "of it is a conclusion; second-hand: another text quotes it. "
        + (f"{measured} lines were measured. " if measured else "Nothing comparable was measured. ")
        + "Letters: settings that differ, or that the paper does not state; see below."
    )
    warning = (
        "This is a smoke sweep: its data, classifiers and budgets are not the paper's. It tries every part of the "
        "sweep, and what it measured says nothing about the published figures beside it."
        if found.smoke
        else ""
    )
    remarks = [f"{letter}: {text}." for text, letter in letters.items()]
    remarks += [f"Anomaly in what is published: {text}" for text in dict.fromkeys(anomalies)]
    title = "Published and measured" + (", of a smoke sweep: not to be compared" if found.smoke else "")
    section = Section("published", title, note, frame, ([*_HEAD, *_TAIL], lines))
    return PublishedTable(section, warning, tuple(remarks))


def _frame(results: Results, found: Reference) -> pd.DataFrame:
    """The lines: all published values of the table, measured or not; of a figure, whatever has a cell."""
    figure = found.table is not None and " " in found.table
    frame = match_published(results, [found.paper], loosely=found.smoke, unmeasured=not figure)
    if found.table is not None and not figure:
        frame = frame[frame["table"] == found.table]
    if found.dataset is not None:
        frame = frame[frame["dataset"] == found.dataset]
    return frame.assign(cell=frame["cell"].fillna(""), smoke=found.smoke).reset_index(drop=True)


def _letter(index: int) -> str:
    """Letters a to z, then aa, ab and so on."""
    letters = string.ascii_lowercase
    return letters[index] if index < 26 else _letter(index // 26 - 1) + letters[index % 26]


def _line(row: Mapping[Any, Any], letters: Mapping[str, str], parts: Sequence[str]) -> list[str]:
    head = [str(row[name] or "not stated") for name in _HEAD[:4]] + [f"{row['published']:g}", str(row["certainty"])]
    if row["measured"] != row["measured"]:
        return [*head, "not measured", "-", "-", "-", "-"]
    return [
        *head,
        f"{row['measured']:.1f} [{row['low']:.1f}, {row['high']:.1f}]",
        "-" if row["smoke"] else f"{row['difference']:+.1f}",
        " ".join(letters[text] for text in str(row["differs"]).split("; ") if text) or "-",
        f"{row['images']:.0f}",
        ", ".join(f"seed {row[name]:.0f}" if name == "seed" else str(row[name]) for name in parts),
    ]
