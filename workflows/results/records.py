"""The record in the store of the last sweep of a name: its cells, and where their rows are."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from defense.aggregate import Aggregation
from defense.errors import InvalidInput, PuregridError
from defense.spec import digest
from tasks.attacks.budgets import format_eps, read_eps
from workflows.grid.load import recorded_sweep
from workflows.grid.sweep import Sweep
from workflows.planning.plan import Plan
from workflows.store import LocalFiles, Record, Store
from workflows.store.record import Count

__all__ = ["CellRecord", "LastSweep", "current_name", "latest_path", "record_sweep", "recorded_sweeps", "remade"]


@dataclass(frozen=True)
class CellRecord(Record):
    """The record of a cell, enough to read its rows without the sweep file.

    Arguments:
        name: What tables call it.
        stage_id: Id of the stage whose rows are its result: evaluate, or certify.
        aggregation: How its draws become one answer.
        chunks: Names of its chunks.
        evaluations: Network evaluations per sample of a certificate, by network; other rows count their own.
        anytime: Whether the cell may stop before its last chunk, so that chunks behind a missing one do not count.
    """

    name: str
    stage_id: str
    aggregation: Aggregation
    chunks: tuple[str, ...]
    evaluations: dict[str, Count] = field(default_factory=dict)
    anytime: bool = False

    @staticmethod
    def name_of(row: Mapping[Any, Any]) -> str:
        """Return the name of a cell from its columns in the robustness table."""
        parts = [str(row[key]) for key in ("dataset", "classifier", "defence", "attack")]
        return " · ".join([*parts, f"eps {format_eps(float(row['eps']))}", f"seed {row['seed']}"])

    @classmethod
    def of_sweep(cls, sweep: Sweep) -> list[CellRecord]:
        """Return the records of a sweep's cells, in their order."""
        cells = []
        may_stop = {position for question in sweep.questions for position in question.cells}
        for position, cell in enumerate(sweep.cells):
            labels = sweep.labels[cell.id]
            threat = next(labels[part] for part in ("attack", "corruption", "certificate") if part in labels)
            eps = 0.0 if cell.attack is None else cell.attack.eps
            name = cls.name_of({**labels, "attack": threat, "eps": eps, "seed": cell.seed})
            chunks = tuple(chunk.name for chunk in cell.images.chunks)
            evaluations = {}
            if cell.certificate is not None:
                smoothed = cell.certify.smoothed
                evaluations = {"denoiser": smoothed.evaluations, "classifier": smoothed.classifier_evaluations}
            anytime = position in may_stop
            cells.append(cls(name, cell.stages[0].id, cell.defence.aggregation, chunks, evaluations, anytime))
        return cells

    @classmethod
    def latest(cls, store: Store, sweep_name: str) -> list[CellRecord]:
        """Return the records of the last sweep of that name in a store; empty without one."""
        last = LastSweep.read(store, latest_path(sweep_name))
        return [replace(record, name=current_name(record.name)) for record in (last.cells if last else ())]


@dataclass(frozen=True)
class LastSweep(Record):
    """What a store remembers of the last sweep of a name."""

    sweep: str
    sweep_id: str
    cells: tuple[CellRecord, ...]

    @classmethod
    def read(cls, store: Store, path: str) -> LastSweep | None:
        """Read the record at a path; None where there is none.

        Raises:
            InvalidInput: It is damaged.
        """
        try:
            last = cls.from_text(store.files.read(path))
            if latest_path(last.sweep) != path:
                raise ValueError(f"it is the record of {last.sweep[:80]!r}")
            if not all(re.fullmatch(r"\w+", cell.stage_id) for cell in last.cells):
                raise ValueError("it names no stage")
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise damaged(store, path, error) from error
        return last


def damaged(store: Store, path: str, error: Exception) -> InvalidInput:
    """The error of a file of the store that a run writes anew."""
    return InvalidInput(
        f"{path} in {store.uri} is damaged ({str(error)[:200]}). Run the sweep on this store again, which writes it "
        "anew and computes nothing that is committed."
    )


def current_name(name: str) -> str:
    """Return the name of a cell as it is written today: earlier versions wrote the budget 8/255 as 0.0313725."""
    return re.sub(r"(?<= · eps )[\d.e-]+(?= · seed )", lambda eps: format_eps(read_eps(eps[0])), name)


def latest_path(sweep_name: str) -> str:
    """Return where a store records the last sweep of a name."""
    return f"sweeps/latest-{digest(sweep_name)}.json"


def recorded_sweeps(store: Store) -> list[tuple[str, str, Path]]:
    """Return id, text and folder of every sweep that a store has on record; of a bucket the last one of each name.

    The folder is where relative paths of the text start; the working directory, of a record that does not say it.
    """
    found = []
    for sweep_id in _recorded_ids(store):
        text, folder = "", Path.cwd()
        try:
            text = store.files.read(f"sweeps/{sweep_id}/sweep.yaml").decode()
            folder = Path(json.loads(store.files.read(f"sweeps/{sweep_id}/plan.json"))["folder"])
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError):
            pass
        found.append((sweep_id, text, folder))
    return found


def remade(sweep_id: str, text: str, folder: Path) -> Sweep:
    """Return a sweep of :func:`recorded_sweeps`.

    Raises:
        PuregridError: It is another sweep today, or cannot be read: a file may be gone.
    """
    sweep = recorded_sweep(text, folder)
    if sweep.id != sweep_id:
        raise PuregridError(
            "it is another sweep today: code, data or weights that it names have changed. Its rows are kept, and "
            "have no cells to be shown in"
        )
    return sweep


def _recorded_ids(store: Store) -> list[str]:
    if isinstance(store.files, LocalFiles):
        paths = (store.files.root / "sweeps").glob("*/sweep.yaml")
        return [path.parent.name for path in sorted(paths, key=lambda path: path.stat().st_mtime)]
    ids = []
    for name in store.files.names("sweeps"):
        if name.startswith("latest-"):
            with contextlib.suppress(ValueError):
                ids.append(LastSweep.from_text(store.files.read(f"sweeps/{name}")).sweep_id)
    return ids


def record_sweep(sweep: Sweep, plan: Plan, store: Store) -> None:
    """Write the sweep's folder: its file, its plan, and the meaning of each stage id."""
    folder = f"sweeps/{sweep.id}"
    store.files.write(f"{folder}/sweep.yaml", sweep.text.encode())
    stages = [
        {"id": stage.id, "stage": stage.spec.stage, "chunks": len(stage.chunks), "images": stage.images}
        for stage in plan.stages
    ]
    # Where relative paths of its file start, for who makes the sweep again from this record.
    content = {
        "sweep": sweep.name,
        "folder": str(sweep.document.folder),
        "cells": [cell.id for cell in sweep.cells],
        "stages": stages,
    }
    store.files.write(f"{folder}/plan.json", (json.dumps(content, indent=1) + "\n").encode())
    latest = LastSweep(sweep.name, sweep.id, tuple(CellRecord.of_sweep(sweep)))
    store.files.write(latest_path(sweep.name), json.dumps(latest.checked()).encode())
    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(store.put_spec, (stage.spec for stage in plan.stages)):
            pass
