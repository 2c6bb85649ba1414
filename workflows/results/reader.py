"""Read a sweep back: committed rows as pandas frames, and nothing else.

>>> results = Results(Store("results"), load_sweep(Path("sweep.yaml")))   # doctest: +SKIP
>>> results.rows(results.sweep.cells[0])                                  # doctest: +SKIP
>>> results.robustness()                                                  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from defense.aggregate import aggregate
from tasks.attacks import AttackConfig
from tasks.corruptions.config import CorruptionConfig
from tasks.stages import ROW_SCHEMAS, ProbeStage, SampleStage, SequenceStage, StageSpec
from workflows.grid.load import Cell, Sweep
from workflows.planning.plan import make_plan
from workflows.statistics.combined import fixed_aa_any, fixed_aa_mean, lowest_per_image, selected_per_image
from workflows.statistics.proportions import Proportion, average, proportion, worst
from workflows.store import Commit, Store

__all__ = ["Results"]


class Results:
    """The committed results of a sweep.

    Arguments:
        store: The store.
        sweep: The sweep.
    """

    def __init__(self, store: Store, sweep: Sweep) -> None:
        self.store = store
        self.sweep = sweep
        self._tables: dict[tuple[str, str], pa.Table | None] = {}

    def rows(self, cell: Cell) -> pd.DataFrame:
        """Return the last rows of a cell, one per image, in the sweep's order; empty if none is committed.

        For a certificate these are the certificates, for all other threats the judgements.
        """
        return self._stage(cell.stages[0], cell)

    def quality_rows(self, cell: Cell) -> pd.DataFrame:
        """Return the rows of image quality of a cell; empty if none is measured or committed."""
        return pd.DataFrame() if cell.measure is None else self._stage(cell.measure, cell)

    def attack_rows(self, cell: Cell) -> pd.DataFrame:
        """Return the rows of the attack that made the cell's images; empty for a clean cell."""
        source = cell.attack_stage
        return pd.DataFrame() if source is None else self._stage(source, cell)

    def _stage(self, spec: StageSpec, cell: Cell) -> pd.DataFrame:
        stage_id = spec.id
        done = self.store.committed_chunks(spec.stage, stage_id)
        parts = [self._read(spec.stage, stage_id, chunk.name) for chunk in cell.images.chunks if chunk.name in done]
        return pa.concat_tables(parts).to_pandas() if parts else pd.DataFrame()

    def _read(self, stage: str, stage_id: str, chunk: str) -> pa.Table:
        key = (stage_id, chunk)
        if key not in self._tables:
            table = self.store.read_rows(stage, stage_id, chunk).replace_schema_metadata(None)
            schema = ROW_SCHEMAS.get(stage)
            self._tables[key] = table if schema is None else schema.complete(table)
        return self._tables[key]

    def robustness(self) -> pd.DataFrame:
        """Return one row per clean or attacked cell: its identity, images, draws, and accuracies with intervals.

        Columns ``accuracy`` (the defence's own aggregation), ``avg``, ``worst`` (unbiased, of ``resubmissions``
        draws), ``vote``, ``mean_probability`` and ``fixed`` (one fixed draw, the first: what an evaluation
        with one fixed noise sees), each with ``_low`` and ``_high``; ``images`` committed of ``planned``. A cell
        without any committed row has no accuracies.
        """
        cells = self.sweep.adversarial
        frame = pd.DataFrame(
            [{**_identity(cell, self.sweep.labels[cell.id]), **self._measures(cell)} for cell in cells],
        )
        if frame.empty:
            return frame
        return frame.astype({"t_star": "Int64"})  # whole numbers with gaps, of which pandas would make floats

    def _measures(self, cell: Cell) -> dict[str, object]:
        rows = self.rows(cell)
        head: dict[str, object] = {
            "draws": cell.defence.draws,
            "aggregation": cell.defence.aggregation,
            "resubmissions": _resubmissions(cell),
            "images": len(rows),
            "planned": cell.images.count,
        }
        if rows.empty:
            return head
        votes = np.stack(list(rows["prediction"]))
        mean = np.stack(list(rows["mean_probability"]))
        label: npt.NDArray[np.int64] = rows["label"].to_numpy()
        correct = votes == label[:, None]
        values = {
            "accuracy": aggregate(votes, mean, cell.defence.aggregation) == label,
            "avg": average(correct),
            "vote": aggregate(votes, mean, "majority-vote") == label,
            "mean_probability": aggregate(votes, mean, "mean-probability") == label,
            "fixed": correct[:, 0],
        }
        estimates = {name: proportion(per_image) for name, per_image in values.items()}
        estimates["worst"] = worst(correct, _resubmissions(cell))
        for name in ("accuracy", "avg", "worst", "vote", "mean_probability", "fixed"):
            head.update(_columns(name, estimates[name]))
        return head

    def combined(self) -> pd.DataFrame:
        """One row for each defence, norm and budget that several attacks of the sweep were run at, as one attacker.

        Columns ``lowest`` (:func:`workflows.statistics.combined.lowest_per_image`), ``selected`` (nothing where a
        random defence has one draw), ``fixed_aa_mean`` and ``fixed_aa_any``, each with ``_low`` and ``_high``;
        ``attacks``, how many there are. Cells that are not complete are left out, and budgets in different norms stay
        apart.
        """
        groups: dict[tuple[object, ...], dict[str, Cell]] = {}
        for cell in self.sweep.adversarial:
            if cell.attack_stage is None:
                continue
            attack, stage = cell.attack_stage.attack, cell.evaluate
            chunks = tuple(chunk.name for chunk in cell.images.chunks)
            key = (stage.dataset.id, chunks, stage.classifier.id, stage.purifier.id, stage.draws, stage.seed)
            groups.setdefault((*key, attack.norm, attack.eps), {}).setdefault(stage.id, cell)
        lines = []
        for cells in groups.values():
            # Rows of complete cells are those of the same images in the same order.
            complete = [cell for cell in cells.values() if len(self.rows(cell)) == cell.images.count]
            if len(complete) > 1:
                lines.append(self._together(complete))
        return pd.DataFrame(lines)

    def _together(self, cells: list[Cell]) -> dict[str, object]:
        matrices = [_correct(self.rows(cell)) for cell in cells]
        identity = _identity(cells[0], self.sweep.labels[cells[0].id])
        line: dict[str, object] = {
            **{name: identity[name] for name in ("dataset", "classifier", "defence", "norm", "eps", "seed")},
            "draws": cells[0].defence.draws,
            "images": len(matrices[0]),
            "attacks": len(cells),
            "cells": [cell.id for cell in cells],
        }
        stochastic = cells[0].defence.purifier.stochastic
        lowest = lowest_per_image(matrices)
        several = min(matrix.shape[1] for matrix in matrices) > 1
        line.update(_columns("lowest", lowest))
        if several or not stochastic:
            line.update(_columns("selected", selected_per_image(matrices) if several else lowest))
        line.update(_columns("fixed_aa_mean", fixed_aa_mean(matrices)))
        line.update(_columns("fixed_aa_any", fixed_aa_any(matrices)))
        return line

    def corrupted(self) -> list[tuple[dict[str, Any], pd.DataFrame]]:
        """Answers under corruptions, for each data set, classifier, seed and origin of images.

        Returns:
            The identity of each group, and its frame with one row per image of every complete cell: ``defence``,
            ``corruption``, ``severity``, ``image_id``, ``correct`` (share of right draws).
        """
        groups: dict[tuple[object, ...], list[pd.DataFrame]] = {}
        for cell in self.sweep.corrupted:
            corruption, rows = cell.corruption, self.rows(cell)
            if corruption is None or len(rows) < cell.images.count:
                continue
            labels = self.sweep.labels[cell.id]
            frame = pd.DataFrame(
                {
                    "defence": labels["defence"],
                    "corruption": corruption.corruption,
                    "severity": corruption.severity,
                    "image_id": rows["image_id"],
                    "correct": _correct(rows).mean(1),
                }
            )
            key = (labels["dataset"], labels["classifier"], cell.seed, corruption.origin)
            groups.setdefault(key, []).append(frame)
        names = ("dataset", "classifier", "seed", "origin")
        return [
            (dict(zip(names, key, strict=True)), pd.concat(frames, ignore_index=True))
            for key, frames in groups.items()
        ]

    def quality(self) -> pd.DataFrame:
        """Image quality, one row per image and pair of images; empty if it was not measured.

        Columns: ``dataset``, ``classifier``, ``defence``, ``threat``, ``eps``, ``seed``; ``pair`` (``input``,
        ``output``, ``change``, see :mod:`tasks.stages.quality`; those that compare an image with itself are left
        out); ``image_id``, ``psnr``, ``ssim``, ``lpips``, and ``missing``, why one of these is NaN.
        """
        frames_of: dict[str, list[pd.DataFrame]] = {}
        for cell in self.sweep.cells:
            rows = self.quality_rows(cell)
            if rows.empty or cell.measure is None or cell.measure.id in frames_of:
                continue
            labels, missing = self.sweep.labels[cell.id], self._missing_measures(cell)
            threat = labels.get("attack") or labels["corruption"]
            frames_of[cell.measure.id] = [
                pd.DataFrame(
                    {
                        **{part: labels[part] for part in ("dataset", "classifier", "defence")},
                        "threat": threat,
                        "eps": 0.0 if cell.attack is None else cell.attack.eps,
                        "seed": cell.seed,
                        "pair": pair,
                        "image_id": rows["image_id"],
                        **{name: rows[f"{name}_{pair}"].astype(float) for name in ("psnr", "ssim", "lpips")},
                        "missing": missing,
                    }
                )
                for pair in _pairs(cell)
            ]
        return pd.concat([frame for frames in frames_of.values() for frame in frames] or [pd.DataFrame()])

    def probes(self) -> pd.DataFrame:
        """Rows of the committed probes, each with what was probed; empty without any.

        Columns: ``dataset``, ``probed`` (the label of the purifier or classifier), ``cells`` (ids of the cells that
        use it, a tuple), and those of the stage's rows, see :data:`tasks.stages.ROW_SCHEMAS`.
        """
        cells: dict[tuple[str, str], list[str]] = {}
        found: dict[tuple[str, str], tuple[ProbeStage, str, str]] = {}
        for cell in self.sweep.cells:
            labels = self.sweep.labels[cell.id]
            for spec, chunk in cell.probes:
                key = (spec.id, chunk.name)
                label = labels["classifier" if spec.purifier is None else "defence"]
                found.setdefault(key, (spec, labels["dataset"], label))
                cells.setdefault(key, []).append(cell.id)
        frames = []
        for (stage_id, chunk_name), (spec, dataset, label) in found.items():
            if chunk_name not in self.store.committed_chunks(spec.stage, stage_id):
                continue
            rows = self._read(spec.stage, stage_id, chunk_name).to_pandas()
            head = pd.DataFrame({"dataset": dataset, "probed": label}, index=rows.index)
            head["cells"] = [tuple(cells[stage_id, chunk_name])] * len(rows)
            frames.append(pd.concat([head, rows], axis=1))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _missing_measures(self, cell: Cell) -> str:
        """Return why measures are missing, from the commits of the measurement."""
        assert cell.measure is not None
        stage_id = cell.measure.id
        for chunk in cell.images.chunks:
            commit = self.store.committed("quality", stage_id, chunk.name)
            if commit is not None:
                return " ".join(commit.missing.values())
        return ""

    def cost(self) -> pd.DataFrame:
        """Return one row per distinct stage: images, network evaluations (from rows), seconds (from commits).

        Samples of certificates are many stages of one kind, and one row; so are all corruptions of one defence.
        """
        groups: dict[tuple[str, ...], tuple[dict[str, object], _Spent]] = {}
        for stage in make_plan(self.sweep).stages:
            done = self.store.committed_chunks(stage.spec.stage, stage.id)
            commits = [
                (commit, len(chunk.ids))
                for chunk in stage.chunks
                if chunk.name in done
                and (commit := self.store.committed(stage.spec.stage, stage.id, chunk.name)) is not None
            ]
            identity = _stage_identity(stage.spec)
            key: tuple[str, ...] = (stage.id,)
            if isinstance(stage.spec, SampleStage | SequenceStage):
                key = (stage.spec.stage, stage.spec.smoothed.id, str(identity["attack"]))
            elif identity["attack"] == _CORRUPTIONS:
                key = tuple(map(str, identity.values()))
            _, spent = groups.setdefault(key, (identity, _Spent()))
            spent.add(self._spent(stage.spec, stage.id, commits))
        return pd.DataFrame([{**identity, **spent.columns()} for identity, spent in groups.values()])

    def _spent(self, spec: StageSpec, stage_id: str, commits: Iterable[tuple[Commit, int]]) -> _Spent:
        spent = _Spent()
        for commit, images in commits:
            rows = self._read(spec.stage, stage_id, commit.chunk)
            spent.images += images
            spent.seconds += commit.seconds
            spent.denoiser += _sum(rows, "denoiser_evaluations")
            spent.classifier += _sum(rows, "classifier_evaluations")
        return spent


