"""Blocks of what a run commits, written beside it, so that whoever reads its tables does not open every unit.

The driver waits for workers most of the time. In a thread it reads back what they have committed, compares it with
the commits as every reader does, and writes blocks (:mod:`workflows.store.blocks`) and manifests. It begins no stage
before the last of its units is older than what a manifest believes (:mod:`workflows.store.manifest`), or many wait;
reads a stage again only when half as much is new as it has, so that a stage of n units has some log n blocks; and
rests three times as long as that took. When the last unit is committed what is left is packed, without rests.

Nothing depends on it: blocks and manifests are copies, each is written whole, and a run that is stopped or killed
leaves units that are read one by one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from defense.errors import StoreError
from workflows.store.blocks import Blocks, UnitRows, note
from workflows.store.outage import StoreUnavailable
from workflows.store.store import Store

__all__ = ["Packer", "pack"]

_OLD_SECONDS = 2.5
"""Age at which a manifest believes a file, and a little for the clocks."""

_MANY, _GROWTH = 64, 0.5
"""New units that are worth a block while a run goes on; and what share of those that are packed."""

_FEW = 2
"""Units that are worth a block when no more will come: one alone is read as fast from its own file."""

_REST = 3.0
_TICK = 1.0

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
        go_on: Asked before units are read; once it says no, what was read is written.

    Returns:
        How many units were read.

    Raises:
        StoreError: A unit is damaged; what was read before is written.
        StoreUnavailable: The store does not answer.
    """
    blocks, manifest = Blocks(store, stage, stage_id), store.manifest(stage, stage_id, images=False)
    stored, fresh = blocks.units(), []
    for chunk in chunks:
        entry = manifest.believed(chunk, images=False)
        if chunk in manifest.commits and (entry is None or (chunk, manifest.rows[entry]) not in stored):
            fresh.append(chunk)
    parts: list[UnitRows] = []
    read = 0

    def write() -> None:
        new = [part for part in parts if not stored.issuperset(zip(part.chunks, part.hashes, strict=True))]
        if sum(len(part.chunks) for part in new) >= _FEW:
            blocks.write(new)
        for part in parts:
            note(manifest, part)
        parts.clear()

    try:
        while fresh and go_on():
            some, fresh = fresh[:_SLICE], fresh[_SLICE:]
            units = UnitRows.read(store, stage, stage_id, some)
            if any(commit.newer for commit in units.commits):
                continue
            read += len(some)
            parts.append(units)
            if sum(part.rows.nbytes for part in parts) >= _BYTES:
                write()
    finally:
        write()
        manifest.write()
    return read


@dataclass
class _Stage:
    missing: int
    waiting: int = 0
    packed: int = 0
    landed: float = 0.0


class Packer:
    """Packs the stages of a run while it goes on, as a context manager.

    Arguments:
        store: The store.
        chunks_of: Kind and id of a stage, and its chunks, by the stage's number.
        missing: How many units of each stage are to come.
        clock: Seconds that only grow.

    :meth:`landed` is called for each unit that is committed. On :meth:`no_more` what is left is packed, and on
    leaving, too, unless by an exception; then, and on :meth:`stop`, it ends after the units that it is reading.
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
        self._woken = threading.Event()
        self._stopped = self._ending = self._hurried = False
        self._thread = threading.Thread(target=self._work, name="packer", daemon=True)

    def __enter__(self) -> Packer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()
        self.finish()

    def finish(self) -> None:
        """Pack what is left at once, unless it was stopped, and wait for it."""
        self._ending = self._hurried = True
        self._woken.set()
        try:
            # A store that does not answer holds a read for a minute, which nobody who stops a run waits for.
            self._thread.join(5.0 if self._stopped else None)
        finally:
            self.stop()

    def landed(self, stage: int) -> None:
        """Count a unit of a stage as committed."""
        with self._lock:
            found = self._stages.get(stage)
            if found is None:
                found = self._stages[stage] = _Stage(self._missing[stage])
            found.missing -= 1
            found.waiting += 1
            found.landed = self._clock()

    def no_more(self) -> None:
        """Pack what is left: the last unit was committed."""
        self._ending = True
        self._woken.set()

    def stop(self) -> None:
        """Leave everything as it is."""
        self._stopped = True
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
        while not self._stopped:
            number = self._due()
            if number is None:
                if self._hurried:  # then all that waits is due
                    return
                self._woken.wait(_TICK)
                self._woken.clear()
                continue
            began = time.monotonic()
            if not self._pack(number):
                return
            if not self._ending:
                self._woken.wait(_REST * (time.monotonic() - began))

    def _pack(self, number: int) -> bool:
        """Pack a stage; returns whether the store answers."""
        with self._lock:
            stage = self._stages[number]
            waiting, stage.waiting = stage.waiting, 0
        stage.packed += waiting
        try:
            pack(self._store, *self._chunks_of(number), lambda: not self._stopped)
        except StoreUnavailable:
            return False  # the run says so if it lasts
        except StoreError:
            pass  # a unit is damaged: whoever reads its rows says so
        return True
