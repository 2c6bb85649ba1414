"""Rows of many units in one file, so that a sweep is read as fast as its rows and not as its units are many.

::

    blocks/<stage>/<stage id>/<first 32 digits of its sha256>.arrow

A block holds the rows of some units of a stage in Arrow's file format, and for each unit the hash of the row file
that they were read from. Blocks are never changed: units that were committed since are read one by one, and where
they are many (:data:`ENOUGH`) they become a block of their own; what is in a block is not read again. A run writes
blocks of what it commits while it goes on (:mod:`workflows.store.packing`), so its reader finds them.

A unit's rows are taken from a block only if the hash is the one that its commit has now. Of a unit whose files have
not changed since they were verified that is known from the stage's manifest (:mod:`workflows.store.manifest`); all
others are read and compared with their commits, as ever. A block whose bytes do not fit its name is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.memory import PEAK
from tasks.stages import ROW_SCHEMAS
from workflows.store.commits import Commit
from workflows.store.manifest import Manifest
from workflows.store.outage import StoreUnavailable
from workflows.store.store import Store

__all__ = ["ENOUGH", "Blocks", "Facts", "StageRows", "UnitRows", "note"]

ENOUGH = 8
"""Units that are worth a block to who reads them: writing it and the manifest takes as long as reading some five."""

_UNITS = b"puregrid.units"
_VERSION = 1


class Facts(NamedTuple):
    """What is asked of a unit without its rows.

    Arguments:
        rows: Their number.
        denoiser: Sum of its denoiser evaluations.
        classifier: Sum of its classifier evaluations.
        seconds: Compute time, from its commit.
        peak: MiB that it took at most, from its commit; 0 if that does not say.
        ended: When its computation ended, from its commit; 0 if that is not known.
    """

    rows: int
    denoiser: int
    classifier: int
    seconds: float
    peak: float
    ended: float


class _Block(NamedTuple):
    """Rows of units one after the other: those of unit ``i`` are ``ends[i - 1]`` to ``ends[i]``."""

    rows: pa.Table
    ends: npt.NDArray[np.int64]


class UnitRows(NamedTuple):
    """Units that were read one by one and compared with their commits.

    Arguments:
        chunks: Which.
        commits: Their commits.
        rows: Their rows, one unit after the other.
        counts: How many rows each has.
        evaluations: How often each has asked a network, by ``denoiser`` and ``classifier``.
    """

    chunks: list[str]
    commits: list[Commit]
    rows: pa.Table
    counts: list[int]
    evaluations: dict[str, list[int]]

    @classmethod
    def read(cls, store: Store, stage: str, stage_id: str, chunks: Sequence[str]) -> UnitRows:
        """Read units; errors as in :meth:`Store.read_unit`."""
        read = store.at_once(lambda chunk: store.read_unit(stage, stage_id, chunk), chunks)
        tables = [complete(stage, table) for _, table in read]
        counts = [table.num_rows for table in tables]
        rows = pa.concat_tables(tables).combine_chunks()
        evaluations = {name: _sums(rows, counts, f"{name}_evaluations") for name in ("denoiser", "classifier")}
        return cls(list(chunks), [commit for commit, _ in read], rows, counts, evaluations)

    @property
    def hashes(self) -> list[str]:
        """The hash of each row file."""
        return [
            next(sha256 for path, sha256 in commit.sha256.items() if path.startswith("rows/"))
            for commit in self.commits
        ]


class Blocks:
    """The blocks of a stage."""

    def __init__(self, store: Store, stage: str, stage_id: str) -> None:
        self._store = store
        self._stage = stage
        self._folder = f"blocks/{stage}/{stage_id}"

    def open(self) -> list[tuple[pa.Table, dict[str, Any]]]:
        """Return the rows and the units of each block, without those that are damaged or of another version."""
        opened = self._store.at_once(self._open, self._store.files.names(self._folder))
        return [found for found in opened if found is not None]

    def units(self) -> set[tuple[str, str]]:
        """Return chunk and hash of all units that blocks hold, without unpacking their rows."""
        names = self._store.files.names(self._folder)
        opened = self._store.at_once(lambda name: self._open(name, rows=False), names)
        return {unit for found in opened if found is not None for unit in _named(found[1])}

    def _open(self, name: str, *, rows: bool = True) -> tuple[pa.Table | None, dict[str, Any]] | None:
        with contextlib.suppress(FileNotFoundError, pa.ArrowException, OSError, ValueError):
            data = self._store.files.read(f"{self._folder}/{name}")
            if name != _name(data):
                return None
            # Arrow's own allocator takes new pages for each block, which the kernel has to clear first.
            file = pa.ipc.open_file(pa.BufferReader(data), memory_pool=pa.system_memory_pool())
            units = json.loads((file.schema.metadata or {})[_UNITS])
            if units["version"] == [_VERSION, _schema_version(self._stage)]:
                return file.read_all().replace_schema_metadata(None) if rows else None, units
        return None

    def write(self, parts: Sequence[UnitRows]) -> None:
        """Write units as a block; in a store that may only be read nothing is written."""
        units = {
            "version": [_VERSION, _schema_version(self._stage)],
            "chunks": [chunk for part in parts for chunk in part.chunks],
            "rows": [sha256 for part in parts for sha256 in part.hashes],
            "counts": [count for part in parts for count in part.counts],
            **{name: [n for part in parts for n in part.evaluations[name]] for name in ("denoiser", "classifier")},
        }
        rows = pa.concat_tables([part.rows for part in parts]).combine_chunks()
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        marked = rows.replace_schema_metadata({_UNITS: json.dumps(units, separators=(",", ":")).encode()})
        with pa.ipc.new_file(sink, marked.schema, options=options) as file:
            file.write_table(marked)
        data: bytes = sink.getvalue().to_pybytes()
        with contextlib.suppress(StoreUnavailable):
            self._store.files.write(f"{self._folder}/{_name(data)}", data)


def note(manifest: Manifest, units: UnitRows) -> None:
    """Note units that were read in a manifest that was opened before."""
    for chunk, commit in zip(units.chunks, units.commits, strict=True):
        if manifest.believed(chunk, images=False) is None:  # else it knows more: whether its images are whole
            manifest.note(chunk, (commit.seconds, commit.ended), commit.sha256, commit.inputs, commit.note(PEAK))


class StageRows:
    """The rows of the committed units of a stage, as they are when this is made.

    Arguments:
        store: The store.
        stage: Kind of stage.
        stage_id: Its id.
        chunks: Units that are asked for; others of the stage stay unread.

    Attributes:
        facts: Of each unit, by chunk.
    """

    def __init__(self, store: Store, stage: str, stage_id: str, chunks: Sequence[str]) -> None:
        self._store = store
        self._stage = stage
        self._stage_id = stage_id
        self._blocks: list[_Block] = []
        self._in: dict[str, tuple[int, int]] = {}
        """Block and place in it of each unit."""
        self.facts: dict[str, Facts] = {}
        manifest = store.manifest(stage, stage_id, images=False)
        known = {chunk: entry for chunk in chunks if (entry := manifest.believed(chunk, images=False)) is not None}
        stored = self._read_blocks(manifest, known) if manifest.rows or len(chunks) >= ENOUGH else set()
        fresh = [chunk for chunk in chunks if chunk not in self._in]
        if fresh:
            self._read_units(fresh, manifest, stored)

    def table(self, chunks: Sequence[str]) -> pa.Table | None:
        """Return the rows of units in this order; None without any."""
        parts: list[pa.Table] = []
        run: list[int] = []  # block, first and last unit of what lies in a row

        def close() -> None:
            if run:
                rows, ends = self._blocks[run[0]]
                begin = int(ends[run[1] - 1]) if run[1] else 0
                parts.append(rows.slice(begin, int(ends[run[2]]) - begin))

        for chunk in chunks:
            block, place = self._in[chunk]
            if run and (block, place) == (run[0], run[2] + 1):
                run[2] = place
            else:
                close()
                run[:] = [block, place, place]
        close()
        if not parts:
            return None
        table = pa.concat_tables(parts)
        return table.combine_chunks() if len(parts) > 4 else table  # a few pieces cost less than a copy of all

    def _read_blocks(self, manifest: Manifest, known: dict[str, int]) -> set[tuple[str, str]]:
        """Take the units that are known to be in blocks; returns chunk and hash of all that blocks hold."""
        stored: set[tuple[str, str]] = set()
        for rows, units in Blocks(self._store, self._stage, self._stage_id).open():
            used = False
            for place, (chunk, sha256) in enumerate(_named(units)):
                stored.add((chunk, sha256))
                entry = known.get(chunk)
                if entry is not None and manifest.rows[entry] == sha256 and chunk not in self._in:
                    used = True
                    self._in[chunk] = len(self._blocks), place
                    self.facts[chunk] = Facts(
                        units["counts"][place],
                        units["denoiser"][place],
                        units["classifier"][place],
                        manifest.seconds[entry],
                        manifest.peak[entry],
                        manifest.ended[entry],
                    )
            if used:
                self._blocks.append(_Block(rows, np.cumsum(units["counts"])))
        return stored

    def _read_units(self, chunks: Sequence[str], manifest: Manifest, stored: set[tuple[str, str]]) -> None:
        """Read units one by one, compare them with their commits, and write a block where they are many."""
        units = UnitRows.read(self._store, self._stage, self._stage_id, chunks)
        for place, (chunk, commit) in enumerate(zip(chunks, units.commits, strict=True)):
            self._in[chunk] = len(self._blocks), place
            self.facts[chunk] = Facts(
                units.counts[place],
                units.evaluations["denoiser"][place],
                units.evaluations["classifier"][place],
                commit.seconds,
                commit.note(PEAK),
                commit.ended,
            )
        self._blocks.append(_Block(units.rows, np.cumsum(units.counts)))
        new = set(zip(chunks, units.hashes, strict=True)) - stored
        if (new and len(chunks) < ENOUGH) or any(commit.newer for commit in units.commits):
            return
        if new:
            Blocks(self._store, self._stage, self._stage_id).write([units])
        note(manifest, units)
        manifest.write()


def complete(stage: str, table: pa.Table) -> pa.Table:
    """Return rows with all columns that rows of their kind have now, without metadata."""
    table = table.replace_schema_metadata(None)
    schema = ROW_SCHEMAS.get(stage)
    return table if schema is None else schema.complete(table)


def _named(units: dict[str, Any]) -> zip[tuple[str, str]]:
    return zip(units["chunks"], units["rows"], strict=True)


def _name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:32]}.arrow"


def _schema_version(stage: str) -> int:
    schema = ROW_SCHEMAS.get(stage)
    return 0 if schema is None else schema.version


def _sums(rows: pa.Table, counts: Sequence[int], column: str) -> list[int]:
    """Return the sum of a column over each unit; 0 where a row has none, as of corruptions and of old versions."""
    if column not in rows.column_names:
        return [0] * len(counts)
    total = np.concatenate([[0], np.cumsum(pc.fill_null(rows[column], 0).to_numpy().astype(np.int64))])
    ends = np.cumsum(counts)
    sums: list[int] = (total[ends] - total[ends - counts]).tolist()
    return sums
