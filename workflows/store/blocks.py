"""Rows of many units in one file, so that a sweep is read as fast as its rows and not as its units are many.

::

    blocks/<stage>/<stage id>/<first 32 digits of its sha256>.arrow

A block holds the rows of some units of a stage in Arrow's file format, and for each unit the hash of the row file
that they were read from. Blocks are never changed: units that were committed since are read one by one, and where
they are many (:data:`ENOUGH`) they become a block of their own; what is in a block is not read again.

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

__all__ = ["ENOUGH", "Facts", "StageRows"]

ENOUGH = 16
"""Units that are worth a block."""

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
        stored = self._read_blocks(manifest, known) if known or len(chunks) >= ENOUGH else set()
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
        return pa.concat_tables(parts).combine_chunks() if parts else None

    def _read_blocks(self, manifest: Manifest, known: dict[str, int]) -> set[tuple[str, str]]:
        """Take the units that are known to be in blocks; returns chunk and hash of all that blocks hold."""
        folder = f"blocks/{self._stage}/{self._stage_id}"
        names = self._store.files.names(folder)
        stored: set[tuple[str, str]] = set()
        for found in self._store.at_once(lambda name: self._open(f"{folder}/{name}"), names):
            if found is None:
                continue
            rows, units = found
            used = False
            for place, (chunk, sha256) in enumerate(zip(units["chunks"], units["rows"], strict=True)):
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

    def _open(self, path: str) -> tuple[pa.Table, dict[str, Any]] | None:
        """Return the rows and the units of a block; None where it is damaged, or of another version."""
        with contextlib.suppress(FileNotFoundError, pa.ArrowException, OSError, ValueError):
            data = self._store.files.read(path)
            if not path.endswith(f"/{_name(data)}"):
                return None
            rows = pa.ipc.open_file(pa.BufferReader(data)).read_all()
            units = json.loads((rows.schema.metadata or {})[_UNITS])
            if units["version"] == [_VERSION, _schema_version(self._stage)]:
                return rows.replace_schema_metadata(None), units
        return None

    def _read_units(self, chunks: Sequence[str], manifest: Manifest, stored: set[tuple[str, str]]) -> None:
        """Read units one by one, compare them with their commits, and write a block where they are many."""
        read = self._store.at_once(lambda chunk: self._store.read_unit(self._stage, self._stage_id, chunk), chunks)
        tables = [complete(self._stage, table) for _, table in read]
        commits = [commit for commit, _ in read]
        sums = {name: [_sum(table, f"{name}_evaluations") for table in tables] for name in ("denoiser", "classifier")}
        counts = [table.num_rows for table in tables]
        rows = pa.concat_tables(tables).combine_chunks()
        for place, (chunk, commit) in enumerate(zip(chunks, commits, strict=True)):
            self._in[chunk] = len(self._blocks), place
            self.facts[chunk] = Facts(
                counts[place],
                sums["denoiser"][place],
                sums["classifier"][place],
                commit.seconds,
                commit.note(PEAK),
                commit.ended,
            )
        self._blocks.append(_Block(rows, np.cumsum(counts)))
        hashes = [_hash(commit) for commit in commits]
        new = [pair for pair in zip(chunks, hashes, strict=True) if pair not in stored]
        if len(chunks) < ENOUGH or any(commit.newer for commit in commits):
            return
        if new:
            units = {"chunks": list(chunks), "rows": hashes, "counts": counts, **sums}
            self._write(rows, units)
        for chunk, commit in zip(chunks, commits, strict=True):
            times = (commit.seconds, commit.ended)
            manifest.note(chunk, times, commit.sha256, commit.inputs, commit.note(PEAK))
        manifest.write()

    def _write(self, rows: pa.Table, units: dict[str, Any]) -> None:
        units = {"version": [_VERSION, _schema_version(self._stage)], **units}
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        marked = rows.replace_schema_metadata({_UNITS: json.dumps(units, separators=(",", ":")).encode()})
        with pa.ipc.new_file(sink, marked.schema, options=options) as file:
            file.write_table(marked)
        data: bytes = sink.getvalue().to_pybytes()
        with contextlib.suppress(StoreUnavailable):  # of a store that may only be read
            self._store.files.write(f"blocks/{self._stage}/{self._stage_id}/{_name(data)}", data)


def complete(stage: str, table: pa.Table) -> pa.Table:
    """Return rows with all columns that rows of their kind have now, without metadata."""
    table = table.replace_schema_metadata(None)
    schema = ROW_SCHEMAS.get(stage)
    return table if schema is None else schema.complete(table)


def _hash(commit: Commit) -> str:
    return next(sha256 for path, sha256 in commit.sha256.items() if path.startswith("rows/"))


def _name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:32]}.arrow"


def _schema_version(stage: str) -> int:
    schema = ROW_SCHEMAS.get(stage)
    return 0 if schema is None else schema.version


def _sum(rows: pa.Table, column: str) -> int:
    # Corruptions, and rows of old versions, have none.
    return int(pc.sum(rows[column]).as_py() or 0) if column in rows.column_names else 0
