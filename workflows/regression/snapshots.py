"""What a run measured, image by image: enough to compare it with another run, later and elsewhere.

A *snapshot* holds for each cell its name, its spec, which images were judged, and values per image of each measure,
in the order of image ids. Any measure that is one share per image can take part: ``CellOutcome.values`` maps its name
to :class:`Shares`, and all that comes after (pairing, tests, report) asks for no more.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from defense.aggregate import Aggregation, Until, aggregate, certain_answer
from defense.errors import InvalidInput, StoreError, nearest
from defense.spec import digest
from workflows.grid.precision import random_order
from workflows.results.reader import Results
from workflows.results.records import CellRecord, LastSweep
from workflows.store import Store, StoreUnavailable

__all__ = ["CellOutcome", "Shares", "Snapshot", "certificate_shares", "of_results", "of_store", "paired_places"]

_RADIUS_PARTS = 65535
"""Denominator of radii: the largest that a baseline file can hold."""


@dataclass(frozen=True)
class Shares:
    """One value in [0, 1] per image, as whole numbers of a common unit.

    Arguments:
        counts: Numerators, shape (n,), in [0, of].
        of: The denominator: draws, or 1 for yes and no.
    """

    counts: npt.NDArray[np.int64]
    of: int

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """Shares, shape (n,)."""
        return np.asarray(self.counts / self.of, dtype=np.float64)


@dataclass(frozen=True)
class CellOutcome:
    """What a run measured in one cell.

    Arguments:
        name: Name in tables, see ``CellRecord.name_of``.
        spec: What determines its rows, as plain JSON, and how its draws are aggregated.
        data: Digest of the data set's content: an image id means nothing without it.
        images: Ids of the images that were judged, ascending.
        complete: Whether these are all images that the cell asks for, or all that its answer needed.
        values: Values per image by measure: ``Avg`` and ``answer`` (by the cell's aggregation; of draws that stop
            the answer alone, or ``Wor-M``), or
            ``certified 0.25`` at some radii and ``ACR / 4 sigma``, of certificates.
        cost: Network evaluations per image and answer, by network; of a certificate, per sample.
        seconds: Compute time per image; None where it was not recorded.
        anytime: Whether how many images there are may depend on what they show (``precision``). They are then the
            first of the cell's in :func:`workflows.grid.precision.random_order`, and only tests that hold at any
            number of images hold.
    """

    name: str
    spec: Mapping[str, Any]
    data: str
    images: tuple[int, ...]
    complete: bool
    values: Mapping[str, Shares]
    cost: Mapping[str, float]
    seconds: float | None
    anytime: bool = False

    @property
    def spec_id(self) -> str:
        """Equal for cells that are the same but for their names."""
        return digest(json.dumps(self.spec, sort_keys=True))


@dataclass(frozen=True)
class Snapshot:
    """What a run measured in all cells of a sweep, in the order of the grid.

    Arguments:
        source: Where it is from, for messages.
        sweep: Name of the sweep.
        cells: One outcome a cell.
        versions: Versions of what computed it.
        results: The rows behind it, for their images; None of one that was read from a file or a record.
    """

    source: str
    sweep: str
    cells: tuple[CellOutcome, ...]
    versions: Mapping[str, str]
    results: Results | None = field(default=None, compare=False, repr=False)


def of_results(results: Results) -> Snapshot:
    """Take the snapshot of a sweep's committed results: attacks, corruptions, certificates."""
    sweep = results.sweep
    judged = []
    for cell, record in zip(sweep.cells, CellRecord.of_sweep(sweep), strict=True):
        chunks = record.chunks[: results.stopped_after(cell)]  # further ones may be there and are not part of it
        judged.append((replace(record, chunks=chunks), cell.stages[0].identity()))
    return replace(_snapshot(results.store, sweep.name, judged), results=results)


def of_store(store: Store, sweep: str | None, where: str) -> Snapshot:
    """Take the snapshot of the sweep of that name that ran last in a store; without a name, of the only sweep there.

    Raises:
        InvalidInput: No such sweep, or several to choose from.
    """
    names, damage = _sweeps(store)
    if damage is not None and (sweep is None or sweep not in names):
        raise damage
    if sweep is None and len(names) > 1:
        raise InvalidInput(
            f"the store holds the sweeps {', '.join(names)}: say which, as SWEEP.yaml@STORE.", where=where
        )
    chosen = sweep if sweep is not None else next(iter(names), "")
    if chosen not in names:
        hint = nearest(chosen, names) if names else "It holds none: is this the folder that --store named?"
        raise InvalidInput(
            f"there is no sweep {chosen!r} in it. {hint} Give a store in which this sweep ran, or a file that "
            "`puregrid promote --to FILE` wrote.",
            where=where,
        )
    judged = []
    for record in CellRecord.latest(store, chosen):
        try:
            spec = store.spec(record.stage_id)
        except StoreError as error:
            if isinstance(error, StoreUnavailable):
                raise
            raise InvalidInput(str(error), where=where) from error
        if spec is None:
            raise InvalidInput(
                f"specs/{record.stage_id}.json is missing: without it nobody knows what its rows are. Run the sweep "
                "on this store again.",
                where=where,
            )
        judged.append((record, spec))
    return _snapshot(store, chosen, judged)


