"""The defences of a board, and each of them at a budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from defense.denoisers import DenoiserConfig
from workflows.audit import Finding
from workflows.documents.authors import AuthorsSetting
from workflows.grid.cells import Cell
from workflows.leaderboard.numbers import Number, difference
from workflows.leaderboard.sources import Source
from workflows.statistics.paired import PairedDifference

__all__ = ["Candidate", "Entry", "Line"]

_COUNTING = ("clean", "strongest", "worst", "vote", "certified", "corruptions")
"""Numbers of which an error strikes the whole line; one of the authors' attack alone strikes its own number."""


@dataclass(frozen=True)
class Candidate:
    """A number that might stand on a line.

    Arguments:
        name: Which number of the line it is.
        number: The number.
        counts: Whether it does.
    """

    name: str
    number: Number
    counts: bool


@dataclass(eq=False)
class Line:
    """A defence at a budget.

    Arguments:
        entry: The defence.
        norm: Norm of the attacks; None without any.
        eps: Their budget.
        candidates: Every number of every sweep, by its name.
    """

    entry: Entry
    norm: str | None
    eps: float
    candidates: dict[str, list[Number]] = field(default_factory=dict)

    def number(self, name: str) -> Number | None:
        """Return the number that counts; None where nothing is measured."""
        own = [*self.candidates.get(name, ()), *self.entry.candidates.get(name, ())]
        return max(own, key=lambda number: number.rank, default=None)

    @cached_property
    def hidden(self) -> PairedDifference | None:
        """What the authors' attack leaves more than the strongest other one, on the images that both have."""
        published, other = self.number("published"), self.number("other")
        return None if published is None or other is None else difference(other, published)

    @property
    def adaptive(self) -> bool:
        """Whether somebody attacked it who knew it; of the bare classifier there is nothing more to know."""
        strongest = self.number("strongest")
        return strongest is not None and (strongest.kind > 0 or self.entry.bare)

    def all_candidates(self) -> Iterator[Candidate]:
        """Yield every number that was considered for the line, those that count among them."""
        for name in dict.fromkeys([*self.entry.candidates, *self.candidates]):
            chosen = self.number(name)
            for number in [*self.entry.candidates.get(name, ()), *self.candidates.get(name, ())]:
                yield Candidate(name, number, number is chosen)

    def errors(self) -> dict[str, str]:
        """Return why numbers cannot be right: the first error on the cell of each, by the name of the number."""
        found = {}
        for name in (*_COUNTING, "published"):
            number = self.number(name)
            if number is None:
                continue
            wrong = next(
                (
                    finding
                    for finding in number.source.analysis.findings
                    if finding.standing == "error" and number.cell.id in finding.cells
                ),
                None,
            )
            if wrong is not None:
                found[name] = f"{wrong.rule}: {wrong.text}"
        return found

    @property
    def struck(self) -> str:
        """Why the line does not count: the first error on a number of it; empty where it does."""
        errors = self.errors()
        return next((errors[name] for name in _COUNTING if name in errors), "")


@dataclass(eq=False)
class Entry:
    """A defence.

    Arguments:
        key: Its id on the site.
        cell: A cell of it, for its specs.
        label: What it is called.
        dataset: What its data set is called.
        classifier: What its classifier is called.
        places: Its cells, by sweep.
        setting: The published setting of its authors, if it is one.
        evaluations: Network evaluations of one answer.
        candidates: Its numbers that no attack is part of.
        lines: It at every budget.
    """

    key: str
    cell: Cell
    label: str
    dataset: str
    classifier: str
    places: dict[int, tuple[Source, list[Cell]]] = field(default_factory=dict)
    setting: AuthorsSetting | None = None
    evaluations: float = float("nan")
    candidates: dict[str, list[Number]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    @property
    def bare(self) -> bool:
        """Whether it is the classifier without a purifier."""
        return self.cell.defence.purifier.purifier == "none"

    @property
    def denoiser(self) -> str:
        """The files of its denoisers."""
        parts = [part for _, part in self.cell.defence.purifier.parts() if isinstance(part, DenoiserConfig)]
        names = (getattr(part, "path", None) or getattr(part, "weights", None) for part in parts)
        formats = (part.identity()["format"] for part in parts)
        files = [Path(name).name if name else other for name, other in zip(names, formats, strict=True)]
        return " + ".join(dict.fromkeys(files)) or "none"

    @property
    def cells(self) -> list[tuple[Source, Cell]]:
        """Its cells in every sweep."""
        return [(source, cell) for source, cells in self.places.values() for cell in cells]

    @property
    def named(self) -> set[str]:
        """The published settings that sweeps say it is."""
        purifier = self.cell.defence.purifier.id
        return {name for source, _ in self.places.values() for name in source.sweep.names.get(purifier, ())}

    def findings(self) -> list[tuple[Source, Finding]]:
        """Return what the auditor found on its cells, errors first."""
        found = [
            (source, finding)
            for source, cells in self.places.values()
            for finding in source.analysis.findings
            if {cell.id for cell in cells} & set(finding.cells)
        ]
        order = ("error", "warning", "note", "silenced")
        return sorted(found, key=lambda pair: order.index(pair[1].standing))