@dataclass
class _Spent:
    """The cost of units of one kind."""

    images: int = 0
    denoiser: int = 0
    classifier: int = 0
    seconds: float = 0.0

    def add(self, other: _Spent) -> None:
        """Add the units of a further stage on the same images."""
        self.images = max(self.images, other.images)
        self.denoiser += other.denoiser
        self.classifier += other.classifier
        self.seconds += other.seconds

    def columns(self) -> dict[str, object]:
        """Return the columns of the cost table."""
        return {
            "images": self.images,
            "denoiser_evaluations": self.denoiser,
            "classifier_evaluations": self.classifier,
            "seconds": round(self.seconds, 2),
            "images_per_second": round(self.images / self.seconds, 2) if self.seconds else None,
        }


def _pairs(cell: Cell) -> tuple[str, ...]:
    """Return the pairs of images that are not the same by definition."""
    if cell.threat is None:
        return ("output",)
    return ("input",) if cell.defence.purifier.purifier == "none" else ("input", "output", "change")


def _resubmissions(cell: Cell) -> int:
    """M: how often an adversary may submit. Where draws cannot differ it is nothing to ask for."""
    return min(cell.resubmissions or cell.defence.draws, cell.defence.draws)


def _correct(rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    correct: npt.NDArray[np.bool_] = np.stack(list(rows["prediction"])) == rows["label"].to_numpy()[:, None]
    return correct


def _identity(cell: Cell, labels: dict[str, str]) -> dict[str, object]:
    attack = cell.attack
    level = cell.defence.purifier.noise_level
    return {
        "cell": cell.id,
        **labels,
        "norm": None if attack is None else attack.norm,
        "eps": 0.0 if attack is None else attack.eps,
        "static": attack is not None and attack.static,
        "purifier": cell.defence.purifier.purifier,
        "seed": cell.seed,
        "t_star": None if level is None else level.t_star,
        "abar": None if level is None else level.abar,
        "sigma_eq": None if level is None else level.sigma_eq,
    }


_CORRUPTIONS = "corruptions"


def _stage_identity(spec: StageSpec) -> dict[str, object]:
    classifier, purifier = spec.components[:2]
    threat = spec.threat
    attack = threat if isinstance(threat, AttackConfig) else None
    return {
        "stage": spec.stage,
        "classifier": "" if classifier is None else classifier.label(),
        "defence": "" if purifier is None else purifier.label(),
        "attack": _CORRUPTIONS if isinstance(threat, CorruptionConfig) else spec.threat_label(),
        "eps": 0.0 if attack is None else attack.eps,
    }


def _sum(rows: pa.Table, column: str) -> int:
    values = rows[column].to_pylist() if column in rows.column_names else []
    return sum(value for value in values if value is not None)  # corruptions, and rows of old versions, have none


def _columns(name: str, value: Proportion) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