def _sweeps(store: Store) -> tuple[list[str], InvalidInput | None]:
    """Return the names of the sweeps of a store, and the error of a record that cannot be read."""
    names, damage = [], None
    for name in store.files.names("sweeps"):
        if re.fullmatch(r"latest-\w+\.json", name):
            try:
                last = LastSweep.read(store, f"sweeps/{name}")
            except InvalidInput as error:
                damage = error
            else:
                names += [] if last is None else [last.sweep]
    return sorted(names), damage


def _snapshot(store: Store, sweep: str, judged: Iterable[tuple[CellRecord, Mapping[str, Any]]]) -> Snapshot:
    versions: dict[str, str] = {}
    cells = []
    for cell, spec in judged:
        stage = spec["stage"]
        done = store.committed_chunks(stage, cell.stage_id)
        present = (
            takewhile(done.__contains__, cell.chunks) if cell.anytime else filter(done.__contains__, cell.chunks)
        )
        chunks = list(present)
        commits = [commit for chunk in chunks if (commit := store.committed(stage, cell.stage_id, chunk))]
        for commit in commits:
            for name, version in commit.versions.items():
                known = versions.setdefault(name, version)
                versions[name] = known if version in known.split(", ") else f"{known}, {version}"
        tables = [store.read_rows(stage, cell.stage_id, chunk) for chunk in chunks]
        seconds = sum(commit.seconds for commit in commits)
        complete = len(chunks) == len(cell.chunks)
        cells.append(_outcome(cell, spec, tables, complete, seconds))
    return Snapshot(store.uri, sweep, tuple(cells), versions)


def _outcome(
    cell: CellRecord, identity: Mapping[str, Any], tables: Sequence[pa.Table], complete: bool, seconds: float
) -> CellOutcome:
    rows = pd.DataFrame()
    if tables:
        rows = pa.concat_tables([table.replace_schema_metadata(None) for table in tables]).to_pandas()
        rows = rows.sort_values("image_id", ignore_index=True)
    certified = identity["stage"] == "certify"
    spec = dict(identity) if certified else {**identity, "aggregation": cell.aggregation}
    dataset = (identity["smoothed"] if certified else identity)["dataset"]
    values: dict[str, Shares] = {}
    cost = {network: float(count) for network, count in cell.evaluations.items()}
    if len(rows) and certified:
        values = certificate_shares(rows, float(identity["certificate"]["sigma"]))
    elif len(rows):
        until = identity.get("until")
        values = _answer_shares(rows, cell.aggregation, until)
        # A vote is one answer, of all draws; so is the worst of them.
        answers = int(identity["draws"]) if cell.aggregation == "single" and until is None else 1
        for network in ("denoiser", "classifier"):
            cost[network] = float(rows[f"{network}_evaluations"].sum()) / len(rows) / answers
    return CellOutcome(
        name=cell.name,
        spec=spec,
        data=str(dataset.get("digest") or digest(json.dumps(dataset, sort_keys=True))),
        images=tuple(int(image) for image in rows["image_id"]) if len(rows) else (),
        complete=complete,
        values=values,
        cost=cost,
        seconds=seconds / len(rows) if len(rows) else None,
        anytime=cell.anytime,
    )


def paired_places(first: CellOutcome, second: CellOutcome) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], bool]:
    """Return where the images of both runs are in either, and whether they are the first ones in random order.

    They are, in that order, if either run may have stopped early; then only what holds at any number of images holds.
    """
    shared, left, right = np.intersect1d(first.images, second.images, assume_unique=True, return_indices=True)
    if not (first.anytime or second.anytime) or not len(shared):
        return left, right, False
    rank = {image: place for place, image in enumerate(random_order(int(image) for image in shared))}
    order = np.argsort([rank[int(image)] for image in shared])
    return left[order], right[order], True


def _answer_shares(rows: pd.DataFrame, aggregation: Aggregation, until: Until | None) -> dict[str, Shares]:
    """Shares of right draws, and right answers; where draws stop, what is certain."""
    votes, mean = np.stack(list(rows["prediction"])), np.stack(list(rows["mean_probability"]))
    label = rows["label"].to_numpy()
    if until is not None:
        right = certain_answer(votes, label, until) == label
        return {"answer" if until == "vote" else "Wor-M": Shares(right.astype(np.int64), 1)}
    right = aggregate(votes, mean, aggregation) == label
    return {
        "Avg": Shares((votes == label[:, None]).sum(1).astype(np.int64), votes.shape[1]),
        "answer": Shares(right.astype(np.int64), 1),
    }


def certificate_shares(rows: pd.DataFrame, sigma: float) -> dict[str, Shares]:
    """Return which images are right with radius 0, sigma and 2 sigma or more, and the average certified radius.

    There are no more radii because every measure costs all cells a test. An image that is wrong has radius 0. Radii
    are rounded to 65535ths of 4 sigma and cut there. Their mean, ACR over 4 sigma, is certified accuracy averaged
    over the radii up to 4 sigma: its points are points of that.
    """
    right = (rows["prediction"] == rows["label"]).to_numpy()
    radius = rows["radius"].to_numpy(np.float64)
    at_radius = {
        f"certified {least:g}": Shares((right & (radius >= least)).astype(np.int64), 1)
        for least in (0.0, sigma, 2 * sigma)
    }
    share = np.where(right, np.clip(radius / (4 * sigma), 0.0, 1.0), 0.0)
    return {**at_radius, "ACR / 4 sigma": Shares(np.rint(share * _RADIUS_PARTS).astype(np.int64), _RADIUS_PARTS)}
