"""Cells as the rules see them: specs, rows, and which answers are right, read once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from defense.certify import ABSTAIN
from defense.gradients import GradientMode
from defense.purifiers import NoPurifierConfig
from tasks.attacks import AttackConfig, LadderConfig
from tasks.certificates import CertificateConfig
from tasks.stages import ROW_SCHEMAS, Smoothed
from workflows.grid.load import Cell
from workflows.results.reader import Results

__all__ = [
    "Certified",
    "Judged",
    "View",
    "certificates",
    "group_by",
    "strongest",
    "views",
]


Key = tuple[object, ...]


class Judged(Protocol):
    """What a judged cell of any kind has: images, and answers that are right or not."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the cells."""

    @property
    def images(self) -> Key:
        """Which images, classifier and seed."""

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Right answers, shape (images,) or (images, draws)."""

    @property
    def accuracy(self) -> float:
        """Their mean."""


J = TypeVar("J", bound=Judged)


def _images(cell: Cell) -> Key:
    chunks = tuple(chunk.name for chunk in cell.images.chunks)
    return cell.images.dataset.id, chunks, cell.classifier.id, cell.seed


@dataclass(frozen=True, eq=False)
class View:
    """The cells of one judgement: cells that differ only in how draws are aggregated share every row.

    Arguments:
        cell: One of them, with committed rows.
        ids: Ids of them all.
        results: Where rows are read when a rule asks: those of all views together need not fit into memory.
        attack_notes: Numbers in the notes of the attack's commits, summed over its chunks.
    """

    cell: Cell
    ids: tuple[str, ...]
    results: Results
    attack_notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> pd.DataFrame:
        """The judged rows, not empty."""
        return self.results.rows(self.cell)

    @property
    def attack_rows(self) -> pd.DataFrame:
        """Rows of the attack, empty for a clean cell."""
        return self.results.attack_rows(self.cell)

    @property
    def attack(self) -> AttackConfig | None:
        """The attack that was run: on a classifier without a purifier, the one that knows no purifier."""
        source = self.cell.attack_stage
        return None if source is None else source.attack

    @property
    def bare(self) -> bool:
        """Whether there is no purifier."""
        return isinstance(self.cell.defence.purifier, NoPurifierConfig)

    @property
    def stochastic(self) -> bool:
        """Whether two draws may differ."""
        return not self.bare and self.cell.defence.purifier.stochastic

    @property
    def guided(self) -> bool:
        """Whether a gradient has to pass through guidance."""
        purifier = self.cell.defence.purifier
        return purifier.guided or purifier.uses_classifier

    @property
    def static(self) -> bool:
        """Whether the attack sees the bare classifier alone."""
        return self.attack is not None and self.attack.static

    @property
    def black_box(self) -> bool:
        """Whether the attack looks at no gradient."""
        return self.attack is not None and self.attack.black_box

    @property
    def ladder(self) -> bool:
        """Whether it submits the worst of several attacks' images: as strong as they are, and evidence of none."""
        return isinstance(self.attack, LadderConfig)

    @property
    def adaptive(self) -> bool:
        """Whether the attack follows a gradient of the whole defence, or of a stand-in for it."""
        if self.attack is None or self.bare or self.ladder:
            return False
        return not self.attack.static and not self.black_box

    @property
    def blind(self) -> bool:
        """Whether it is a gradient attack on the classifier alone, and there is a purifier."""
        return self.attack is not None and not self.bare and self.attack.static and not self.black_box

    @property
    def followed(self) -> tuple[AttackConfig, ...]:
        """The attacks in it that follow a gradient of the whole defence: itself, or rungs of a ladder; often none."""
        if self.adaptive and self.attack is not None:
            return (self.attack,)
        rungs = self.attack.rungs if isinstance(self.attack, LadderConfig) and not self.bare else ()
        return tuple(rung for rung in rungs if not (rung.static or rung.black_box))

    @property
    def modes(self) -> frozenset[str]:
        """Names of the gradient modes of :attr:`followed`, without their steps."""
        return frozenset(GradientMode.parse(attack.gradient or "exact").name for attack in self.followed)

    def reported(self, name: str) -> npt.NDArray[np.float64] | None:
        """Return the attack's own column ``name``, shape (images,), None if it has none or lacks values.

        Rows of older versions lack some. Columns of attacks that are not puregrid's are found by their name too, if
        they have one value an image.
        """
        values = self.attack_rows.get(f"attack_{name}")
        if values is None:
            extra = self.attack_rows.get("attack_extra", pd.Series(dtype=object))
            found = [dict(row or ()).get(name, ()) for row in extra]
            if not found or any(len(value) != 1 for value in found):
                return None
            return np.array([float(value[0]) for value in found])
        types = {column.name: column.type for column in ROW_SCHEMAS["attack"].columns}
        whole = pa.types.is_integer(types[f"attack_{name}"])
        missing = values.isna()
        # A float that is missing reads like one that is NaN: of those, only all of them mean that there is no column.
        return None if missing.all() or (whole and missing.any()) else values.to_numpy(np.float64)

    @cached_property
    def images(self) -> Key:
        """Which images, classifier and seed: what cells must share to be compared at all."""
        return _images(self.cell)

    @cached_property
    def defended(self) -> Key:
        """Images, classifier, seed and defence."""
        return *self.images, self.cell.defence.purifier.id, self.cell.defence.draws

    @cached_property
    def threat(self) -> Key:
        """Defence, norm and budget."""
        attack = self.attack
        return *self.defended, *(("", 0.0) if attack is None else (attack.norm, attack.eps))

    @property
    def predictions(self) -> npt.NDArray[np.int64]:
        """Answers, shape (images, draws)."""
        answers = self.results.answers(self.cell)
        assert answers is not None  # a view has rows
        return answers.prediction.astype(np.int64)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Right answers, shape (images, draws)."""
        return self.results.correct(self.cell)

    @property
    def image_ids(self) -> npt.NDArray[np.int64]:
        """Ids of the judged images."""
        return self.results.image_ids(self.cell)

    @cached_property
    def accuracy(self) -> float:
        """Avg: mean over draws and images."""
        return float(self.correct.mean())


@dataclass(frozen=True, eq=False)
class Certified:
    """A certificate cell.

    Arguments:
        cell: The cell.
        results: Where its rows are read, one certificate an image, not empty.
    """

    cell: Cell
    results: Results

    @property
    def rows(self) -> pd.DataFrame:
        """Its certificates."""
        return self.results.rows(self.cell)

    @property
    def ids(self) -> tuple[str, ...]:
        """Its id."""
        return (self.cell.id,)

    @property
    def certificate(self) -> CertificateConfig:
        """Parameters of the certificate."""
        assert self.cell.certificate is not None
        return self.cell.certificate

    @property
    def smoothed(self) -> Smoothed:
        """The smoothed classifier that is certified."""
        return self.cell.certify.smoothed

    @cached_property
    def images(self) -> Key:
        """See :class:`View`."""
        return _images(self.cell)

    @cached_property
    def image_ids(self) -> npt.NDArray[np.int64]:
        """Ids of the certified images."""
        return self.rows["image_id"].to_numpy(dtype=np.int64)

    @cached_property
    def radius(self) -> npt.NDArray[np.float64]:
        """Certified l_2 radii, units of [0, 1] pixels, shape (images,)."""
        return self.rows["radius"].to_numpy(dtype=np.float64)

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether the certified class is the label, shape (images,); an abstention is not right."""
        answer = self.rows["prediction"].to_numpy()
        correct: npt.NDArray[np.bool_] = (answer == self.rows["label"].to_numpy()) & (answer != ABSTAIN)
        return correct

    @cached_property
    def accuracy(self) -> float:
        """Certified accuracy at radius 0."""
        return float(self.correct.mean())


