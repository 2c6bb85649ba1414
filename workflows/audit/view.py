"""Cells as the rules see them: specs, rows, and which answers are right, read once."""

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
from tasks.stages import ROW_SCHEMAS, AttackStage, Smoothed
from workflows.grid.load import Cell
from workflows.results.reader import Results

__all__ = [
    "Certified",
    "Judged",
    "Rung",
    "View",
    "certificates",
    "group_by",
    "knows_rungs",
    "rung_stages",
    "rungs",
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
    def stage(self) -> AttackStage | None:
        """The stage that made the images; None for clean ones."""
        return self.cell.attack_stage

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
        return None if self.stage is None else self.stage.attack

    @property
    def name(self) -> str:
        """What tells a reader that not a cell is meant but a part of it; empty for a cell."""
        return ""

    @property
    def judged(self) -> bool:
        """Whether its answers are those of the judgement, and not of draws by which an attacker chose."""
        return True

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
        rungs = self.tried if self.ladder and not self.bare else ()
        return tuple(rung for rung in rungs if not (rung.static or rung.black_box))

    @property
    def tried(self) -> tuple[AttackConfig, ...]:
        """The rungs of a ladder, or the attack itself."""
        if isinstance(self.attack, LadderConfig):
            return self.attack.rungs
        return () if self.attack is None else (self.attack,)

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
        """Images, classifier, seed, defence, and what its answers are of where draws stop."""
        defence = self.cell.defence
        # A rung of a ladder knows shares of right draws, the judge then the vote or the worst draw alone.
        return *self.images, defence.purifier.id, defence.draws, defence.until if self.judged else None

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
        """Right answers, shape (images, draws); (images, 1) where draws stop, see :meth:`Results.correct`."""
        return self.results.correct(self.cell)

    @property
    def image_ids(self) -> npt.NDArray[np.int64]:
        """Ids of the judged images."""
        return self.results.image_ids(self.cell)

    @property
    def may_stop(self) -> bool:
        """Whether the number of its images depends on what they show, so that no test at a fixed number holds."""
        return self.results.anytime(self.cell)

    @cached_property
    def accuracy(self) -> float:
        """Avg: mean over draws and images; where draws stop, the share of images whose certain answer is right."""
        return float(self.correct.mean())

    @cached_property
    def right_before(self) -> npt.NDArray[np.bool_]:
        """Whether the bare classifier has each attacked image right before the attack, shape (attacked images,)."""
        rows = self.attack_rows
        right: npt.NDArray[np.bool_] = (rows["clean_prediction"] == rows["label"]).to_numpy()
        return right

    @cached_property
    def right_after(self) -> npt.NDArray[np.float64]:
        """How often what was attacked is right on the submitted image, in [0, 1], shape (attacked images,).

        Of a static attack that is the bare classifier's answer; else the share of right draws, NaN where the image
        was not judged.
        """
        rows = self.attack_rows
        if self.static:
            return np.asarray(rows["adversarial_prediction"] == rows["label"], dtype=np.float64)
        shares = np.asarray(self.correct.mean(1), dtype=np.float64)
        ids = rows["image_id"].to_numpy()
        if len(ids) != len(self.image_ids) or (ids != self.image_ids).any():
            shares = np.asarray(pd.Series(shares, index=self.image_ids).reindex(ids), dtype=np.float64)
        return shares


@dataclass(frozen=True, eq=False)
class Rung(View):
    """An attack of a ladder, judged on the draws by which the ladder chose, which are its own and not the judge's.

    Arguments:
        source: The stage that made its images.
        number: Its place, from 1.
        attacked: Ids of the images that it attacked.
        shares: Its shares of right draws, one for each of these.
        draws: How many draws these are of.
        compared: Whether its accuracy says something beside others: all images were attacked, and no cell of the
            sweep and no earlier rung has judged the same images. A warm rung starts from the worst image of those
            before it: its strength may be theirs, and is no evidence that its own gradient works.
    """

    source: AttackStage | None = None
    number: int = 0
    attacked: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    shares: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    draws: int = 1
    compared: bool = True

    @property
    def stage(self) -> AttackStage | None:
        """See :class:`View`."""
        return self.source

    @property
    def rows(self) -> pd.DataFrame:
        """What the ladder's rows say of the images that it attacked: no judge has looked at its own images."""
        rows = self.results.attack_rows(self.cell)
        return rows.loc[rows["image_id"].isin(self.attacked), ["image_id", "label"]]

    @property
    def attack_rows(self) -> pd.DataFrame:
        """See :class:`View`."""
        return pd.DataFrame() if self.source is None else self.results.rows_of(self.source, self.cell)

    @property
    def image_ids(self) -> npt.NDArray[np.int64]:
        """See :class:`View`."""
        return self.attacked

    @property
    def name(self) -> str:
        """``rung 2 of the ladder, pgd-20 linf exact``."""
        return "" if self.attack is None else f"rung {self.number} of the ladder, {self.attack.label()}"

    @property
    def judged(self) -> bool:
        """See :class:`View`."""
        return False

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Right answers, shape (images, draws): as many as there were, in no order, since rows keep shares alone."""
        right = np.rint(self.shares * self.draws)
        correct: npt.NDArray[np.bool_] = np.arange(self.draws) < right[:, None]
        return correct


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


def rungs(results: Results, ladders: Iterable[View]) -> list[Rung]:
    """Return the rungs of the ladders among some views, without rows that do not say how right a rung left images."""
    found: list[Rung] = []
    members = list(ladders)
    seen = {(view.defended, view.stage.id) for view in members if view.stage is not None}
    for view in members:
        if not isinstance(view.attack, LadderConfig) or view.stage is None or not knows_rungs(view):
            continue
        rights = np.stack(view.attack_rows["attack_rights"].to_list()).astype(np.float64)
        for place, source in enumerate(rung_stages(view.stage)):
            if place >= rights.shape[1]:
                break
            attacked = ~np.isnan(rights[:, place])
            if results.rows_of(source, view.cell).empty or not attacked.any():
                continue
            key = (view.defended, source.id)
            found.append(
                Rung(
                    view.cell,
                    view.ids,
                    results,
                    _notes(results, view.cell, source),
                    source=source,
                    number=place + 1,
                    attacked=view.attack_rows["image_id"].to_numpy(dtype=np.int64)[attacked],
                    shares=rights[attacked, place],
                    draws=view.attack.select if view.stochastic else 1,
                    compared=bool(attacked.all()) and key not in seen and not source.attack.parameter("warm"),
                )
            )
            seen.add(key)
    return found


def rung_stages(ladder: AttackStage) -> list[AttackStage]:
    """Return the stages of a ladder's rungs in order; one that skips is a chain of ladders, each with a rung more."""
    *before, last = ladder.sources
    if len(ladder.sources) == 2 and isinstance(before[0].attack, LadderConfig):
        return [*rung_stages(before[0]), last]
    return list(ladder.sources)


def knows_rungs(ladder: View) -> bool:
    """Whether the rows of a ladder say how right each rung left each image; those of older versions may not."""
    rights = ladder.attack_rows.get("attack_rights")
    return rights is not None and len(rights) > 0 and not rights.isna().any()


def _notes(results: Results, cell: Cell, stage: AttackStage | None = None) -> dict[str, float]:
    total: Counter[str] = Counter()
    source = cell.attack_stage if stage is None else stage
    for chunk in results.chunks_of(source, cell) if source is not None else ():
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
