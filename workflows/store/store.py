"""The layout of a store, and the commits that make its files count.

::

    rows/<stage>/<stage id>/<chunk>.parquet       data, written first
    adversarial/<stage id>/<chunk>.parquet        float32 images, written first too
    commits/<stage>/<stage id>/<chunk>.json       written last, created once: only now the unit exists
    specs/<stage id>.json                         what the stage id stands for
    sweeps/<sweep id>/                            sweep.yaml, plan.json, failures/, forecast.json, runs/

A row file holds nothing that differs between two runs of the same unit, so row files of two runs compare equal
byte for byte; times, hosts and attempts are in the commit. Readers believe commits only, and compare the sha256
of the data with the one in the commit.

Data is never overwritten. Where other bytes lie already (of an attempt on other hardware, or of a file that was
damaged), it goes to ``<chunk>.<first 12 digits of its sha256>.parquet``, and the commit names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from defense.errors import StoreError
from tasks.stages import ROW_SCHEMAS, Chunk, Output, StageSpec
from workflows.store.files import Files, open_files
from workflows.store.record import Record

__all__ = ["SCHEMA_VERSION", "Attempt", "Commit", "Store"]

SCHEMA_VERSION = 1
"""Version of images, and of rows of stages that have no :class:`~tasks.stages.RowSchema`; that has its own."""

IMAGE_STAGES = ("attack", "corrupt", "quality")
"""Stages that leave images; the path of an image file does not say of which of them it is."""


_NO = "no "
"""What notes of measures that could not be taken began with in older versions."""


@dataclass(frozen=True)
class Attempt:
    """One computation of a unit: where and how.

    Arguments:
        id: Unique.
        seconds: Compute time, without loading models, reading and writing.
        host: Where it ran.
        versions: Versions of what computed it.
        inputs: Hash of each data file that was read, by its path in the store.
    """

    id: str
    seconds: float
    host: str
    versions: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit(Record):
    """The record that makes a unit's data count.

    Arguments:
        stage: Kind of stage.
        stage_id: Its content id.
        chunk: Name of the chunk.
        rows: Number of rows.
        sha256: Hash of each data file, by its path in the store.
        attempt: Unique id of the attempt that committed.
        seconds: Compute time, without loading models, reading and writing.
        host: Where it ran.
        versions: Versions of what computed it.
        inputs: Hash of each data file that was read, by its path in the store.
        notes: What else the unit reported, e.g. how often its batches were halved for memory.
        missing: Why a measure could not be taken, by the measure's name.
    """

    stage: str
    stage_id: str
    chunk: str
    rows: int
    sha256: dict[str, str]
    attempt: str
    seconds: float
    host: str
    versions: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int | float | str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """See :class:`Record`; ``missing`` is written only if something is missing."""
        content = super().to_json()
        return content if self.missing else {name: content[name] for name in content if name != "missing"}

    @classmethod
    def from_json(cls, content: object) -> Self:
        """See :class:`Record`.

        Older versions wrote what was missing into the notes, as ``"no lpips": "why"``.
        """
        commit = super().from_json(content)
        if commit.stage != "quality" or commit.missing:
            return commit
        older = {name: str(why) for name, why in commit.notes.items() if name.startswith(_NO)}
        notes = {name: value for name, value in commit.notes.items() if name not in older}
        return replace(commit, notes=notes, missing={name.removeprefix(_NO): why for name, why in older.items()})


class Store:
    """Reads and writes units.

    Arguments:
        uri: A folder, or an fsspec URI.
    """

    def __init__(self, uri: str) -> None:
        self.files: Files = open_files(uri)
        self.uri = self.files.uri
        self._waited = 0.0

    @staticmethod
    def rows_path(spec_stage: str, stage_id: str, chunk: str) -> str:
        """Return the path of a unit's rows."""
        return f"rows/{spec_stage}/{stage_id}/{chunk}.parquet"

    @staticmethod
    def images_path(stage_id: str, chunk: str) -> str:
        """Return the path of a unit's adversarial images."""
        return f"adversarial/{stage_id}/{chunk}.parquet"

    @staticmethod
    def commit_path(spec_stage: str, stage_id: str, chunk: str) -> str:
        """Return the path of a unit's commit."""
        return f"commits/{spec_stage}/{stage_id}/{chunk}.json"

    def put_spec(self, spec: StageSpec) -> None:
        """Record what a stage id stands for; a damaged file is written anew."""
        path = f"specs/{spec.id}.json"
        content = (json.dumps(spec.identity(), indent=1, sort_keys=True) + "\n").encode()
        try:
            whole = self.files.read(path) == content
        except FileNotFoundError:
            whole = False
        if not whole:
            self.files.write(path, content)

    def commit(self, spec: StageSpec, stage_id: str, chunk: Chunk, output: Output, attempt: Attempt) -> Commit:
        """Write a unit's data, then its commit, unless another attempt has committed it already.

        Before the commit file exists the unit does not, whatever else was written; the commit is created once, so
        of two attempts one wins and both return the winner's record, and what the loser wrote is removed. See
        ``docs/invariants/commit.md``.

        Arguments:
            spec: The stage.
            stage_id: Its id (``spec.id``, computed once by the caller).
            chunk: The chunk.
            output: What the unit computed.
            attempt: Who computed it.

        Raises:
            StoreUnavailable: The store is full, refuses, or has been unreachable for a minute; nothing is committed.
        """
        existing = self.committed(spec.stage, stage_id, chunk.name)
        if existing is not None:
            return existing
        tables = {self.rows_path(spec.stage, stage_id, chunk.name): output.rows}
        if output.images is not None:
            tables[self.images_path(stage_id, chunk.name)] = output.images
        sha256: dict[str, str] = {}
        for path, table in tables.items():
            schema = ROW_SCHEMAS.get(spec.stage) if table is output.rows else None
            data = _parquet(table, spec, stage_id, chunk, SCHEMA_VERSION if schema is None else schema.version)
            digest = hashlib.sha256(data).hexdigest()
            sha256[self._place(path, data, digest)] = digest
        waited, self._waited = self.files.waited - self._waited, self.files.waited
        notes = {**output.notes, "store_outage_seconds": round(waited, 1)} if waited else output.notes
        commit = Commit(
            stage=spec.stage,
            stage_id=stage_id,
            chunk=chunk.name,
            rows=output.rows.num_rows,
            sha256=sha256,
            attempt=attempt.id,
            seconds=attempt.seconds,
            host=attempt.host,
            versions=attempt.versions,
            inputs=attempt.inputs,
            notes=notes,
            missing=output.missing,
        )
        text = json.dumps(commit.to_json(), indent=1, sort_keys=True) + "\n"
        won = self.files.create(self.commit_path(spec.stage, stage_id, chunk.name), text.encode())
        # A lost answer to our own write reads like a loss; the record says whose it is.
        winner = commit if won else self.committed(spec.stage, stage_id, chunk.name) or commit
        for path in {*tables, *sha256} - winner.sha256.keys():
            self.files.delete(path)  # of an attempt that lost, or died, or was revoked: nobody can commit it any more
        return winner

    def _place(self, path: str, data: bytes, digest: str) -> str:
        """Write data where no other attempt has put other bytes, or can later; returns the path."""
        if self.files.exclusive:
            if self.files.create(path, data):
                return path
            try:
                if self.files.read(path) == data:
                    return path
            except FileNotFoundError:  # a loser has just removed its own
                pass
        path = _named_by_content(path, digest)
        self.files.write(path, data)
        return path

    def committed(self, stage: str, stage_id: str, chunk: str) -> Commit | None:
        """Return the commit of a unit, or None."""
        try:
            raw = self.files.read(self.commit_path(stage, stage_id, chunk))
        except FileNotFoundError:
            return None
        try:
            return Commit.from_text(raw)
        except ValueError as error:
            raise StoreError(
                f"commit {self.commit_path(stage, stage_id, chunk)} in {self.uri} is damaged ({error}); delete it "
                "and run the sweep again to recompute the unit."
            ) from error

    def committed_chunks(self, stage: str, stage_id: str) -> set[str]:
        """Return the names of the committed chunks of a stage."""
        return {name.removesuffix(".json") for name in self.files.names(f"commits/{stage}/{stage_id}")}

    def problem(self, stage: str, stage_id: str, chunk: str) -> str | None:
        """Return what is wrong with a committed unit's data, or None if it matches its commit."""
        try:
            commit = self.committed(stage, stage_id, chunk)
        except StoreError as error:
            return str(error)
        if commit is None:
            return "it is not committed"
        for path, expected in commit.sha256.items():
            try:
                actual = hashlib.sha256(self.files.read(path)).hexdigest()
            except FileNotFoundError:
                return f"{path} is missing"
            if actual != expected:
                return f"{path} has sha256 {actual[:12]}..., its commit says {expected[:12]}..."
        for path, expected in commit.inputs.items():
            if self._input_sha256(path) not in (None, expected):
                return f"it read other data than what is now committed as {path}"
        return None

    def _input_sha256(self, path: str) -> str | None:
        """Return the hash of a data file from the commit of its unit; None without a commit."""
        _, *stages, stage_id, name = path.split("/")
        folder, chunk = path.rpartition("/")[0], name.partition(".")[0]
        for stage in stages or IMAGE_STAGES:
            commit = self.committed(stage, stage_id, chunk)
            located = None if commit is None else _located(commit, f"{folder}/{chunk}.parquet")
            if commit is not None and located is not None:
                return commit.sha256[located]
        return None

    def data_sha256(self, stage: str, stage_id: str, chunk: str) -> dict[str, str]:
        """Return path and hash of a unit's data files from its commit; empty without a commit."""
        commit = self.committed(stage, stage_id, chunk)
        return {} if commit is None else dict(commit.sha256)

    def revoke(self, stage: str, stage_id: str, chunk: str) -> None:
        """Remove the commit of a unit whose data is damaged, so that it is computed again.

        The damaged data goes first, to make place: a crash in between leaves a commit without data, which is reported
        and revoked again, and no one writes where a commit is. Data that is whole stays; equal bytes will be wanted.
        """
        try:
            commit = self.committed(stage, stage_id, chunk)
        except StoreError:  # itself damaged; the data that it named is never read, and the next commit removes it
            commit = None
        for path in (self.rows_path(stage, stage_id, chunk), self.images_path(stage_id, chunk)):
            located = None if commit is None else _located(commit, path)
            if commit is not None and located is not None and (located != path or not self._whole(commit, located)):
                self.files.delete(located)
        self.files.delete(self.commit_path(stage, stage_id, chunk))

    def _whole(self, commit: Commit, path: str) -> bool:
        try:
            return hashlib.sha256(self.files.read(path)).hexdigest() == commit.sha256[path]
        except FileNotFoundError:
            return False

    def row_files(self, stage: str, stage_id: str, chunks: Iterable[str] | None = None) -> list[str]:
        """Return the sorted paths or URIs of the row files of a stage's committed chunks, or of some of them.

        They are one data set for whatever reads Parquet.

        Nothing is verified here: :meth:`read_rows` and ``puregrid run`` compare the data with the commits.
        """
        folder = f"rows/{stage}/{stage_id}"
        # Which of several files counts, only the commit knows; where there is one file, it is that.
        doubtful = {name.partition(".")[0] for name in self.files.names(folder) if name.count(".") > 1}
        uris = []
        committed = self.committed_chunks(stage, stage_id)
        for chunk in sorted(committed if chunks is None else committed.intersection(chunks)):
            path: str | None = self.rows_path(stage, stage_id, chunk)
            if chunk in doubtful and (commit := self.committed(stage, stage_id, chunk)) is not None:
                path = _located(commit, self.rows_path(stage, stage_id, chunk))
            if path is not None:
                uris.append(f"{self.uri}/{path}")
        return uris

    def read_rows(self, stage: str, stage_id: str, chunk: str) -> pa.Table:
        """Read the rows of a committed unit, as its file has them.

        A file of an older version may lack columns: :meth:`~tasks.stages.RowSchema.complete` adds them.

        Raises:
            StoreError: Not committed, or not what was committed.
        """
        return self._read(stage, stage_id, chunk, self.rows_path(stage, stage_id, chunk))

    def read_images(self, stage: str, stage_id: str, chunk: str) -> pa.Table:
        """Read the adversarial images of a committed unit; errors as in :meth:`read_rows`."""
        return self._read(stage, stage_id, chunk, self.images_path(stage_id, chunk))

    def _read(self, stage: str, stage_id: str, chunk: str, path: str) -> pa.Table:
        commit = self.committed(stage, stage_id, chunk)
        if commit is None:
            raise StoreError(f"{path} in {self.uri} is not committed")
        path = _located(commit, path) or path
        try:
            data = self.files.read(path)
        except FileNotFoundError as error:
            raise StoreError(f"{path} in {self.uri} is committed but missing; run the sweep again") from error
        if hashlib.sha256(data).hexdigest() != commit.sha256.get(path):
            raise StoreError(f"{path} in {self.uri} is not the file that was committed; run the sweep again")
        return pq.read_table(pa.BufferReader(data))


def _named_by_content(path: str, digest: str) -> str:
    return f"{path.removesuffix('.parquet')}.{digest[:12]}.parquet"


def _located(commit: Commit, path: str) -> str | None:
    """Return where the data of a path lies according to its commit; None if the commit has no such data."""
    places = (place for place, digest in commit.sha256.items() if place in (path, _named_by_content(path, digest)))
    return next(places, None)


def _parquet(table: pa.Table, spec: StageSpec, stage_id: str, chunk: Chunk, version: int) -> bytes:
    metadata = {
        **(table.schema.metadata or {}),
        b"puregrid.schema_version": str(version).encode(),
        b"puregrid.stage_id": stage_id.encode(),
        b"puregrid.chunk": chunk.name.encode(),
        b"puregrid.spec": spec.canonical().encode(),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd", use_dictionary=False)
    data: bytes = sink.getvalue().to_pybytes()
    return data
