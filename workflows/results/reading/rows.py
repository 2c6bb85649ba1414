"""The committed rows of a sweep's cells, and what is remembered of them."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from defense.aggregate import UNASKED, certain_answer
from tasks.stages import Chunk, StageSpec
from workflows.grid.load import Cell, Sweep
from workflows.planning.stopping import Stopping
from workflows.results.reading.kept import Kept
from workflows.statistics.proportions import Proportion, proportion
from workflows.statistics.sequences import anytime
from workflows.store import Store
from workflows.store.blocks import Facts, StageRows

__all__ = ["Answers", "CommittedRows"]

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


class CommittedRows:
    """The committed rows of a sweep, by its cells.

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
