"""Baselines: the snapshot of a run, kept to compare later runs with.

A user names a run in one of these ways, :func:`load`:

* a **store**: the sweep of a name that ran last there; a sweep file may name a store of its own;
* a **file** that ``puregrid promote --to FILE`` wrote: JSON, made to be committed. Values are numerators of shares
  (right draws of all draws), deflated and in base64;
* **MLflow**: ``mlflow:ALIAS``, a run that was promoted to the alias (the tag ``puregrid.baseline.ALIAS`` of the
  sweep's parent run, with the snapshot as the artifact ``baselines/ALIAS.json``), or ``mlflow:RUN_ID`` of any logged
  parent run (``outcomes.json``). A promoted artifact is a copy: running the same sweep again updates its run, and a
  baseline that moved along would hold for ever.

A sweep with ``precision: {decide: {baseline: FILE, drop: 5}}`` stops by such a file, :func:`referenced`.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from defense.errors import InvalidInput
from defense.files import found, shown
from defense.reading import LARGEST_JSON, parse_json, reading
from defense.spec import digest
from workflows.grid.load import Sweep, load_sweep
from workflows.regression.compare import match
from workflows.regression.snapshots import CellOutcome, Shares, Snapshot, of_results, of_store
from workflows.results.convergence import extended
from workflows.results.reader import Results
from workflows.results.records import CellRecord, current_name
from workflows.store import Store

__all__ = ["complete_text", "from_text", "load", "load_pair", "referenced", "to_text"]

SCHEMA = "puregrid-baseline/1"
"""Its number is raised when an older puregrid would misunderstand a file, not when fields are added."""

_CONFIG = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Packed(BaseModel):
    """Shares in a file."""

    model_config = _CONFIG
    of: int = Field(ge=1, le=65535)
    data: str

    @classmethod
    def pack(cls, shares: Shares) -> _Packed:
        raw = shares.counts.astype("<u2").tobytes()
        return cls(of=shares.of, data=base64.b64encode(zlib.compress(raw, 9)).decode())

    def unpack(self, count: int) -> Shares:
        # No more than the file says there are: a short text can inflate to anything.
        inflate = zlib.decompressobj()
        raw = inflate.decompress(base64.b64decode(self.data, validate=True), 2 * count + 1)
        counts = np.frombuffer(raw, dtype="<u2").astype(np.int64)
        if not inflate.eof or len(counts) != count or (count and counts.max() > self.of):
            raise ValueError(f"values of {count} images were expected, as shares of {self.of}")
        return Shares(counts, self.of)


class _CellFile(BaseModel):
    model_config = _CONFIG
    name: str
    spec: dict[str, Any]
    data: str
    images: str
    images_digest: str
    complete: bool
    values: dict[str, _Packed]
    cost: dict[str, float]
    seconds: float | None
    anytime: bool = False


class _File(BaseModel):
    model_config = _CONFIG
    schema_: Literal["puregrid-baseline/1"] = Field(alias="schema")
    sweep: str
    versions: dict[str, str]
    cells: list[_CellFile]


def to_text(snapshot: Snapshot) -> str:
    """Write a snapshot as JSON, the same text for the same content."""
    cells = [
        {
            "name": cell.name,
            "data": cell.data,
            "images": _ranges(cell.images),
            "images_digest": _images_digest(cell.data, cell.images),
            "complete": cell.complete,
            "values": {name: _Packed.pack(shares).model_dump() for name, shares in cell.values.items()},
            "cost": dict(cell.cost),
            "seconds": None if cell.seconds is None else round(cell.seconds, 6),
            "spec": dict(cell.spec),
            **({"anytime": True} if cell.anytime else {}),
        }
        for cell in snapshot.cells
    ]
    head = {"schema": SCHEMA, "sweep": snapshot.sweep, "versions": dict(snapshot.versions)}
    return json.dumps({**head, "cells": cells}, indent=1) + "\n"


def complete_text(results: Results) -> str:
    """Write a sweep's snapshot as JSON, to compare later runs with.

    Raises:
        InvalidInput: A cell is not complete: a baseline with holes can hold nothing.
    """
    snapshot = of_results(results)
    missing = [cell.name for cell in snapshot.cells if not cell.complete]
    if missing:
        raise InvalidInput(
            f"{len(missing)} of {len(snapshot.cells)} cells are not complete in {results.store.uri}, first "
            f"{missing[0]!r}: run the sweep to its end, then promote it."
        )
    return to_text(snapshot)


def from_text(text: str, where: str) -> Snapshot:
    """Read what :func:`to_text` wrote.

    Raises:
        InvalidInput: It is something else, of another schema version, or damaged.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        raise InvalidInput(f"this is no JSON ({error}). {_HOW}", where=where) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(content, dict) and "robustness" in content:
        raise InvalidInput(
            "this is a table: it has accuracies but not which images were right, so that runs cannot be paired. "
            + _HOW,
            where=where,
        )
    newer = re.fullmatch(r"puregrid-baseline/([1-9]\d{0,3})", schema) if isinstance(schema, str) else None
    if newer and schema != SCHEMA:
        raise InvalidInput(
            f"a later version of puregrid wrote this baseline ({schema}; this version reads {SCHEMA}). Install that "
            "version, or promote the run again with this one.",
            where=where,
        )
    if schema != SCHEMA:
        raise InvalidInput(
            f"this is no baseline that can be read here: its schema is {schema!r}, not {SCHEMA!r}. {_HOW}",
            where=where,
        )
    try:
        file = _File.model_validate(content)
        cells = tuple(_unpacked(cell) for cell in file.cells)
    except (ValidationError, ValueError, zlib.error, binascii.Error) as error:
        raise InvalidInput(f"the baseline is damaged: {error}. {_HOW}", where=where) from error
    return Snapshot(where.removeprefix("--baseline "), file.sweep, cells, file.versions)


