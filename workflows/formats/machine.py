"""Tables for programs: CSV and JSON, unrounded, with what their columns mean."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defense.files import make_folder, write_text
from defense.text import in_one_line, visible
from workflows.analysis import Analysis
from workflows.audit import Finding, rules_on
from workflows.formats.findings import reason
from workflows.tables.table import Table, cells_of, records

__all__ = ["csv", "frame_csv", "frame_json", "json_text", "write_csv"]

_FORMULA = ("=", "+", "-", "@", "\t", "\uff1d", "\uff0b", "\uff0d", "\uff20")

_ALWAYS = ("robustness", "cost", "combined", "ladders")
"""Tables whose keys are in JSON whether the sweep has rows of their kind or not."""


def csv(table: Table, findings: Sequence[Finding] | None = None) -> str:
    """Render the frame of a table, after an audit with a column of the rules that fired on each row."""
    frame = table.frame
    name = next((name for name in ("cell", "cells") if name in frame), None)
    if findings is not None and name is not None:
        frame = frame.assign(findings=[rules_on(findings, cells) for cells in cells_of(frame, name)])
    return frame_csv(frame)


def frame_csv(frame: pd.DataFrame) -> str:
    """Render a frame.

    A spreadsheet takes a cell that begins with ``= + - @`` or a tab for a formula and computes it: an apostrophe goes
    before a text that begins so, and control characters are written out. Numbers are written as they are.
    """
    texts = [place for place, kind in enumerate(frame.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    if texts:
        frame = frame.copy()
        for place in texts:
            frame.isetitem(place, frame.iloc[:, place].map(_inert).to_numpy())
    return str(frame.to_csv(index=False))


def frame_json(frame: pd.DataFrame) -> str:
    """Render a frame as a list of its rows, unrounded; lists are lists, and missing values are null."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return [plain(part) for part in value.tolist()]
        if isinstance(value, float) and value != value:
            return None
        return value

    rows = [{name: plain(value) for name, value in row.items()} for row in records(frame)]
    return json.dumps(rows, indent=1, default=_plain) + "\n"


def _inert(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = visible(value)
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


def write_csv(analysis: Analysis, folder: Path, only: str | None = None) -> list[Path]:
    """Write every table as ``NAME.csv``, and ``README.md`` with their notes and what each column means.

    Arguments:
        analysis: What to write.
        folder: Where; it is made, and files of these names are replaced.
        only: Name of the one table to write.

    Returns:
        The files.
    """
    tables = analysis.tables if only is None else [analysis.table(only)]
    make_folder(folder, "the folder of tables")
    written = []
    for table in tables:
        written.append(folder / f"{table.name}.csv")
        write_text(written[-1], csv(table, analysis.audited), "the table")
    written.append(folder / "README.md")
    write_text(written[-1], _read_me(analysis, tables), "the description")
    return written


def _read_me(analysis: Analysis, tables: Sequence[Table]) -> str:
    parts = [f"# {in_one_line(analysis.sweep.name)}\n"]
    parts += [f"{warning}\n" for warning in analysis.warnings]
    for table in tables:
        parts.append(f"## {table.name}.csv\n")
        parts.append(f"{table.title}. {table.note}\n".replace(". \n", ".\n"))
        parts += [f"{remark}\n" for remark in table.remarks]
        parts += [
            f"* `{column.name}`{_unit(column.declared())}: {column.meaning}"
            for column in table.columns
            if column.name in table.frame
        ]
        parts.append("")
    if analysis.audited:
        parts.append("## Findings\n")
        parts += [f"* {f.standing} `{f.rule}`: {f.text}{_reason(f)}" for f in analysis.audited]
    return "\n".join(parts) + "\n"


def _reason(finding: Finding) -> str:
    return f" Silenced because: {reason(finding)}" if finding.silenced else ""


def _unit(declared: dict[str, Any]) -> str:
    ends = declared.get("interval", ())
    beside = "".join(f", `{end}`" for end in ends)
    return beside + (f" ({declared['unit']})" if declared["unit"] else "")


def json_text(tables: Sequence[Table], findings: Sequence[Finding] | None = None, *, whole: bool = True) -> str:
    """Render all rows by the names of their tables, the findings, and under ``tables`` titles, notes and columns."""
    content: dict[str, Any] = {name: [] for name in _ALWAYS} if whole else {}
    content |= {table.name: table.records() for table in tables}
    if findings is not None:
        content["findings"] = [finding.as_dict() for finding in findings]
    content["tables"] = {table.name: table.declared() for table in tables}
    return json.dumps(content, indent=1, default=_plain) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} has no place in JSON")
