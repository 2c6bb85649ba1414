"""A table: declared columns, unrounded numbers, and the notes that belong to them.

Everything that puregrid shows of a sweep's rows is a :class:`Table`. Terminal, Markdown, CSV, LaTeX, JSON, the page
and MLflow are renderings of it (:mod:`workflows.formats`), so that a column that is declared once is in all of them,
with its title, format and meaning, and the notes of a table go wherever the table goes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import pandas as pd

from defense.text import in_one_line
from tasks.attacks.budgets import format_eps

__all__ = [
    "Column",
    "Kind",
    "Row",
    "Table",
    "always",
    "cells_of",
    "frame_only",
    "interval",
    "missing",
    "percent",
    "records",
    "several",
]

Kind = Literal["text", "integer", "count", "images", "percent", "interval", "points", "number", "budget", "seconds"]
"""What a value is, which says how it is written.

``integer`` 7, ``count`` 1,234, ``images`` 512 or ``16 of 20``, ``percent`` 53.1, ``interval`` 53.1 [48.8, 57.4],
``points`` +2.0 [-1.0, 5.0], ``number`` with so many digits, ``budget`` 8/255, ``seconds`` 12.3.
"""

Row = Mapping[str, Any]
When = Callable[[pd.DataFrame, str], bool]

_UNITS: dict[str, str] = {
    "percent": "share",
    "interval": "share",
    "points": "share",
    "budget": "pixels in [0, 1]",
    "seconds": "s",
}
_ABSENT = "-"


def always(frame: pd.DataFrame, name: str) -> bool:
    """Show the column in any case."""
    return True


def frame_only(frame: pd.DataFrame, name: str) -> bool:
    """Never show the column: it is in CSV and JSON alone."""
    return False


def several(frame: pd.DataFrame, name: str) -> bool:
    """Show the column if its values differ between lines."""
    return bool(frame[name].nunique() > 1)


@dataclass(frozen=True)
class Column:
    """A column.

    Arguments:
        name: Its key in frames, JSON and CSV.
        title: What people read above it.
        kind: What its values are, and so how they are written.
        meaning: What it means, in a sentence.
        unit: Of its values in the frame; "" for that of its kind. Shares are shown in %, those in ``%`` as they are.
        digits: Digits of a ``number`` after the point; None for as many as it has.
        ends: Of ``interval`` and ``points``: the columns of the two ends; by default ``NAME_low`` and ``NAME_high``.
        when: Whether people see it, by the frame and its name.
        show: Writes its value in a line where the kind does not say all.
        drop: Place in the order in which columns are left out where lines must be short: 1 goes first, 0 never. What
            names a line and its headline numbers stay.
        cell: Column with the id of the cell that a value is of, where a line has numbers of several: the findings on
            that cell are marked beside it.
    """

    name: str
    title: str
    kind: Kind
    meaning: str
    unit: str = ""
    digits: int | None = None
    ends: tuple[str, str] | None = None
    when: When = always
    show: Callable[[Row], str] | None = field(default=None, repr=False)
    drop: int = 0
    cell: str = ""

    @property
    def left(self) -> bool:
        """Whether it is aligned to the left, as text is; numbers are to the right."""
        return self.kind == "text"

    @property
    def interval(self) -> tuple[str, str] | None:
        """The columns of the two ends of its interval; None where it has none."""
        if self.kind not in ("interval", "points"):
            return None
        return self.ends or (f"{self.name}_low", f"{self.name}_high")

    def hidden(self) -> Column:
        """Return the same column, hidden from tables and kept in the frame."""
        return replace(self, when=frame_only)

    def text(self, row: Row) -> str:
        """Its value in a line, for people; ``-`` where there is none."""
        if self.show is not None:
            return self.show(row)
        value = row.get(self.name)
        return _ABSENT if missing(value) else self._written(value, row)

    def _written(self, value: Any, row: Row) -> str:
        scale = 1.0 if self.unit == "%" else 100.0
        if self.kind == "budget":
            return format_eps(value)
        if self.kind == "images":
            planned = row.get("planned", value)
            return f"{value}" if value == planned else f"{value} of {planned}"
        if self.kind == "percent":
            return percent(value, scale=scale)
        ends = self.interval
        if ends is not None:
            return interval(value, *(row[end] for end in ends), sign="+" * (self.kind == "points"), scale=scale)
        if self.kind == "number":
            return f"{value:g}" if self.digits is None else f"{value:.{self.digits}f}"
        formats = {"integer": ".0f", "count": ",.0f", "seconds": ".1f"}
        if self.kind in formats:
            return f"{value:{formats[self.kind]}}"
        return f"{value:g}" if isinstance(value, float) else str(value)

    def declared(self) -> dict[str, Any]:
        """Return its declaration as plain JSON."""
        ends = {} if self.interval is None else {"interval": list(self.interval)}
        unit = self.unit or _UNITS.get(self.kind, "")
        head = {"name": self.name, "title": self.title, "kind": self.kind, "unit": unit}
        return {**head, "meaning": self.meaning, **ends}


@dataclass(frozen=True)
class Table:
    """A table.

    Arguments:
        name: Key in JSON and MLflow, and name of its file.
        title: Heading.
        columns: Its columns, those for machines alone among them, in the order in which they are read.
        frame: Everything, unrounded: the truth of the table.
        note: How to read it.
        remarks: What belongs below it: caveats and explanations, a sentence or two each.
        warning: What has to be read before it; "" if nothing.
        shown: The rows that people see, where these are not all of ``frame``, or are turned round.
        cells: Ids of the cells of each shown line, by which findings are marked on it; none for a table that has
            none, else one entry per line.
        groups: Columns whose change sets lines apart in a terminal.
        for_people: False for what only CSV, JSON and figures have a use for.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    frame: pd.DataFrame = field(repr=False)
    note: str = ""
    remarks: tuple[str, ...] = ()
    warning: str = ""
    shown: pd.DataFrame | None = field(default=None, repr=False)
    cells: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    groups: tuple[str, ...] = ("dataset", "seed", "classifier", "defence")
    for_people: bool = True

    @property
    def rows(self) -> pd.DataFrame:
        """The rows that people see."""
        return self.frame if self.shown is None else self.shown

    @cached_property
    def visible(self) -> tuple[Column, ...]:
        """The columns that people see."""
        rows = self.rows
        return tuple(column for column in self.columns if column.when(rows, column.name))

    def lines(self) -> list[list[str]]:
        """Return the lines as shown: one text for each of :attr:`visible`, with control characters written out."""
        return [[in_one_line(column.text(row)) for column in self.visible] for row in records(self.rows)]

    def column(self, name: str) -> Column:
        """Return the column of that key."""
        return next(column for column in self.columns if column.name == name)

    def marks(self, findings: Sequence[Any]) -> list[tuple[int, ...]]:
        """Return for each line the numbers, from 1, of the findings on its cells.

        Arguments:
            findings: From :func:`workflows.audit.findings`; each has ``cells``.
        """
        if not self.cells:
            return [()] * len(self.rows)
        numbers: dict[str, list[int]] = {}
        for number, finding in enumerate(findings, 1):
            for cell in finding.cells:
                numbers.setdefault(cell, []).append(number)
        return [tuple(sorted({n for cell in cells for n in numbers.get(cell, ())})) for cells in self.cells]

    def marks_beside(self, findings: Sequence[Any]) -> list[dict[str, tuple[int, ...]]]:
        """Return for each line the numbers of the findings by the column whose number they concern.

        That is the column whose :attr:`Column.cell` is theirs; without such columns, the first one with a share.
        """
        of_cells = [column for column in self.visible if column.cell]
        if not of_cells:
            shares = [column for column in self.visible if column.kind in ("interval", "percent", "points")]
            place = (shares or list(self.visible))[0].name
            return [{place: numbers} if numbers else {} for numbers in self.marks(findings)]
        numbers: dict[str, list[int]] = {}
        for number, finding in enumerate(findings, 1):
            for cell in finding.cells:
                numbers.setdefault(cell, []).append(number)
        return [
            {column.name: tuple(found) for column in of_cells if (found := numbers.get(row[column.cell] or ""))}
            for row in records(self.rows)
        ]

    def breaks(self) -> list[bool]:
        """Return for each line whether it begins a new group."""
        names = [name for name in self.groups if name in self.rows]
        keys = [tuple(row[name] for name in names) for row in records(self.rows)]
        return [i > 0 and key != keys[i - 1] for i, key in enumerate(keys)]

    def records(self) -> list[dict[str, Any]]:
        """Return all rows as plain JSON, None for missing values."""
        return [
            {name: None if missing(value) else value for name, value in row.items()} for row in records(self.frame)
        ]

    def declared(self) -> dict[str, Any]:
        """Return title, notes and columns as plain JSON."""
        return {
            "title": self.title,
            "note": self.note,
            "warning": self.warning,
            "remarks": list(self.remarks),
            "columns": [column.declared() for column in self.columns],
        }