def certificates(results: Results) -> list[Certified]:
    """Return the certificate cells with committed rows, in the sweep's order."""
    return [Certified(cell, results) for cell in results.sweep.certified if results.images(cell)]


def views(results: Results, cells: Iterable[Cell] | None = None) -> list[View]:
    """Return the judgements with committed rows, in the sweep's order.

    Arguments:
        results: The sweep's results.
        cells: Cells of the sweep that are no certificates; by default the clean and attacked ones.
    """
    groups: dict[Key, list[Cell]] = defaultdict(list)
    for cell in results.sweep.adversarial if cells is None else cells:
        groups[cell.evaluate.id, tuple(chunk.name for chunk in cell.images.chunks)].append(cell)
    judgements = []
    for same in groups.values():
        if results.images(same[0]):
            ids = tuple(cell.id for cell in same)
            judgements.append(View(same[0], ids, results, _notes(results, same[0])))
    return judgements


def _notes(results: Results, cell: Cell) -> dict[str, float]:
    total: Counter[str] = Counter()
    source = cell.attack_stage
    for chunk in cell.images.chunks if source is not None else ():
        assert source is not None
        commit = results.store.committed("attack", source.id, chunk.name)
        for name, value in ({} if commit is None else commit.notes).items():
            if isinstance(value, int | float):
                total[name] += value  # type: ignore[assignment]
    return dict(total)


def group_by(members: Iterable[J], key: str) -> Iterator[list[J]]:
    """Group views by ``key`` (``images``, ``defended``, ``threat``), in the order of their first members."""
    groups: dict[Any, list[J]] = defaultdict(list)
    for view in members:
        groups[getattr(view, key)].append(view)
    yield from groups.values()


def strongest(members: Iterable[View]) -> View | None:
    """Return the view of lowest accuracy, None if there is no view."""
    return min(members, key=lambda view: view.accuracy, default=None)
