"""Published figures as data; :mod:`workflows.published.match` puts them beside what a sweep measured.

``workflows/published/PAPER.yaml`` holds the values that a paper prints, each with its source and its certainty:
``read`` in the paper, ``inferred`` where a heading or a setting of it is a conclusion, ``second-hand`` where another
text quotes it. A published figure is never used as a measurement: it stands in its own column, with the settings
that differ and the known anomalies of its table.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from defense.errors import InvalidInput, nearest
from defense.spec import Spec
from tasks.attacks.budgets import format_eps
from workflows.documents.document import read_document

__all__ = [
    "Anomaly",
    "Column",
    "Paper",
    "Published",
    "Reference",
    "load_paper",
    "mean_gains",
    "papers",
    "reference",
]

_FOLDER = Path(__file__).parent

Certainty = Literal["read", "inferred", "second-hand"]


class Column(Spec):
    """The images that a published value was measured on.

    Arguments:
        threat: ``clean``, ``attack`` or ``corruption``.
        norm: Norm of an attack.
        eps: Its budget, in units of [0, 1] pixels.
        adaptive: Whether it goes through the purifier; None where that is not stated.
        attack: Which one, where stated.
        corruption: Name of the corruption; the value is a mean over its severities.
    """

    threat: Literal["clean", "attack", "corruption"]
    norm: Literal["linf", "l2"] | None = None
    eps: float | None = None
    adaptive: bool | None = None
    attack: str | None = None
    corruption: str | None = None

    def label(self) -> str:
        """``clean``, ``attack linf 8/255``, ``glass_blur``."""
        if self.threat != "attack" or self.eps is None:
            return self.corruption or self.threat
        kind = {None: "", True: "adaptive ", False: "static "}[self.adaptive]
        return f"{kind}{self.attack or 'attack'} {self.norm} {format_eps(self.eps)}"


class Row(Spec):
    """A line of a published table: accuracies in %, one per column; classifier None is not stated."""

    defence: str
    classifier: str | None = None
    values: tuple[float, ...] = Field(min_length=1)


Settings = dict[str, int | float | str | None]
"""What is stated of each setting; None for what is left open."""


class Table(Spec):
    """A part of a published table with one source and one certainty; its settings go before those of the paper."""

    table: str
    dataset: str
    certainty: Certainty
    source: str
    settings: Settings = Field(default_factory=dict)
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for row in self.rows:
            if len(row.values) != len(self.columns) or not all(0 <= value <= 100 for value in row.values):
                raise ValueError(f"row {row} has not {len(self.columns)} values in %")
        return self


class Anomaly(Spec):
    """An impossible or inconsistent figure of a paper, and the tables that it concerns."""

    tables: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Published:
    """One published accuracy.

    Arguments:
        table: Table of the paper.
        dataset: Name of the data set.
        classifier: Name of the classifier; None if not stated.
        defence: Purifier, or the training of a baseline.
        column: What images it is of.
        accuracy: In %.
        certainty: How sure the value and its meaning are.
        source: Where it was seen.
        settings: What is stated of its settings.
    """

    table: str
    dataset: str
    classifier: str | None
    defence: str
    column: Column
    accuracy: float
    certainty: Certainty
    source: str
    settings: Settings


class Paper(Spec):
    """The figures of a paper.

    Arguments:
        paper: Its name here.
        title: Its title.
        link: Where it is.
        settings: What it states of its settings.
        tables: Its tables.
        anomalies: What an auditor would print next to any comparison.
    """

    paper: str
    title: str
    link: str
    settings: Settings
    tables: tuple[Table, ...]
    anomalies: tuple[Anomaly, ...]

    @property
    def values(self) -> tuple[Published, ...]:
        """Every value, table by table."""
        return tuple(
            Published(
                *(t.table, t.dataset, row.classifier, row.defence, column, value, t.certainty, t.source),
                settings=self.settings | t.settings,
            )
            for t in self.tables
            for row in t.rows
            for column, value in zip(t.columns, row.values, strict=True)
        )


def papers() -> list[str]:
    """Return the names of the papers with figures here."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_paper(name: str) -> Paper:
    """Return the figures of a paper.

    Raises:
        InvalidInput: None of that name is here.
    """
    if name not in papers():
        raise InvalidInput(f"no published figures {name!r}; {nearest(name, papers())}")
    return Paper.from_fields(read_document(_FOLDER / f"{name}.yaml").data)


def mean_gains(paper: Paper, defence: str, table: str) -> dict[str, float]:
    """Return the mean over corruptions of accuracy with a defence minus without, in points, for each classifier.

    Returns:
        By classifier, and as ``all`` the mean over all cells.
    """
    cells = {
        (value.classifier, value.column.corruption, value.defence): value.accuracy
        for value in paper.values
        if value.table == table and value.column.threat == "corruption" and value.classifier is not None
    }
    gains: dict[str, list[float]] = {}
    for (classifier, corruption, kind), accuracy in cells.items():
        if kind == defence and classifier is not None:
            gains.setdefault(classifier, []).append(accuracy - cells[classifier, corruption, "none"])
    every = [gain for values in gains.values() for gain in values]
    return {name: float(np.mean(values)) for name, values in gains.items()} | {"all": float(np.mean(every))}


@dataclass(frozen=True)
class Reference:
    """The part of a paper that a sweep repeats.

    Arguments:
        paper: Name of the paper.
        table: Its table or figure, ``1`` or ``figure 4``; None for all of it.
        dataset: The data set of the table that the sweep is about; None for all of them.
        smoke: Whether it only tries the parts, on other data or models.
    """

    paper: str
    table: str | None
    dataset: str | None
    smoke: bool


def reference(name: str) -> Reference | None:
    """Return what a sweep repeats: named ``PAPER``, ``PAPER-table2-cifar10`` or ``PAPER-figure4-smoke-digits``."""
    paper = next((candidate for candidate in papers() if name == candidate or name.startswith(f"{candidate}-")), None)
    if paper is None:
        return None
    words = name[len(paper) :].split("-")[1:]
    numbered = next((match for word in words if (match := re.fullmatch(r"(table|figure)(\w+)", word))), None)
    table = None if numbered is None else numbered[2] if numbered[1] == "table" else f"figure {numbered[2]}"
    smoke = "smoke" in words
    known = {value.dataset for value in load_paper(paper).values}
    # The data of a smoke sweep are its own, not the table's.
    dataset = None if smoke else next((word for word in words if word in known), None)
    return Reference(paper, table, dataset, smoke)
