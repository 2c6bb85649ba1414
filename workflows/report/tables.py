"""The tables of a report, each with its rows as CSV and marks of findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from tasks.attacks import LadderConfig
from workflows.audit import Finding, rules_on
from workflows.published.table import PublishedTable
from workflows.results.reader import Results
from workflows.tables.columns import combined_grid, cost_grid, ladder_grid, robustness_grid
from workflows.tables.ladders import ladder_table
from workflows.tables.render import COMBINED_NOTE, LADDER_NOTE
from workflows.tables.sections import Section

__all__ = ["Line", "Tabular", "tabulars"]

_INTERVALS = "Accuracy in %, with Wilson's 95 % interval over images."
_ROBUSTNESS = (
    f"{_INTERVALS} Avg: mean over draws; worst: right however often the attacker submits, all draws or M; vote: "
    "majority of the draws; draw 0: one fixed draw alone."
)
_COST = "Network evaluations from rows; seconds of one worker's compute from commits."


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Arguments:
        values: The cells.
        marks: Numbers of the findings on it, from 1, in their order.
    """

    values: Sequence[str]
    marks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tabular:
    """A table.

    Arguments:
        name: Its key in ``puregrid tables --format json``, and the name of its file.
        title: Heading.
        note: How to read it.
        names: The columns.
        lines: The lines.
        frame: Everything, unrounded.
        remarks: What belongs below it, a line each.
    """

    name: str
    title: str
    note: str
    names: Sequence[str]
    lines: Sequence[Line]
    frame: pd.DataFrame = field(repr=False)
    remarks: tuple[str, ...] = ()


def tabulars(
    results: Results,
    robustness: pd.DataFrame,
    cost: pd.DataFrame,
    further: Sequence[Section],
    found: Sequence[Finding],
    published: PublishedTable | None = None,
) -> list[Tabular]:
    """The tables that have rows, in the order in which they are read: the command line's, and ``published``."""
    marks = _marks(found)
    tables = []
    if len(robustness):
        frame = robustness.assign(findings=[rules_on(found, [cell]) for cell in robustness["cell"]])
        tables.append(
            _table(
                "robustness", "Robustness", _ROBUSTNESS, robustness_grid(robustness), frame, robustness["cell"], marks
            )
        )
    ladders, combined = ladder_table(results), results.combined()
    if len(ladders):
        note = f"{_INTERVALS} {LADDER_NOTE[0].upper()}{LADDER_NOTE[1:]}"
        tables.append(
            _table("ladders", "Ladders", note, ladder_grid(ladders), ladders, _ladder_cells(results), marks)
        )
    if len(combined):
        note = f"{_INTERVALS} {COMBINED_NOTE[0].upper()}{COMBINED_NOTE[1:]}"
        title = "Several attacks on one defence"
        tables.append(_table("combined", title, note, combined_grid(combined), combined, combined["cells"], marks))
    if published is not None:
        own = published.section
        beside = _table(own.name, own.title, own.note, own.grid, own.frame, own.frame["cell"], marks)
        tables.append(replace(beside, remarks=published.remarks))
    for section in further:
        if section.title:
            corrupted = section.name == "corruptions"
            cells = _corrupted_cells(results, section.frame) if corrupted else section.frame.get("cell", ())
            tables.append(
                _table(section.name, section.title, section.note, section.grid, section.frame, cells, marks)
            )
    tables.append(_table("cost", "Cost", _COST, cost_grid(cost), cost, (), marks))
    return tables


def _marks(found: Sequence[Finding]) -> dict[str, list[int]]:
    """Numbers of the findings on each cell."""
    marks: dict[str, list[int]] = {}
    for number, finding in enumerate(found, 1):
        for cell in finding.cells:
            marks.setdefault(cell, []).append(number)
    return marks


def _table(
    name: str,
    title: str,
    note: str,
    grid: tuple[list[str], list[list[str]]],
    frame: pd.DataFrame,
    cells: Iterable[str | list[str]],
    marks: Mapping[str, Sequence[int]],
) -> Tabular:
    """A table whose lines are of ``cells``, one or several each; without them no line has marks."""
    names, values = grid
    of_lines = [[cell] if isinstance(cell, str) else list(cell) for cell in cells] or [[]] * len(values)
    lines = [
        Line(line, tuple(sorted({number for cell in own for number in marks.get(cell, ())})))
        for line, own in zip(values, of_lines, strict=True)
    ]
    return Tabular(name, title, note, names, lines, frame)


def _corrupted_cells(results: Results, frame: pd.DataFrame) -> list[list[str]]:
    """The cells of each line of the table of corruptions, which has one for each defence on a set of images."""
    by = ["dataset", "classifier", "defence", "seed", "origin"]
    cells: dict[tuple[object, ...], list[str]] = {}
    for cell in results.sweep.corrupted:
        labels = results.sweep.labels[cell.id]
        assert cell.corruption is not None
        key = (labels["dataset"], labels["classifier"], labels["defence"], cell.seed, cell.corruption.origin)
        cells.setdefault(key, []).append(cell.id)
    lines = frame[frame["severity"] == "all"].drop_duplicates(by)[by]
    return [cells[key] for key in lines.itertuples(index=False, name=None)]


def _ladder_cells(results: Results) -> list[str]:
    """The cell of each line of :func:`workflows.tables.ladders.ladder_table`."""
    return [
        cell.id
        for cell in results.sweep.cells
        if cell.attack_stage is not None
        and isinstance(cell.attack_stage.attack, LadderConfig)
        and len(results.attack_rows(cell))
        for _ in cell.attack_stage.attack.rungs
    ]
