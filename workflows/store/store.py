"""The layout of a store, and the commits (:mod:`workflows.store.commits`) that make its files count.

::

    rows/<stage>/<stage id>/<chunk>.parquet       data, written first
    adversarial/<stage id>/<chunk>.parquet        float32 images, written first too
    commits/<stage>/<stage id>/<chunk>.json       written last, created once: only now the unit exists
    specs/<stage id>.json                         what the stage id stands for
    sweeps/<sweep id>/                            sweep.yaml, plan.json, failures/, forecast.json, runs/
    manifests/<stage>/<stage id>.json             what was verified of a stage (:mod:`workflows.store.manifest`)
    aside/                                        what was damaged or in the way; nothing reads it

A row file holds nothing that differs between two runs of the same unit, so row files of two runs compare equal
byte for byte; times, hosts and attempts are in the commit. Readers believe commits only, and compare the sha256
of the data with the one in the commit.

Data is never overwritten. Where other bytes lie already (of an attempt on other hardware, or of a file that was
damaged), it goes to ``<chunk>.<first 12 digits of its sha256>.parquet``, and the commit names it.

A commit that is no commit, of another unit, or changed since it was written is *damaged*: whoever wants to compute
its unit sets it aside. One of a later ``schema_version`` is not; it is read where that can be done, and never
touched.
"""

import contextlib
import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from defense.errors import StoreError
from defense.spec import digest
from tasks.stages import ROW_SCHEMAS, Chunk, Output, StageSpec
from workflows.store.commits import COMMIT_VERSION, Attempt, Commit, DamagedCommit, NewerCommit
from workflows.store.files import Files
from workflows.store.manifest import Manifest
from workflows.store.record import read_json
from workflows.store.remote_files import open_files

__all__ = ["SCHEMA_VERSION", "Store"]

T = TypeVar("T")
V = TypeVar("V")

SCHEMA_VERSION = 1
"""Version of images, and of rows of stages without a :class:`~tasks.stages.schemas.RowSchema`; that has its own."""

IMAGE_STAGES = ("attack", "corrupt", "quality")
"""Stages that leave images; the path of an image file does not say of which of them it is."""


