"""A sweep: a named grid of cells, from a file or built in Python, and what tables call its parts.

::

    Sweep(
        name="mine",
        datasets=[{"dataset": "digits", "images": {"first": 100}}],
        classifiers=["digits-cnn"],
        defences=["none", {"purifier": DiffPureConfig(denoiser=denoiser, sigma_eq=0.25), "draws": 8}],
        attacks=["none", PGDConfig(norm="linf", eps_255=8)],
    )

is the same sweep, with the same ids and the same errors, as the file with these values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from defense.denoisers import DenoiserConfig
from defense.redaction import redacted
from defense.spec import Spec, digest
from tasks.compute import Compute
from tasks.stages.quality import QualityConfig
from workflows.documents.document import Document, document_of, written
from workflows.grid.build import Builder, Grid
from workflows.grid.cells import PARTS, Cell, ProbeWhich
from workflows.grid.precision import Precision, Question, questions
from workflows.grid.silence import Silence

__all__ = ["Entry", "Sweep"]

Entry = str | Mapping[str, Any] | Spec
"""A name, a mapping as in a sweep file, or a config; inside a mapping too, a config may stand for a mapping."""


@dataclass(frozen=True, init=False)
class Sweep:
    """A validated grid of cells.

    The arguments are the sections of a sweep file (``docs/sweep-files.md``). Where an entry has a list for a single
    value, that is an axis here too. Relative paths start at the working directory.

    Arguments:
        name: Its name, for tables and MLflow.
        datasets: Data set entries, with ``images``.
        classifiers: Classifier entries.
        defences: Purifier entries, with ``draws`` and ``aggregation``.
        attacks: Attack entries, ``"none"`` for clean images.
        corruptions: Corruption entries.
        certificates: Certificate entries.
        seeds: Seeds of all randomness.
        denoisers: Denoisers by names of yours, which purifier entries can use.
        chunk: Images of a unit.
        compute: How units compute.
        exclude: Cells to leave out.
        include: Further grids, which inherit the axes that they do not name.
        quality: Whether image quality is measured, and how.
        resubmissions: M of worst-of-M accuracy; by default as many as there are draws.
        silence: Findings of the auditor that are no concern here, with ``rule``, ``reason`` and maybe ``cells``.
        probe: Whether purifiers and classifiers are probed: all (True), none, or ``"foreign"``, those whose code is
            not puregrid's (the default).
        precision: How precise answers must be, so that no cell is computed further than its answer needs; by default
            every cell is computed in full.

    Attributes:
        text: The text of a sweep file that says the same, for the record.
        cells: The grid, without duplicates, in order.
        document: Where its entries are written, for messages.
        silences: What ``silence`` means.
        precision: What ``precision`` says, None without.
        questions: What it asks of the cells.
        names: See :class:`~workflows.grid.build.Grid`.
        base: The sweep as written, of one whose attacks with ``converge`` have led to further cells; else None.

    Raises:
        InvalidInput: Anything that would make the sweep fail or mean something else than was meant; with the place of
            the value, ``attacks.0.rungs.1.steps``.
    """

    name: str
    text: str
    cells: tuple[Cell, ...]
    document: Document = field(compare=False, repr=False)
    silences: tuple[Silence, ...] = field(default=(), compare=False, repr=False)
    precision: Precision | None = field(default=None, compare=False)
    questions: tuple[Question, ...] = field(default=(), compare=False, repr=False)
    names: Mapping[str, set[str]] = field(default_factory=dict, compare=False, repr=False)
    base: Sweep | None = field(default=None, compare=False, repr=False)

    def __init__(
        self,
        name: str = "sweep",
        *,
        datasets: Sequence[Entry],
        classifiers: Sequence[Entry],
        defences: Sequence[Entry],
        attacks: Sequence[Entry] | None = None,
        corruptions: Sequence[Entry] | None = None,
        certificates: Sequence[Entry] | None = None,
        seeds: int | Sequence[int] | None = None,
        denoisers: Mapping[str, Mapping[str, Any] | DenoiserConfig] | None = None,
        chunk: int | None = None,
        compute: Mapping[str, Any] | Compute | None = None,
        exclude: Sequence[Mapping[str, Any]] | None = None,
        include: Sequence[Mapping[str, Any]] | None = None,
        quality: bool | Mapping[str, Any] | QualityConfig | None = None,
        resubmissions: int | None = None,
        silence: Sequence[Mapping[str, Any]] | None = None,
        probe: ProbeWhich | None = None,
        precision: Mapping[str, Any] | Precision | None = None,
    ) -> None:
        sections = {
            "sweep": name,
            "datasets": datasets,
            "classifiers": classifiers,
            "denoisers": denoisers,
            "defences": defences,
            "attacks": attacks,
            "corruptions": corruptions,
            "certificates": certificates,
            "seeds": seeds,
            "chunk": chunk,
            "compute": compute,
            "exclude": exclude,
            "include": include,
            "quality": quality,
            "resubmissions": resubmissions,
            "silence": silence,
            "probe": probe,
            "precision": precision,
        }
        stated = {section: value for section, value in sections.items() if value is not None}
        document = document_of(stated, Spec)
        grid = Builder(document).grid()
        Document(None, grid.record, "").check_credentials()  # of configs too
        self._set(written(grid.record), document, grid)

    @classmethod
    def of_grid(cls, grid: Grid, text: str, document: Document) -> Self:
        """Return the sweep of a document."""
        sweep = cls.__new__(cls)
        sweep._set(text, document, grid)
        return sweep

    @classmethod
    def of_cells(cls, name: str, text: str, cells: Sequence[Cell]) -> Self:
        """Return a sweep of given cells, each computed in full; ``text`` is that of its file."""
        sweep = cls.__new__(cls)
        sweep._set(text, Document(None, {}, text), Grid(name, tuple(cells), {}))
        return sweep

    def _set(self, text: str, document: Document, grid: Grid) -> None:
        values = {
            "name": grid.name,
            "text": redacted(text),  # a comment of the file may hold what no value of it may
            "cells": grid.cells,
            "document": document,
            "silences": grid.silences,
            "precision": grid.precision,
            "questions": grid.questions,
            "names": grid.names,
            "base": None,
        }
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    def with_references(self, references: Mapping[int, Mapping[int, float]]) -> Sweep:
        """Return this sweep, whose questions know the baseline: by position of the cell, its values by image."""
        sweep = type(self).__new__(type(self))
        asked = tuple(replace(q, reference=references.get(q.cells[0], {})) for q in self.questions)
        grid = Grid(self.name, self.cells, {}, self.silences, self.precision, asked, self.names)
        sweep._set(self.text, self.document, grid)
        return sweep

    def with_cells(self, cells: tuple[Cell, ...]) -> Sweep:
        """Return this sweep with further cells, and with its own id: they follow from what it says and measures."""
        sweep = type(self).__new__(type(self))
        asked = tuple(questions(cells, self.precision))
        grid = Grid(self.name, cells, {}, self.silences, self.precision, asked, self.names)
        sweep._set(self.text, self.document, grid)
        object.__setattr__(sweep, "base", self)
        return sweep

    @property
    def asks_baseline(self) -> bool:
        """Whether cells stop by what a baseline says, which has to be read first."""
        decide = None if self.precision is None else self.precision.decide
        return decide is not None and decide.baseline is not None

    @property
    def converges(self) -> bool:
        """Whether an attack is doubled until that changes nothing."""
        return any(cell.converge is not None for cell in self.cells)

    @cached_property
    def adversarial(self) -> tuple[Cell, ...]:
        """The cells of the robustness table: clean images and attacks."""
        return tuple(cell for cell in self.cells if cell.adversarial)

    @cached_property
    def corrupted(self) -> tuple[Cell, ...]:
        """The cells of corruptions."""
        return tuple(cell for cell in self.cells if cell.corruption is not None)

    @cached_property
    def certified(self) -> tuple[Cell, ...]:
        """The cells of certificates."""
        return tuple(cell for cell in self.cells if cell.certificate is not None)

    @cached_property
    def labels(self) -> dict[str, dict[str, str]]:
        """The names of the parts of each cell in tables, by cell id; two different parts never have one name.

        Where short labels coincide, the fields in which the parts differ are added; networks by the names of their
        files where these differ, else by the first digits of their ids.
        """
        labels: dict[str, dict[str, str]] = {cell.id: {} for cell in self.cells}
        for part in PARTS:
            names: dict[str, dict[str, tuple[dict[str, Any], Cell]]] = {}
            named = [(cell, *known) for cell in self.cells if (known := cell.part(part)) is not None]
            for cell, label, fields in named:
                names.setdefault(label, {})[json.dumps(fields, sort_keys=True)] = fields, cell
            for cell, label, fields in named:
                others = names[label].values()
                differs = [k for k in fields if any(other.get(k) != fields[k] for other, _ in others)]
                extra = ", ".join(f"{key}={_shown(part, key, fields[key], others)}" for key in differs)
                labels[cell.id][part] = f"{label} ({extra})" if extra else label
        return labels

    @cached_property
    def id(self) -> str:
        """Content id of name and cells, whatever way the grid was written."""
        if self.base is not None:
            return self.base.id
        return digest(json.dumps([self.name, sorted(cell.id for cell in self.cells)]))


def _shown(part: str, key: str, value: Any, others: Iterable[tuple[dict[str, Any], Cell]]) -> str:
    """Return a field's value as it distinguishes parts: the name of a network's file if no other has it."""
    files = {json.dumps(fields.get(key), sort_keys=True): _file(part, key, cell) for fields, cell in others}
    name = files[json.dumps(value, sort_keys=True)]
    return name if name is not None and list(files.values()).count(name) == 1 else _short(value)


def _file(part: str, key: str, cell: Cell) -> str | None:
    config = {"classifier": cell.classifier, "defence": cell.defence.purifier}.get(part)
    network = getattr(config, key, None)
    path = getattr(network, "path", None) or getattr(network, "weights", None)
    return Path(path).name if isinstance(path, str) else None


def _short(value: Any) -> str:
    """Shorten a field's value; hashes and nested configs to their first digits."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 16 else digest(text)[:8] if isinstance(value, dict) else text[:8]
