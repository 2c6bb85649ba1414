"""Read a sweep back: committed rows as pandas frames, and nothing else.

>>> results = Results(Store("results"), load_sweep(Path("sweep.yaml")))   # doctest: +SKIP
>>> results.rows(results.sweep.cells[0])                                  # doctest: +SKIP
>>> results.robustness()                                                  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from defense.aggregate import UNASKED, aggregate, certain_answer
from defense.errors import InvalidInput
from tasks.attacks import AttackConfig
from tasks.corruptions.config import CorruptionConfig
from tasks.stages import Chunk, ProbeStage, SampleStage, SequenceStage, StageSpec
from workflows.grid.load import Cell, Sweep
from workflows.planning.plan import make_plan
from workflows.planning.stopping import Stopping, resubmissions
from workflows.results.kept import Kept
from workflows.statistics.combined import fixed_aa_any, fixed_aa_mean, lowest_per_image, selected_per_image
from workflows.statistics.proportions import Proportion, average, proportion, worst, worst_of
from workflows.statistics.sequences import anytime
from workflows.store import Store
from workflows.store.blocks import Facts, StageRows

__all__ = ["Results"]


FIXED = "fixed n 95 %, Wilson"
"""What the intervals of a cell promise that is computed in full, in a sweep in which others may stop."""

_Key = tuple[str, tuple[str, ...]]
"""Id of a stage, and chunks."""

_AHEAD = 16
"""Stages whose rows are read at once in a bucket."""

KEPT_BYTES = 256 * 2**20
"""How much of the rows :class:`Results` keeps, and how much of frames of them; what does not fit is read again."""


class Answers(NamedTuple):
    """The judgements of a cell as arrays.

    Arguments:
        image_id: Images, shape (N,).
        label: Their classes, shape (N,).
        prediction: Answers, shape (N, draws).
        mean_probability: Mean over draws of the probability of each class, shape (N, classes); NaN where not all
            draws were asked.
    """

    image_id: npt.NDArray[np.int32]
    label: npt.NDArray[np.int16]
    prediction: npt.NDArray[np.int16]
    mean_probability: npt.NDArray[np.float32]

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Right answers, shape (N, draws)."""
        correct: npt.NDArray[np.bool_] = self.prediction == self.label[:, None]
        return correct