def cells_of(frame: pd.DataFrame, name: str = "cell") -> tuple[tuple[str, ...], ...]:
    """Return the cells of each row of a frame, from a column with one id or a list of them; "" is none."""
    return tuple(tuple(filter(None, [cells] if isinstance(cells, str) else cells)) for cells in frame[name])


def missing(value: object) -> bool:
    """Return whether there is no value: None or not a number. A list is a value."""
    return not isinstance(value, Collection) and bool(pd.isna(value))  # type: ignore[call-overload]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as dictionaries of Python values."""
    # By columns: `to_dict` asks pandas for every value of a small frame on its own.
    columns: Iterable[list[Any]] = [frame[name].tolist() for name in frame]
    return [dict(zip(map(str, frame.columns), values, strict=True)) for values in zip(*columns, strict=True)]


def percent(value: float, *, sign: str = "", scale: float = 100.0) -> str:
    """Write a share in %: ``53.1``."""
    return f"{scale * value:{sign}.1f}"


def interval(value: float, low: float, high: float, *, sign: str = "", scale: float = 100.0) -> str:
    """Write a share in % with its interval: ``53.1 [48.8, 57.4]``."""
    value_text, *ends = (percent(part, sign=sign, scale=scale) for part in (value, low, high))
    return f"{value_text} [{', '.join(ends)}]"