_HOW = "Write one with `puregrid promote SWEEP.yaml --to FILE`."


def _unpacked(cell: _CellFile) -> CellOutcome:
    images = _from_ranges(cell.images)
    if _images_digest(cell.data, images) != cell.images_digest:
        raise ValueError(f"the images of {cell.name!r} are not those of their digest")
    values = {name: packed.unpack(len(images)) for name, packed in cell.values.items()}
    return CellOutcome(
        current_name(cell.name),
        cell.spec,
        cell.data,
        images,
        cell.complete,
        values,
        cell.cost,
        cell.seconds,
        cell.anytime,
    )


def _images_digest(data: str, images: Sequence[int]) -> str:
    return digest(data + ":" + ",".join(map(str, images)))


def _ranges(images: Sequence[int]) -> str:
    """``0-98, 100``: ascending ids, runs of neighbours as one."""
    runs: list[list[int]] = []
    for image in images:
        if runs and image == runs[-1][1] + 1:
            runs[-1][1] = image
        else:
            runs.append([image, image])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


_MOST_IMAGES = 10_000_000


def _from_ranges(text: str) -> tuple[int, ...]:
    images: list[int] = []
    for part in filter(None, text.split(", ")):
        first, _, last = part.partition("-")
        if int(last or first) - int(first) > _MOST_IMAGES:
            raise ValueError(f"images {part!r} are too many")
        images += range(int(first), int(last or first) + 1)
    return tuple(images)


def load(reference: str, *, sweep: str | None, tracking_uri: str | None, where: str) -> Snapshot:
    """Load the snapshot that a user names: a file, ``mlflow:ALIAS`` or ``mlflow:RUN_ID``, or a store.

    Arguments:
        reference: As given.
        sweep: Name of the sweep that it is to be compared with; None if any will do.
        tracking_uri: Where MLflow keeps runs.
        where: The option or argument, for messages.

    Raises:
        InvalidInput: There is no such thing, or it cannot be read.
    """
    where = f"{where} {reference if len(reference) < 300 else shown(reference)}"
    if reference.startswith("mlflow:"):
        from workflows.tracking.aliases import baseline_text

        return from_text(baseline_text(tracking_uri, sweep, reference.removeprefix("mlflow:"), where), where)
    if "://" not in reference:
        found(reference, "baseline", kind="either", where=where)
    if os.path.isfile(reference):
        with reading(reference, "baseline"), Path(reference).open("rb") as file:
            text = file.read(LARGEST_JSON + 1).decode(errors="replace")
        return from_text(text, where)
    if "://" not in reference and not os.path.isdir(reference):
        raise InvalidInput("there is no such file or store.", where=where)
    return of_store(Store(reference), sweep, where)


