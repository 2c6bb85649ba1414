"""What a store remembers of the last sweep of a name: its cells, and where their rows are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from defense.aggregate import Aggregation
from defense.spec import digest
from workflows.cells import Sweep
from workflows.store import Store

__all__ = ["CellRecord", "latest_path"]


@dataclass(frozen=True)
class CellRecord:
    """What a store remembers of a cell, enough to read its rows without the sweep file.

    Arguments:
        name: What tables call it.
        stage_id: Id of the stage whose rows are its result: evaluate, or certify.
        aggregation: How its draws become one answer.
        chunks: Names of its chunks.
        evaluations: Of a certificate, network evaluations per sample by network; other rows count their own.
    """

    name: str
    stage_id: str
    aggregation: Aggregation
    chunks: tuple[str, ...]
    evaluations: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def name_of(row: Mapping[Any, Any]) -> str:
        """Name of a cell from its columns in the robustness table."""
        parts = [str(row[key]) for key in ("dataset", "classifier", "defence", "attack")]
        return " · ".join([*parts, f"eps {float(row['eps']):.6g}", f"seed {row['seed']}"])

    @classmethod
    def of_sweep(cls, sweep: Sweep) -> list[CellRecord]:
        """The records of a sweep's cells, in their order."""
        found = []
        for cell in sweep.cells:
            labels = sweep.labels[cell.id]
            threat = next(labels[part] for part in ("attack", "corruption", "certificate") if part in labels)
            eps = 0.0 if cell.attack is None else cell.attack.eps
            name = cls.name_of({**labels, "attack": threat, "eps": eps, "seed": cell.seed})
            chunks = tuple(chunk.name for chunk in cell.images.chunks)
            evaluations = {}
            if cell.certificate is not None:
                smoothed = cell.certify.smoothed
                evaluations = {"denoiser": smoothed.evaluations, "classifier": smoothed.classifier_evaluations}
            found.append(cls(name, cell.stages[0].id, cell.defence.aggregation, chunks, evaluations))
        return found

    @classmethod
    def latest(cls, store: Store, sweep_name: str) -> list[CellRecord]:
        """The records of the sweep of that name that ran last in a store; none if there was none."""
        try:
            content = json.loads(store.files.read(latest_path(sweep_name)))
        except FileNotFoundError:
            return []
        return [cls(**{**cell, "chunks": tuple(cell["chunks"])}) for cell in content["cells"]]


def latest_path(sweep_name: str) -> str:
    """Where a store remembers the last sweep of a name."""
    return f"sweeps/latest-{digest(sweep_name)}.json"
