"""Copy the rows of a sweep into one Parquet data set.

Committed rows are one small file a chunk: that is what makes a unit cheap to commit and to compute again. To analyse
a sweep elsewhere, one file per stage is better::

    compact/<sweep id>/cells.parquet               which stages judged which cell
    compact/<sweep id>/<stage>/<stage id>.parquet  all rows of a stage, after the columns ``stage_id`` and ``chunk``

These are copies of rows whose sha256 matches their commits. Nothing in puregrid reads them, so no result depends on
them, and they may be deleted at any time. The metadata holds the hashes of the commits, by which an outdated copy is
recognised and made again.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.stages import ROW_SCHEMAS
from workflows.grid.load import Sweep
from workflows.planning.plan import make_plan
from workflows.store import Commit, Store
from workflows.store.store import SCHEMA_VERSION

__all__ = ["Compacted", "compact", "row_files"]

_COMMITS = b"puregrid.commits"
_VERSION = b"puregrid.schema_version"
_CHECKED = b"puregrid.page_checksums"
_THREADS = 8  # of reading: a bucket answers many requests at once


@dataclass(frozen=True)
class Compacted:
    """The result of :func:`compact`.

    Arguments:
        folder: Path or URI of the data set.
        files: Files of rows.
        rows: Rows in them.
        units: Committed units in them.
        written: Files that were not there already as they are.
        missing: Units of the sweep that are not committed.
    """

    folder: str
    files: int
    rows: int
    units: int
    written: int
    missing: int


def row_files(store: Store, sweep: Sweep, stage: str = "evaluate") -> list[str]:
    """Return paths or URIs of the committed row files of a sweep's stages of one kind, without reading them."""
    uris = []
    for (kind, stage_id), (_, chunks) in _stages(sweep).items():
        if kind == stage:
            uris += store.row_files(kind, stage_id, chunks)
    return uris


def compact(store: Store, sweep: Sweep) -> Compacted:
    """Copy the committed rows of a sweep into one file per stage; those that are there already are left.

    Raises:
        StoreError: Rows are not what was committed; run the sweep again, which computes them again.
    """
    folder = f"compact/{sweep.id}"
    rows = units = files = written = missing = 0
    for (kind, stage_id), (schema, chunks) in _stages(sweep).items():
        done = store.committed_chunks(kind, stage_id)
        names = [chunk for chunk in chunks if chunk in done]
        missing += len(chunks) - len(names)
        if not names:
            continue
        path = f"{folder}/{kind}/{stage_id}.parquet"
        with ThreadPoolExecutor(_THREADS) as threads:
            commits = list(threads.map(lambda name: store.committed(kind, stage_id, name), names))  # noqa: B023
        hashes = json.dumps({name: _hash(commit) for name, commit in zip(names, commits, strict=True)})
        metadata = {**schema, _COMMITS: hashes.encode(), _CHECKED: b"crc32"}
        if not _made_of(metadata, store, path):
            store.files.write(path, _together(store, kind, stage_id, names, metadata))
            written += 1
        files, units = files + 1, units + len(names)
        rows += sum(commit.rows for commit in commits if commit is not None)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(_cells(sweep), preserve_index=False), sink)
    store.files.write(f"{folder}/cells.parquet", sink.getvalue().to_pybytes())
    return Compacted(f"{store.uri}/{folder}", files, rows, units, written, missing)


def _stages(sweep: Sweep) -> dict[tuple[str, str], tuple[dict[bytes, bytes], list[str]]]:
    """Return metadata and chunk names of each distinct stage."""
    stages: dict[tuple[str, str], tuple[dict[bytes, bytes], list[str]]] = {}
    for stage in make_plan(sweep).stages:
        schema = ROW_SCHEMAS.get(stage.spec.stage)
        metadata = {
            b"puregrid.stage_id": stage.id.encode(),
            b"puregrid.spec": stage.spec.canonical().encode(),
            _VERSION: str(SCHEMA_VERSION if schema is None else schema.version).encode(),
        }
        _, chunks = stages.setdefault((stage.spec.stage, stage.id), (metadata, []))
        chunks += [chunk.name for chunk in stage.chunks if chunk.name not in chunks]
    return stages


def _hash(commit: Commit | None) -> str:
    """Return the hash of a unit's rows; "" for a unit that was revoked this moment, so that reading it fails."""
    digests = {} if commit is None else commit.sha256
    return next((digest for path, digest in digests.items() if path.startswith("rows/")), "")


def _made_of(metadata: dict[bytes, bytes], store: Store, path: str) -> bool:
    """Return whether a compacted file holds the rows of these commits with the columns of this version."""
    try:
        data = pa.BufferReader(store.files.read(path))
    except FileNotFoundError:
        return False
    try:
        found = pq.read_schema(data).metadata or {}
        same = all(found.get(name) == metadata[name] for name in (_COMMITS, _VERSION, _CHECKED))
        if same:
            pq.read_table(data, page_checksum_verification=True)
    except (pa.ArrowException, OSError):  # damaged
        return False
    return same


def _together(store: Store, kind: str, stage_id: str, names: Sequence[str], metadata: dict[bytes, bytes]) -> bytes:
    with ThreadPoolExecutor(_THREADS) as threads:
        tables = list(threads.map(lambda name: store.read_rows(kind, stage_id, name), names))
    tables = [table.replace_schema_metadata(None) for table in tables]
    if kind in ROW_SCHEMAS:
        tables = [ROW_SCHEMAS[kind].complete(table) for table in tables]
    table = pa.concat_tables(tables)
    chunk = [name for name, rows in zip(names, tables, strict=True) for _ in range(rows.num_rows)]
    table = table.add_column(0, "chunk", pa.array(chunk, pa.string()))
    table = table.add_column(0, "stage_id", pa.array([stage_id] * table.num_rows, pa.string()))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _cells(sweep: Sweep) -> pd.DataFrame:
    """Return one row for each cell and last stage: what the rows with that ``stage_id`` belong to."""
    return pd.DataFrame(
        [
            {
                "cell": cell.id,
                "stage": stage.stage,
                "stage_id": stage.id,
                **sweep.labels[cell.id],
                "norm": None if cell.attack is None else cell.attack.norm,
                "eps": 0.0 if cell.attack is None else cell.attack.eps,
                "seed": cell.seed,
            }
            for cell in sweep.cells
            for stage in cell.stages
        ]
    )
