"""Blocks of what a run commits, written beside it, so that whoever reads its tables does not open every unit.

The driver waits for workers most of the time. In a thread it reads back what they have committed, compares it with
the commits as every reader does, and writes blocks (:mod:`workflows.store.blocks`) and manifests. It begins no stage
before the last of its units is older than what a manifest believes (:mod:`workflows.store.manifest`), or many wait;
reads a stage again only when half as much is new as it has, so that a stage of n units has some log n blocks; and
rests three times as long as that took. When the last unit is committed what is left is packed, without rests, for 20
seconds at most.

Nothing depends on it: blocks and manifests are copies, each is written whole, and what a run does not pack, since it
is stopped or killed, or its store does not answer, is read one by one by the first who asks, who packs it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from defense.errors import StoreError
from workflows.store.blocks import Blocks, UnitRows, note
from workflows.store.outage import StoreUnavailable
from workflows.store.store import Store

__all__ = ["Packer", "pack"]

log = logging.getLogger(__name__)

_OLD_SECONDS = 2.5
"""Age at which a manifest believes a file, and a little for the clocks."""

_MANY, _GROWTH = 64, 0.5
"""New units that are worth a block while a run goes on; and what share of those that are packed."""

_FEW = 2
"""Units that are worth a block when no more will come: one alone is read as fast from its own file."""

_REST = 3.0
_TICK = 1.0

_OUTAGE = 30.0
"""Seconds after which a store that did not answer is asked again."""

_LAST, _GRACE = 20.0, 5.0
"""Seconds that the end of a run waits for the last blocks; and, once stopped, for what is being read and written."""

_SLICE, _BYTES = 32, 32 * 2**20
"""Units that are read at once, and rows of which a block is made: of more there are several."""


def pack(
    store: Store, stage: str, stage_id: str, chunks: Sequence[str], go_on: Callable[[], bool] = lambda: True
) -> int:
    """Write blocks and the manifest of what is committed of a stage and not yet in both.

    Arguments:
        store: The store.
        stage: Kind of stage.
        stage_id: Its id.
        chunks: The chunks of the stage that are asked for.
        go_on: Asked before each unit is read; once it says no, what was read is written.

    Returns:
        How many units were read. Those that are damaged or of a later version are left out.

    Raises:
        StoreUnavailable: The store does not answer; nothing more is written.
    """
    blocks, manifest = Blocks(store, stage, stage_id), store.manifest(stage, stage_id, images=False)
    stored, fresh = blocks.units(), []
    for chunk in chunks:
        entry = manifest.believed(chunk, images=False)
        if chunk in manifest.commits and (entry is None or (chunk, manifest.rows[entry]) not in stored):
            fresh.append(chunk)
    parts: list[UnitRows] = []

    def whole(chunk: str) -> UnitRows | None:
        if not go_on():
            return None
        try:
            unit = UnitRows.read(store, stage, stage_id, [chunk])
        except StoreUnavailable:
            raise
        except (StoreError, pa.ArrowException):  # whoever asks for its rows says so
            return None
        return None if unit.commits[0].newer else unit

    def write() -> None:
        new = [part for part in parts if (part.chunks[0], part.hashes[0]) not in stored]
        if len(new) >= _FEW:
            blocks.write(new)
        for part in parts:
            note(manifest, part)
        parts.clear()

    read = size = 0
    while fresh and go_on():
        some, fresh = fresh[:_SLICE], fresh[_SLICE:]
        units = [unit for unit in store.at_once(whole, some) if unit is not None]
        parts += units
        read += len(units)
        size += sum(unit.rows.nbytes for unit in units)
        if size >= _BYTES:
            write()
            size = 0
    write()
    manifest.write()
    return read


@dataclass
class _Stage:
    missing: int
    packed: int
    waiting: int = 0
    landed: float = 0.0


class Packer:
    """Packs the stages of a run while it goes on, as a context manager.

    Arguments:
        store: The store.
        chunks_of: Kind and id of a stage, and its chunks, by the stage's number.
        missing: How many units of each stage are to come.
        clock: Seconds that only grow.

    :meth:`landed` is called for each unit that is committed. On :meth:`no_more` what is left is packed, and on
    leaving, too, unless by an exception; then, and on :meth:`stop`, it ends after the units that it is reading. What
    goes wrong in it is a warning and ends it, and never the run.
    """

    def __init__(
        self,
        store: Store,
        chunks_of: Callable[[int], tuple[str, str, Sequence[str]]],
        missing: Sequence[int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._chunks_of = chunks_of
        self._missing = missing
        self._clock = clock
        self._stages: dict[int, _Stage] = {}
        self._lock = threading.Lock()
        self._woken, self._ended = threading.Event(), threading.Event()
        self.stopped = self.interrupted = self._ending = self._hurried = False
        self._thread = threading.Thread(target=self._work, name="packer", daemon=True)

    def __enter__(self) -> Packer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()
        self.finish()

    def finish(self) -> None:
        """Pack what is left at once, unless it was stopped, and wait for it, until Ctrl-C or for some seconds."""
        if self._hurried:
            return
        self._ending = self._hurried = True
        self._woken.set()
        # A store that does not answer holds a read for a minute, which nobody waits for.
        for seconds in (0.0 if self.stopped else _LAST, _GRACE):
            try:
                end = time.monotonic() + seconds
                # A join that is interrupted takes the thread for ended; a key in the moment before a wait ends none.
                while (left := end - time.monotonic()) > 0 and not self._ended.wait(min(left, _TICK)):
                    pass
            except KeyboardInterrupt:  # the run is over, and its outcome is returned
                self.interrupted = True
            self.stop()

    def landed(self, stage: int) -> None:
        """Count a unit of a stage as committed."""
        with self._lock:
            found = self._stages.get(stage)
            if found is None:
                missing = self._missing[stage]
                found = self._stages[stage] = _Stage(missing, len(self._chunks_of(stage)[2]) - missing)
            found.missing -= 1
            found.waiting += 1
            found.landed = self._clock()

    def no_more(self) -> None:
        """Pack what is left: the last unit was committed."""
        self._ending = True
        self._woken.set()

    def stop(self) -> None:
        """Leave everything as it is."""
        self.stopped = True
        self._woken.set()

    def _due(self) -> int | None:
        """Return the number of a stage that it is time to pack."""
        now = self._clock()
        with self._lock:
            for number, stage in self._stages.items():
                if self._ending or stage.missing <= 0:
                    due = stage.waiting > 0 and (self._hurried or now - stage.landed >= _OLD_SECONDS)
                else:
                    due = stage.waiting >= max(_MANY, _GROWTH * stage.packed)
                if due:
                    return number
        return None

    def _work(self) -> None:
        try:
            while not self.stopped:
                number = self._due()
                if number is not None:
                    rest = self._pack(number)
                elif self._hurried:  # then all that waits is due
                    return
                else:
                    rest = _TICK
                if rest:
                    self._woken.wait(rest)
                    self._woken.clear()
        except Exception as error:
            if not self.stopped:
                log.warning("rows are not packed: whoever reads them first takes longer", exc_info=error)
        finally:
            self._ended.set()

    def _pack(self, number: int) -> float:
        """Pack a stage; returns for how many seconds to rest."""
        began = time.monotonic()
        with self._lock:
            stage = self._stages[number]
            waiting, stage.waiting = stage.waiting, 0
        try:
            pack(self._store, *self._chunks_of(number), lambda: not self.stopped)
        except StoreUnavailable:  # the run says so if it lasts
            if self._hurried:
                self.stop()
            with self._lock:
                stage.waiting += waiting
            return _OUTAGE
        stage.packed += waiting
        return 0.0 if self._ending else _REST * (time.monotonic() - began)