class Results:
    """The committed results of a sweep.

    Every frame looks for new commits. Memory hardly grows with the rows: some are kept (:data:`KEPT_BYTES`), and of
    the others which answers are right, a bit each, and the sums of their network evaluations.

    Arguments:
        store: The store.
        sweep: The sweep.
        kept: Bytes of rows to keep, and of frames made of them.
    """

    def __init__(self, store: Store, sweep: Sweep, kept: int = KEPT_BYTES) -> None:
        self.store = store
        self.sweep = sweep
        self._tables: Kept[_Key, pa.Table] = Kept(kept)
        self._frames: Kept[_Key, pd.DataFrame] = Kept(kept)
        self._lock = threading.Lock()
        self._committed: dict[str, set[str]] = {}
        self._named: dict[int, tuple[StageSpec, str]] = {}
        self._facts: dict[tuple[str, str], Facts] = {}
        self._right: dict[_Key, tuple[npt.NDArray[np.uint8], tuple[int, int]]] = {}
        self._ids: dict[bytes, npt.NDArray[np.int64]] = {}
        self._ids_of: dict[_Key, npt.NDArray[np.int64]] = {}
        self.stopping = Stopping(sweep, store) if sweep.questions else None
        self._positions = {cell.id: position for position, cell in enumerate(sweep.cells)} if sweep.questions else {}
        if self.stopping is not None:
            self.stopping.look()

    def _fresh(self, stage_id: str | None = None) -> None:
        """Look for new commits: of one stage, or of all when they are next asked for."""
        if stage_id is None:
            self._look_again()
        else:
            self._committed.pop(stage_id, None)
        if self.stopping is not None:
            self.stopping.look(None if stage_id is None else {stage_id})

    def complete(self, cell: Cell) -> bool:
        """Return whether a cell needs no more images: all are judged, or its answer is precise enough."""
        return self.settled(cell) or self.images(cell) == cell.images.count

    def settled(self, cell: Cell) -> bool:
        """Return whether every question of a cell is answered."""
        return self.stopped_after(cell) is not None

    def anytime(self, cell: Cell) -> bool:
        """Return whether a cell may stop early, so that its intervals must hold at any number of images."""
        return self.stopping is not None and self.stopping.asked(self._positions[cell.id])

    def estimate(self, cell: Cell, values: npt.ArrayLike) -> Proportion:
        """Return the mean of values of a cell's images, in their order, with the interval of its guarantee."""
        precision = self.sweep.precision
        if precision is None or not self.anytime(cell):
            return proportion(values)
        return anytime(values, precision.population(cell))

    def guarantee(self, cell: Cell) -> dict[str, str]:
        """Return what the intervals of a cell promise, and why it has these images; nothing without ``precision``."""
        precision = self.sweep.precision
        if precision is None:
            return {}
        if not self.anytime(cell):
            return {"guarantee": FIXED, "stopped": "all images"}
        stopped = "precise enough" if precision.decide is None else "decided"
        if not self.settled(cell):
            stopped = "all images" if self.images(cell) == cell.images.count else "not yet"
        return {"guarantee": precision.guarantee, "stopped": stopped}

    def rows(self, cell: Cell) -> pd.DataFrame:
        """Return the last rows of a cell, one per image, in the sweep's order; empty if none is committed.

        For a certificate these are the certificates, for all other threats the judgements.
        """
        return self._stage(cell.stages[0], cell)

    def quality_rows(self, cell: Cell) -> pd.DataFrame:
        """Return the rows of image quality of a cell; empty if none is measured or committed."""
        return pd.DataFrame() if cell.measure is None else self._stage(cell.measure, cell)

    def attack_rows(self, cell: Cell) -> pd.DataFrame:
        """Return the rows of the attack that made the cell's images; empty for a clean cell."""
        source = cell.attack_stage
        return pd.DataFrame() if source is None else self.rows_of(source, cell)

    def rows_of(self, stage: StageSpec, cell: Cell) -> pd.DataFrame:
        """Return the rows of a stage on the images of a cell that needs it, such as a rung of its ladder."""
        return self._stage(stage, cell)

    def answers(self, cell: Cell) -> Answers | None:
        """Return the judgements of a clean, attacked or corrupted cell; None if none is committed.

        Where draws stop, each image has one answer, that which is certain: what the draws that were asked said is no
        sample of all of them. It is that of :func:`defense.aggregate.certain_answer`.
        """
        answers, until = self.asked(cell), cell.defence.until
        if answers is None or until is None:
            return answers
        certain = certain_answer(answers.prediction, answers.label, until)
        return answers._replace(prediction=certain[:, None].astype(np.int16))

    def asked(self, cell: Cell) -> Answers | None:
        """Return :meth:`answers` as the rows have them, :data:`~defense.aggregate.UNASKED` for draws not asked."""
        table = self._together(cell.evaluate, self._chunks(cell.evaluate, cell))
        if table is None:
            return None
        return Answers(
            table["image_id"].to_numpy(),
            table["label"].to_numpy(),
            _matrix(table["prediction"]),
            _matrix(table["mean_probability"]),
        )

    def correct(self, cell: Cell) -> npt.NDArray[np.bool_]:
        """Return which answers of a clean, attacked or corrupted cell are right, shape (images, draws).

        With what is committed; (0, draws) if nothing is. Where draws stop, whether the answer of :meth:`answers` is,
        shape (images, 1).
        """
        key = self._remember(cell)
        packed, (images, draws) = self._right[key]
        return np.unpackbits(packed, count=images * draws).reshape(images, draws).astype(np.bool_)

    def image_ids(self, cell: Cell) -> npt.NDArray[np.int64]:
        """Return the images of :meth:`correct`, shape (images,); do not write to it, cells share them."""
        return self._ids_of[self._remember(cell)]

    def _remember(self, cell: Cell) -> _Key:
        key = self._id(cell.evaluate), tuple(self._chunks(cell.evaluate, cell))
        if key not in self._right:
            answers = self.answers(cell)
            right = np.zeros((0, cell.defence.draws), dtype=np.bool_) if answers is None else answers.correct
            self._right[key] = np.packbits(right), (right.shape[0], right.shape[1])
            ids = np.zeros(0, dtype=np.int64) if answers is None else answers.image_id.astype(np.int64)
            self._ids_of[key] = self._ids.setdefault(hashlib.sha256(ids.tobytes()).digest(), ids)
        return key

    def images(self, cell: Cell) -> int:
        """Return how many images of a cell have a last row."""
        spec = cell.stages[0]
        return sum(facts.rows for facts in self._facts_of(spec, self._chunks(spec, cell)))

    def draws(self, cell: Cell) -> float:
        """Return how many draws of an image of a cell were asked, the mean over its images; NaN without images."""
        answers = None if cell.defence.until is None else self.asked(cell)
        if answers is None:
            return float(cell.defence.draws) if cell.defence.until is None else float("nan")
        return float((answers.prediction != UNASKED).sum(1).mean())

    def evaluations(self, cell: Cell) -> float:
        """Return the network evaluations for an image of a cell, the mean over its images; NaN without images."""
        spec = cell.stages[0]
        units = self._facts_of(spec, self._chunks(spec, cell))
        images = sum(unit.rows for unit in units)
        return sum(unit.denoiser + unit.classifier for unit in units) / images if images else float("nan")

    def times(self, cell: Cell) -> tuple[float, float] | None:
        """Return when the first unit behind a cell began and when the last one ended, as their commits say.

        Seconds since 1970 by the clocks of those who computed them. Counted are the units that made the judged
        images, without the rungs of a ladder, and those that judge, measure or certify. None if no commit tells.
        """
        specs = (*cell.stages, *(() if cell.source is None else (cell.source,)))
        units = [unit for spec in specs for unit in self._facts_of(spec, self._chunks(spec, cell)) if unit.ended]
        return (min(u.ended - u.seconds for u in units), max(u.ended for u in units)) if units else None

    def stopped_after(self, cell: Cell) -> int | None:
        """Return after how many chunks a cell has stopped; None if it has not, or may not."""
        return None if self.stopping is None else self.stopping.stop(self._positions[cell.id])

    def chunks_of(self, spec: StageSpec, cell: Cell) -> list[Chunk]:
        """Return the committed chunks of a stage whose rows count for a cell that needs it, in order."""
        names = set(self._chunks(spec, cell))
        return [chunk for chunk in cell.images.chunks if chunk.name in names]

    def _stage(self, spec: StageSpec, cell: Cell) -> pd.DataFrame:
        self._fresh(self._id(spec))
        chunks = self._chunks(spec, cell)
        key = self._id(spec), tuple(chunks)
        frame = self._frames.get(key)
        if frame is None:
            table = self._together(spec, chunks)
            frame = pd.DataFrame() if table is None else table.to_pandas()
            self._frames.put(key, frame, _size(frame))
        return frame

    def _id(self, spec: StageSpec) -> str:
        """Return the id of a stage, a hash of all that it says, computed once for each object."""
        if id(spec) not in self._named:
            self._named[id(spec)] = spec, spec.id
        return self._named[id(spec)][1]

    def _chunks(self, spec: StageSpec, cell: Cell) -> list[str]:
        """Return the chunks of a stage that count for a cell: those committed, of a cell that may stop no others."""
        done = self._done(spec.stage, self._id(spec))
        prefix = None if self.stopping is None else self.stopping.prefix(self._positions[cell.id])
        return [chunk.name for chunk in cell.images.chunks[:prefix] if chunk.name in done]

    def _done(self, stage: str, stage_id: str) -> set[str]:
        if stage_id not in self._committed:
            self._committed[stage_id] = self.store.committed_chunks(stage, stage_id)
        return self._committed[stage_id]

    def _look_again(self) -> None:
        """Forget which chunks are committed; in a bucket, list all stages at once."""
        self._committed.clear()
        if self.store.is_remote:
            specs = {self._id(spec): spec for cell in self.sweep.cells for spec in cell.stages}
            listed = self.store.at_once(lambda key: self.store.committed_chunks(specs[key].stage, key), list(specs))
            self._committed = dict(zip(specs, listed, strict=True))

    def _read_ahead(self, cells: Sequence[Cell], spec_of: Callable[[Cell], StageSpec | None]) -> Iterator[Cell]:
        """Yield cells whose rows of a stage are read, in a bucket those of several cells at once."""
        several = _AHEAD if self.store.is_remote else 1
        for begin in range(0, len(cells), several):
            ahead = cells[begin : begin + several]
            wanted: dict[_Key, StageSpec] = {}
            for cell, spec in ((cell, spec_of(cell)) for cell in ahead if several > 1):
                chunks = [] if spec is None else self._chunks(spec, cell)
                if spec is not None and chunks and self._tables.get((self._id(spec), tuple(chunks))) is None:
                    wanted[self._id(spec), tuple(chunks)] = spec
            self.store.at_once(lambda key: self._load(wanted[key], key), list(wanted))  # noqa: B023
            yield from ahead

    def _load(self, spec: StageSpec, key: _Key) -> pa.Table:
        rows = StageRows(self.store, spec.stage, key[0], key[1])
        table = rows.table(key[1])
        assert table is not None
        with self._lock:
            self._facts.update(((key[0], chunk), facts) for chunk, facts in rows.facts.items())
            self._tables.put(key, table, table.nbytes)
        return table

    def _together(self, spec: StageSpec, chunks: Sequence[str]) -> pa.Table | None:
        """Return the rows of committed chunks of a stage in this order; None without any."""
        if not chunks:
            return None
        key = self._id(spec), tuple(chunks)
        table = self._tables.get(key)
        return self._load(spec, key) if table is None else table

    def _facts_of(self, spec: StageSpec, chunks: Sequence[str]) -> list[Facts]:
        """Return what is remembered of committed chunks of a stage."""
        stage_id = self._id(spec)
        if any((stage_id, chunk) not in self._facts for chunk in chunks):
            self._together(spec, chunks)
        return [self._facts[stage_id, chunk] for chunk in chunks]

    def robustness(self) -> pd.DataFrame:
        """Return one row per clean or attacked cell: its identity, images, draws, and accuracies with intervals.

        Columns ``accuracy`` (the defence's own aggregation), ``avg``, ``worst`` (unbiased, of ``resubmissions``
        draws), ``vote``, ``mean_probability`` and ``fixed`` (one fixed draw, the first: what an evaluation
        with one fixed noise sees), each with ``_low`` and ``_high``; ``images`` committed of ``planned``. A cell
        without any committed row has no accuracies. One whose draws stop has ``until``, ``asked`` (the mean number of
        draws) and, in place of what was left open, NaN.
        """
        self._fresh()
        cells = self._read_ahead(self.sweep.adversarial, lambda cell: cell.evaluate)
        frame = pd.DataFrame(
            [{**_identity(cell, self.sweep.labels[cell.id]), **self._measures(cell)} for cell in cells],
        )
        if frame.empty:
            return frame
        return frame.astype({"t_star": "Int64"})  # whole numbers with gaps, of which pandas would make floats

    def _measures(self, cell: Cell) -> dict[str, object]:
        answers, until = self.asked(cell), cell.defence.until
        head: dict[str, object] = {
            "draws": cell.defence.draws,
            **({} if until is None else {"until": until, "asked": self.draws(cell)}),
            "aggregation": cell.defence.aggregation,
            "resubmissions": resubmissions(cell),
            "images": 0 if answers is None else len(answers.label),
            "planned": cell.images.count,
            **self.guarantee(cell),
        }
        if answers is None:
            return head
        votes, mean, label, correct = answers.prediction, answers.mean_probability, answers.label, answers.correct
        values = {
            "accuracy": aggregate(votes, mean, cell.defence.aggregation) == label,
            "avg": average(correct),
            "vote": aggregate(votes, mean, "majority-vote") == label,
            "mean_probability": aggregate(votes, mean, "mean-probability") == label,
            "fixed": correct[:, 0],
        }
        estimates = {name: self.estimate(cell, per_image) for name, per_image in values.items()}
        m = resubmissions(cell)
        estimates["worst"] = self.estimate(cell, worst_of(correct, m)) if self.anytime(cell) else worst(correct, m)
        known = {
            None: tuple(estimates),
            "vote": ("accuracy", "vote", "fixed"),
            "worst": ("accuracy", "worst", "fixed"),
        }
        for name in ("accuracy", "avg", "worst", "vote", "mean_probability", "fixed"):
            head.update(_columns(name, estimates[name] if name in known[until] else _UNKNOWN))
        return head

    def combined(self) -> pd.DataFrame:
        """One row for each defence, norm and budget that several attacks of the sweep were run at, as one attacker.

        Columns ``lowest`` (:func:`workflows.statistics.combined.lowest_per_image`), ``selected`` (nothing where a
        random defence has one draw), ``fixed_aa_mean`` and ``fixed_aa_any``, each with ``_low`` and ``_high``;
        ``attacks``, how many there are. Cells that are not complete are left out, and those whose draws stop, and
        budgets in different norms stay apart.
        """
        self._fresh()
        groups: dict[tuple[object, ...], dict[str, Cell]] = {}
        for cell in self.sweep.adversarial:
            if cell.attack_stage is None or cell.defence.until is not None:
                continue
            attack, stage = cell.attack_stage.attack, cell.evaluate
            chunks = tuple(chunk.name for chunk in cell.images.chunks)
            key = (stage.dataset.id, chunks, stage.classifier.id, stage.purifier.id, stage.draws, stage.seed)
            groups.setdefault((*key, attack.norm, attack.eps), {}).setdefault(stage.id, cell)
        lines = []
        for cells in groups.values():
            # Rows of complete cells are those of the same images in the same order, or of the first of them.
            complete = [cell for cell in cells.values() if self.complete(cell)]
            if len(complete) > 1:
                lines.append(self._combination(complete))
        return pd.DataFrame(lines)

    def _combination(self, cells: list[Cell]) -> dict[str, object]:
        matrices = [self.correct(cell) for cell in cells]
        shared = min(map(len, matrices))
        matrices = [matrix[:shared] for matrix in matrices]
        estimate = partial(self.estimate, cells[0])
        identity = _identity(cells[0], self.sweep.labels[cells[0].id])
        line: dict[str, object] = {
            **{name: identity[name] for name in ("dataset", "classifier", "defence", "norm", "eps", "seed")},
            "draws": cells[0].defence.draws,
            "images": len(matrices[0]),
            "attacks": len(cells),
            "cells": [cell.id for cell in cells],
        }
        stochastic = cells[0].defence.purifier.stochastic
        lowest = lowest_per_image(matrices, estimate)
        several = min(matrix.shape[1] for matrix in matrices) > 1
        line.update(_columns("lowest", lowest))
        if self.sweep.precision is not None:
            line["guarantee"] = self.guarantee(cells[0])["guarantee"]
        if several or not stochastic:
            line.update(_columns("selected", selected_per_image(matrices, estimate) if several else lowest))
        line.update(_columns("fixed_aa_mean", fixed_aa_mean(matrices, estimate)))
        line.update(_columns("fixed_aa_any", fixed_aa_any(matrices, estimate)))
        return line

    def corrupted(self) -> list[tuple[dict[str, Any], dict[str, pd.DataFrame]]]:
        """Answers under corruptions, for each data set, classifier, seed and origin of images.

        Returns:
            The identity of each group; and for each of its defences the share of right draws in [0, 1] of every
            complete cell: rows are ``corruption`` and ``severity``, columns image ids.

        Raises:
            InvalidInput: A cell is there twice, or the cells of a defence are not of the same images.
        """
        self._fresh()
        groups: dict[tuple[object, ...], dict[str, dict[tuple[str, int], Cell]]] = {}
        for cell in self._read_ahead(self.sweep.corrupted, lambda cell: cell.evaluate):
            corruption = cell.corruption
            if corruption is None or self.images(cell) < cell.images.count:
                continue
            labels = self.sweep.labels[cell.id]
            key = (labels["dataset"], labels["classifier"], cell.seed, corruption.origin)
            cells = groups.setdefault(key, {}).setdefault(labels["defence"], {})
            if (corruption.corruption, corruption.severity) in cells:
                raise InvalidInput(
                    f"{labels['defence']!r} has two cells of {corruption.corruption} at severity "
                    f"{corruption.severity}, and a table of corruptions has one: give them other sweeps."
                )
            cells[corruption.corruption, corruption.severity] = cell
        names = ("dataset", "classifier", "seed", "origin")
        return [
            (
                dict(zip(names, key, strict=True)),
                {defence: self._shares(defence, cells) for defence, cells in defences.items()},
            )
            for key, defences in groups.items()
        ]

    def _shares(self, defence: str, cells: dict[tuple[str, int], Cell]) -> pd.DataFrame:
        order = sorted(cells)
        ids = [self.image_ids(cells[key]) for key in order]
        if any(other is not ids[0] for other in ids):  # equal ones are one array
            raise InvalidInput(
                f"defence {defence!r} was not judged on the same images in every cell: a mean over corruptions would "
                "mix them."
            )
        values = np.stack([self.correct(cells[key]).mean(1) for key in order])
        index = pd.MultiIndex.from_tuples(order, names=["corruption", "severity"])
        return pd.DataFrame(values, index=index, columns=pd.Index(ids[0], name="image_id")).sort_index(axis=1)

    def quality(self) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
        """Image quality, for each cell where it was measured and each pair of images.

        Yields:
            What it is of: ``dataset``, ``classifier``, ``defence``, ``threat``, ``eps``, ``seed``; ``pair``
            (``input``, ``output``, ``change``, see :mod:`tasks.stages.quality`; those that compare an image with
            itself are left out), and ``missing``, why a measure could not be taken. And its frame with one row per
            image: ``image_id``, ``psnr``, ``ssim``, ``lpips``.
        """
        self._fresh()
        seen: set[str] = set()
        for cell in self._read_ahead(self.sweep.cells, lambda cell: cell.measure):
            if cell.measure is None or cell.measure.id in seen:
                continue
            rows = self.quality_rows(cell)
            if rows.empty:
                continue
            seen.add(cell.measure.id)
            labels = self.sweep.labels[cell.id]
            identity = {
                **{part: labels[part] for part in ("dataset", "classifier", "defence")},
                "threat": labels.get("attack") or labels["corruption"],
                "eps": 0.0 if cell.attack is None else cell.attack.eps,
                "seed": cell.seed,
                "missing": self._missing_measures(cell),
            }
            for pair in _pairs(cell):
                measures = {name: rows[f"{name}_{pair}"].astype(float) for name in ("psnr", "ssim", "lpips")}
                yield {**identity, "pair": pair}, pd.DataFrame({"image_id": rows["image_id"], **measures})

    def probes(self) -> pd.DataFrame:
        """Rows of the committed probes, each with what was probed; empty without any.

        Columns: ``dataset``, ``probed`` (the label of the purifier or classifier), ``cells`` (ids of the cells that
        use it, a tuple), and those of the stage's rows, see :data:`tasks.stages.ROW_SCHEMAS`.
        """
        self._fresh()
        cells: dict[tuple[str, str], list[str]] = {}
        found: dict[tuple[str, str], tuple[ProbeStage, str, str]] = {}
        for cell in self.sweep.cells:
            for spec, chunk in cell.probes:
                labels, key = self.sweep.labels[cell.id], (self._id(spec), chunk.name)
                label = labels["classifier" if spec.purifier is None else "defence"]
                found.setdefault(key, (spec, labels["dataset"], label))
                cells.setdefault(key, []).append(cell.id)
        frames = []
        for (stage_id, chunk_name), (spec, dataset, label) in found.items():
            if chunk_name not in self._done(spec.stage, stage_id):
                continue
            table = self._together(spec, [chunk_name])
            assert table is not None
            rows = table.to_pandas()
            head = pd.DataFrame({"dataset": dataset, "probed": label}, index=rows.index)
            head["cells"] = [tuple(cells[stage_id, chunk_name])] * len(rows)
            frames.append(pd.concat([head, rows], axis=1))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _missing_measures(self, cell: Cell) -> str:
        """Return why measures are missing, from the commits of the measurement."""
        assert cell.measure is not None
        stage_id = cell.measure.id
        for chunk in cell.images.chunks:
            commit = self.store.committed("quality", stage_id, chunk.name)
            if commit is not None:
                return " ".join(commit.missing.values())
        return ""

    def cost(self) -> pd.DataFrame:
        """Return one row per distinct stage: images, network evaluations (from rows), seconds and MiB (from commits).

        Samples of certificates are many stages of one kind, and one row; so are all corruptions of one defence.
        """
        self._fresh()
        groups: dict[tuple[str, ...], tuple[dict[str, object], _Spent]] = {}
        for stage in make_plan(self.sweep).stages:
            done = self._done(stage.spec.stage, stage.id)
            chunks = [chunk.name for chunk in stage.chunks if chunk.name in done]
            images = sum(len(chunk.ids) for chunk in stage.chunks if chunk.name in done)
            identity = _stage_identity(stage.spec)
            key: tuple[str, ...] = (stage.id,)
            if isinstance(stage.spec, SampleStage | SequenceStage):
                key = (stage.spec.stage, stage.spec.smoothed.id, str(identity["attack"]))
            elif identity["attack"] == _CORRUPTIONS:
                key = tuple(map(str, identity.values()))
            _, spent = groups.setdefault(key, (identity, _Spent()))
            spent.add(_spent(images, self._facts_of(stage.spec, chunks)))
        return pd.DataFrame([{**identity, **spent.columns()} for identity, spent in groups.values()])