class Store:
    """Reads and writes units.

    Arguments:
        uri: A folder, or an fsspec URI.
    """

    def __init__(self, uri: str) -> None:
        self.files: Files = open_files(uri)
        self.uri = self.files.uri
        self._waited = 0.0

    @property
    def is_remote(self) -> bool:
        """Whether it is in a bucket, where an operation is mostly waiting."""
        return "://" in self.uri

    def at_once(self, function: Callable[[T], V], items: Sequence[T]) -> list[V]:
        """Return a function of the store of each item, in order; in a bucket many are asked for at once."""
        if not self.is_remote or len(items) < 2:
            return [function(item) for item in items]
        found: list[Future[V]] = [Future() for _ in items]
        left = deque(zip(items, found, strict=True))

        def work() -> None:
            with contextlib.suppress(IndexError):
                while True:
                    item, future = left.popleft()
                    try:
                        future.set_result(function(item))
                    except BaseException as error:
                        future.set_exception(error)
                        left.clear()

        # Daemons, since the end of a process waits for the threads of a pool, and they for a store that hangs.
        threads = [Thread(target=work, daemon=True) for _ in range(min(self.files.requests, len(items)))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            left.clear()
        return [future.result() for future in found]

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

    def spec(self, stage_id: str) -> dict[str, Any] | None:
        """Return what a stage id stands for, as :meth:`~defense.spec.Spec.identity` gave it; None if it is missing.

        Raises:
            StoreError: The file is damaged: an id is the hash of what it stands for.
        """
        path = f"specs/{stage_id}.json"
        try:
            content = read_json(self.files.read(path))
            whole = digest(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)) == stage_id
            why = "it is not what the id is the hash of"
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            whole, why = False, str(error)[:200]
        if not whole or not isinstance(content, dict):
            raise StoreError(
                f"{path} in {self.uri} is damaged ({why}). Run the sweep on this store again, which writes it anew "
                "and computes nothing that is committed."
            )
        return content

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

        Raises:
            StoreUnavailable: The store is full, refuses, or has been unreachable for a minute; nothing is committed.
            NewerCommit: A later version of puregrid has committed it, in a way that this one cannot read.
        """
        existing = self.settled(spec.stage, stage_id, chunk.name)
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
            ended=attempt.ended,
        )
        winner = self._decide(commit)
        for path in {*tables, *sha256} - winner.sha256.keys():
            self.files.delete(path)  # of an attempt that lost, or died, or was revoked: nobody can commit it any more
        return winner

    def _decide(self, commit: Commit) -> Commit:
        """Create a commit; returns that, or the one of another attempt, which was faster."""
        path = self.commit_path(commit.stage, commit.stage_id, commit.chunk)
        text = (json.dumps(commit.checked(), indent=1, sort_keys=True) + "\n").encode()
        for _ in range(3):
            if self.files.create(path, text):
                return commit
            # A lost answer to our own write reads like a loss; the record says whose it is.
            winner = self.settled(commit.stage, commit.stage_id, commit.chunk)
            if winner is not None:
                return winner
        raise StoreError(
            f"{path} in {self.uri} can neither be created nor read: something else writes or removes it. Find out "
            "what, then run the same command again."
        )

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
        """Return the commit of a unit, or None.

        Raises:
            DamagedCommit: There is a file, but it is not this unit's commit.
            NewerCommit: A later version of puregrid wrote it, and this one cannot read it.
        """
        return self._commit(stage, stage_id, chunk)[0]

    def _commit(self, stage: str, stage_id: str, chunk: str) -> tuple[Commit | None, bytes]:
        """Return the commit of a unit and the bytes of its file."""
        path = self.commit_path(stage, stage_id, chunk)
        try:
            raw = self.files.read(path)
        except FileNotFoundError:
            return None, b""
        try:
            commit = Commit.from_text(raw)
            _check_place(commit, stage, stage_id, chunk)
        except NewerCommit as error:
            raise NewerCommit(
                f"commit {path} in {self.uri} was written by a later version of puregrid, and this one cannot read "
                f"it ({error}). Install that version, or give another --store; nothing was changed."
            ) from error
        except ValueError as error:
            raise DamagedCommit(
                f"commit {path} in {self.uri} is damaged ({error}). Run the sweep again, which sets it aside and "
                "computes the unit again."
            ) from error
        return commit, raw

    def settled(self, stage: str, stage_id: str, chunk: str) -> Commit | None:
        """Return the commit of a unit; one that is damaged is set aside, which leaves none."""
        for _ in range(3):
            try:
                return self.committed(stage, stage_id, chunk)
            except DamagedCommit:
                self._drop(self.commit_path(stage, stage_id, chunk), stage, stage_id, chunk)
        return self.committed(stage, stage_id, chunk)

    def _drop(self, path: str, *unit: str, judged: bytes | None = None) -> None:
        """Set a commit aside, unless somebody has replaced it by a good one in this moment.

        Arguments:
            path: Its path.
            unit: Stage, its id and chunk.
            judged: The bytes that are to go; None for whatever is damaged.
        """
        place = self.files.set_aside(path)
        if place is None:
            return
        try:
            raw = self.files.read(place)
            if judged is None:
                _check_place(Commit.from_text(raw), *unit)
        except (FileNotFoundError, ValueError):
            return
        except NewerCommit:
            pass
        if raw != judged:
            self.files.create(path, raw)

    def manifest(self, stage: str, stage_id: str, *, images: bool = True) -> Manifest:
        """Return what was verified of a stage, beside its files as they are now."""
        return Manifest(self.files, stage, stage_id, images=images)

    def committed_chunks(self, stage: str, stage_id: str) -> set[str]:
        """Return the names of the committed chunks of a stage."""
        return {name.removesuffix(".json") for name in self.files.names(f"commits/{stage}/{stage_id}")}

    def problem(self, stage: str, stage_id: str, chunk: str, *, images: bool = False) -> str | None:
        """Return what is wrong with a committed unit's data, or None if it matches; see :meth:`examine`."""
        return self.examine(stage, stage_id, chunk, images=images)[0]

    def examine(
        self, stage: str, stage_id: str, chunk: str, *, images: bool = False
    ) -> tuple[str | None, Commit | None]:
        """Read all data of a committed unit and compare it with its commit.

        Arguments:
            stage: Kind of stage.
            stage_id: Its id.
            chunk: The chunk.
            images: Whether other stages read images of this one.

        Returns:
            What is wrong, None if it matches; and the commit, None if there is none that can be read.

        Raises:
            NewerCommit: A later version of puregrid has committed it in another form.
        """
        try:
            commit = self.committed(stage, stage_id, chunk)
        except DamagedCommit as error:
            return f"its {error}".partition(". Run the sweep again")[0], None
        if commit is None:
            return "it is not committed", None
        return self._problem(commit, stage, stage_id, chunk, images=images), commit

    def _problem(self, commit: Commit, stage: str, stage_id: str, chunk: str, *, images: bool) -> str | None:
        if commit.newer:
            raise NewerCommit(
                f"commit {self.commit_path(stage, stage_id, chunk)} in {self.uri} was written by a later version of "
                f"puregrid (schema {commit.schema_version}, this one writes {COMMIT_VERSION}). Install that version, "
                "or give another --store; nothing was changed."
            )
        if images and _located(commit, self.images_path(stage_id, chunk)) is None:
            return "its commit names no images, which other units read"
        rows = _located(commit, self.rows_path(stage, stage_id, chunk))
        for path, expected in commit.sha256.items():
            try:
                data = self.files.read(path)
            except FileNotFoundError:
                return f"{path} is missing"
            actual = hashlib.sha256(data).hexdigest()
            if actual != expected:
                return f"{path} has sha256 {actual[:12]}..., its commit says {expected[:12]}..."
            if path == rows and not commit.has_checksum and _count(data) != commit.rows:
                return f"{path} has {_count(data)} rows, its commit says {commit.rows}"
        for path, expected in commit.inputs.items():
            if self.input_sha256(path) not in (None, expected):
                return f"it read other data than what is now committed as {path}"
        return None

    def input_sha256(self, path: str) -> str | None:
        """Return the hash of a data file from the commit of its unit; None without a commit that says so."""
        if not _PATH.fullmatch(path) or path.count("/") != {"rows": 3, "adversarial": 2}.get(path.partition("/")[0]):
            return None
        _, *stages, stage_id, name = path.split("/")
        folder, chunk = path.rpartition("/")[0], name.partition(".")[0]
        for stage in stages or IMAGE_STAGES:
            try:
                commit = self.committed(stage, stage_id, chunk)
            except (DamagedCommit, NewerCommit):  # a problem of that unit; computed again, it is the same as before
                continue
            located = None if commit is None else _located(commit, f"{folder}/{chunk}.parquet")
            if commit is not None and located is not None:
                return commit.sha256[located]
        return None

    def data_sha256(self, stage: str, stage_id: str, chunk: str) -> dict[str, str]:
        """Return path and hash of a unit's data files from its commit; empty without a commit."""
        commit = self.committed(stage, stage_id, chunk)
        return {} if commit is None else dict(commit.sha256)

    def revoke(self, stage: str, stage_id: str, chunk: str) -> None:
        """Set the commit of a unit aside whose data is damaged, so that it is computed again.

        The damaged data goes first, to make place: a crash in between leaves a commit without data, which is reported
        and revoked again, and no one writes where a commit is. Data that is whole stays; equal bytes will be wanted.

        Raises:
            NewerCommit: A later version of puregrid has committed it.
        """
        path = self.commit_path(stage, stage_id, chunk)
        try:
            commit, raw = self._commit(stage, stage_id, chunk)
        except DamagedCommit:  # which bytes it named, nobody knows; if they are whole, equal ones will be wanted
            for place in (self.rows_path(stage, stage_id, chunk), self.images_path(stage_id, chunk)):
                if not self._plausible(place, stage_id, chunk):
                    self.files.set_aside(place)
            self._drop(path, stage, stage_id, chunk)
            return
        if commit is None:
            return
        for place in (self.rows_path(stage, stage_id, chunk), self.images_path(stage_id, chunk)):
            located = _located(commit, place)
            if located is not None and (located != place or not self._whole(commit, located)):
                self.files.set_aside(located)
        self._drop(path, stage, stage_id, chunk, judged=raw)

    def _plausible(self, path: str, stage_id: str, chunk: str) -> bool:
        """Return whether a data file can be read and says that it is that unit's; its bytes may still be others."""
        try:
            metadata = pq.read_table(pa.BufferReader(self.files.read(path))).schema.metadata or {}
        except (FileNotFoundError, pa.ArrowException, OSError) as error:
            if isinstance(error, StoreError):
                raise
            return isinstance(error, FileNotFoundError)
        said = metadata.get(b"puregrid.stage_id"), metadata.get(b"puregrid.chunk")
        return said == (stage_id.encode(), chunk.encode())

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

        A file of an older version may lack columns: :meth:`~tasks.stages.schemas.RowSchema.complete` adds them.

        Raises:
            StoreError: Not committed, or not what was committed.
        """
        return self.read_unit(stage, stage_id, chunk)[1]

    def read_unit(self, stage: str, stage_id: str, chunk: str) -> tuple[Commit, pa.Table]:
        """Read the commit and the rows of a unit; errors as in :meth:`read_rows`."""
        return self._read(stage, stage_id, chunk, self.rows_path(stage, stage_id, chunk))

    def read_images(self, stage: str, stage_id: str, chunk: str) -> pa.Table:
        """Read the adversarial images of a committed unit; errors as in :meth:`read_rows`."""
        return self._read(stage, stage_id, chunk, self.images_path(stage_id, chunk))[1]

    def _read(self, stage: str, stage_id: str, chunk: str, path: str) -> tuple[Commit, pa.Table]:
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
        try:
            # A chunk is too small for threads: to wake them takes longer than to read it.
            return commit, pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"{path} in {self.uri} is what was committed, but this version cannot read it ({str(error)[:200]}). "
                "Install the version of puregrid and pyarrow that its commit names."
            ) from error


_PATH = re.compile(r"(?!.{500})(?:[\w-][\w.-]{0,200}/)+[\w-][\w.-]{0,200}")
"""Paths that a record may name: relative, without dots at the beginning of a part."""


def _check_place(commit: Commit, stage: str, stage_id: str, chunk: str) -> None:
    """Compare a commit with the place that it was read from.

    Raises:
        ValueError: It is another unit's, or does not say where this one's rows are. Never of a later version.
    """
    if commit.newer:
        return
    if (commit.stage, commit.stage_id, commit.chunk) != (stage, stage_id, chunk):
        raise ValueError(f"it is that of {commit.stage} {commit.stage_id} chunk {commit.chunk}"[:200])
    if _located(commit, Store.rows_path(stage, stage_id, chunk)) is None:
        raise ValueError("it names no rows")
    strange = next((path for path in commit.sha256 if not _PATH.fullmatch(path)), None)
    if strange is not None:
        raise ValueError(f"it names {strange[:80]!r}, which is no path in a store")


def _count(data: bytes) -> int:
    """Return the number of rows of a Parquet file; -1 if it is none."""
    try:
        return int(pq.read_metadata(pa.BufferReader(data)).num_rows)
    except (pa.ArrowException, OSError):
        return -1


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