def load_pair(first: str, second: str, *, store: str, tracking_uri: str | None) -> tuple[Snapshot, Snapshot]:
    """Load two runs that a user names: each as for :func:`load`, or ``SWEEP.yaml``, or ``SWEEP.yaml@STORE``.

    A store alone, or an alias, means the sweep of the other side.

    Arguments:
        first: As given.
        second: As given.
        store: The store of a sweep file that names none.
        tracking_uri: Where MLflow keeps runs.

    Raises:
        InvalidInput: There is no such run, or it cannot be read.
    """
    snapshots: dict[int, Snapshot] = {}
    given = (first, second)
    # A sweep file or a baseline file says by itself which sweep it is of, so these go first.
    order = sorted((0, 1), key=lambda side: not (_is_sweep(given[side]) or os.path.isfile(given[side])))
    for side in order:
        known = next((snapshot.sweep for snapshot in snapshots.values()), None)
        if _is_sweep(given[side]):
            path, _, its_store = given[side].partition("@")
            opened = Store(its_store or store)
            sweep = extended(referenced(load_sweep(Path(path))), opened)
            snapshots[side] = of_results(Results(opened, sweep))
        else:
            where = ("first", "second")[side]
            snapshots[side] = load(given[side], sweep=known, tracking_uri=tracking_uri, where=where)
    return snapshots[0], snapshots[1]


def _is_sweep(reference: str) -> bool:
    return reference.partition("@")[0].endswith((".yaml", ".yml"))


_MEASURES = {"avg": "Avg", "answer": "answer"}


def referenced(sweep: Sweep) -> Sweep:
    """Return a sweep whose questions know the baseline that it names; cells are matched as ``puregrid check`` does.

    A cell without a counterpart, or on other data, has nothing to be held against and is computed in full.

    Raises:
        InvalidInput: The baseline is not there or cannot be read, or has no such measure or none of the cells.
    """
    decide = None if sweep.precision is None else sweep.precision.decide
    if sweep.precision is None or decide is None or decide.baseline is None:
        return sweep
    keys = ("precision", "decide", "baseline")
    if sweep.precision.measure not in _MEASURES:
        raise sweep.document.error(("precision", "measure"), "a baseline holds avg and answer, and no Wor-M.")
    path = str(sweep.document.folder / decide.baseline)
    try:
        before = load(path, sweep=sweep.name, tracking_uri=None, where="")
    except InvalidInput as error:
        raise sweep.document.error(keys, f"{decide.baseline}: {error.message}") from error
    now = Snapshot("", sweep.name, tuple(_without_rows(sweep)), {})
    positions = {id(cell): position for position, cell in enumerate(now.cells)}
    references = {}
    for pair in match(before, now):
        if pair.first is None or pair.second is None or pair.first.data != pair.second.data:
            continue
        shares = pair.first.values.get(_MEASURES[sweep.precision.measure])
        if shares is not None:
            references[positions[id(pair.second)]] = dict(zip(pair.first.images, shares.values.tolist(), strict=True))
    if not references:
        raise sweep.document.error(
            keys, f"{decide.baseline} has none of the sweep's cells: nothing could be decided."
        )
    return sweep.with_references(references)


def _without_rows(sweep: Sweep) -> list[CellOutcome]:
    """Return the cells of a sweep as :func:`match` knows them."""
    found = []
    for cell, record in zip(sweep.cells, CellRecord.of_sweep(sweep), strict=True):
        identity = cell.stages[0].identity()
        empty = CellOutcome(record.name, identity, cell.images.dataset.digest or "", (), False, {}, {}, None)
        certified = cell.certificate is not None
        found.append(empty if certified else replace(empty, spec={**identity, "aggregation": record.aggregation}))
    return found