@dataclass
class _Spent:
    """The cost of units of one kind."""

    images: int = 0
    denoiser: int = 0
    classifier: int = 0
    seconds: float = 0.0
    peak: float = 0.0

    def add(self, other: _Spent) -> None:
        """Add the units of a further stage on the same images."""
        self.images = max(self.images, other.images)
        self.denoiser += other.denoiser
        self.classifier += other.classifier
        self.seconds += other.seconds
        self.peak = max(self.peak, other.peak)

    def columns(self) -> dict[str, object]:
        """Return the columns of the cost table."""
        return {
            "images": self.images,
            "denoiser_evaluations": self.denoiser,
            "classifier_evaluations": self.classifier,
            "seconds": round(self.seconds, 2),
            "images_per_second": round(self.images / self.seconds, 2) if self.seconds else None,
            "peak_mib": round(self.peak) or None,
        }


def _spent(images: int, units: Iterable[Facts]) -> _Spent:
    spent = _Spent(images)
    for facts in units:
        spent.seconds += facts.seconds
        spent.peak = max(spent.peak, facts.peak)
        spent.denoiser += facts.denoiser
        spent.classifier += facts.classifier
    return spent


def _pairs(cell: Cell) -> tuple[str, ...]:
    """Return the pairs of images that are not the same by definition."""
    if cell.threat is None:
        return ("output",)
    return ("input",) if cell.defence.purifier.purifier == "none" else ("input", "output", "change")


def _size(frame: pd.DataFrame) -> int:
    """Return about how many bytes a frame takes; of a list that an object column holds, those of a short array."""
    lists = sum(kind.kind == "O" for kind in frame.dtypes)
    size: int = int(frame.memory_usage().sum()) + 200 * lists * len(frame)
    return size


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return a column of lists of one length as an array, shape (rows, length)."""
    flat: npt.NDArray[Any] = pc.list_flatten(column).to_numpy()
    if pc.count_distinct(pc.list_value_length(column), mode="all").as_py() != 1 or column.null_count:
        raise ValueError("the lists of a column of rows are not of one length")
    return flat.reshape(len(column), -1)


def _identity(cell: Cell, labels: dict[str, str]) -> dict[str, object]:
    attack = cell.attack
    level = cell.defence.purifier.noise_level
    return {
        "cell": cell.id,
        **labels,
        "norm": None if attack is None else attack.norm,
        "eps": 0.0 if attack is None else attack.eps,
        "static": attack is not None and attack.static,
        "purifier": cell.defence.purifier.purifier,
        "seed": cell.seed,
        "t_star": None if level is None else level.t_star,
        "abar": None if level is None else level.abar,
        "sigma_eq": None if level is None else level.sigma_eq,
    }


_CORRUPTIONS = "corruptions"


def _stage_identity(spec: StageSpec) -> dict[str, object]:
    classifier, purifier = spec.components[:2]
    threat = spec.threat
    attack = threat if isinstance(threat, AttackConfig) else None
    return {
        "stage": spec.stage,
        "classifier": "" if classifier is None else classifier.label(),
        "defence": "" if purifier is None else purifier.label(),
        "attack": _CORRUPTIONS if isinstance(threat, CorruptionConfig) else spec.threat_label(),
        "eps": 0.0 if attack is None else attack.eps,
    }


_UNKNOWN = Proportion(float("nan"), float("nan"), float("nan"), 0)
"""What not all draws were asked for."""


def _columns(name: str, value: Proportion) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
