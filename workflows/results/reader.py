"""Read a sweep back: committed rows as pandas frames, and nothing else.

>>> results = Results(Store("results"), load_sweep(Path("sweep.yaml")))   # doctest: +SKIP
>>> results.rows(results.sweep.cells[0])                                  # doctest: +SKIP
>>> results.robustness()                                                  # doctest: +SKIP
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from defense.aggregate import aggregate
from defense.errors import InvalidInput
from tasks.attacks import AttackConfig
from tasks.corruptions.config import CorruptionConfig
from tasks.stages import ProbeStage, SampleStage, SequenceStage, StageSpec
from workflows.grid.load import Cell
from workflows.planning.plan import make_plan
from workflows.planning.stopping import resubmissions
from workflows.results.reading.rows import CommittedRows
from workflows.statistics.combined import fixed_aa_any, fixed_aa_mean, lowest_per_image, selected_per_image
from workflows.statistics.proportions import Proportion, average, worst, worst_of
from workflows.store.blocks import Facts

__all__ = ["Results"]


class Results(CommittedRows):
    """The committed results of a sweep: rows of its cells, and frames, each of which looks for new commits."""

    def robustness(self) -> pd.DataFrame:
        """Return one row per clean or attacked cell: its identity, images, draws, and accuracies with intervals.

        Columns ``accuracy`` (the defence's own aggregation), ``avg``, ``worst`` (unbiased, of ``resubmissions``
        draws), ``vote``, ``mean_probability`` and ``fixed`` (one fixed draw, the first: what an evaluation
        with one fixed noise sees), each with ``_low`` and ``_high``; ``images`` committed of ``planned``. A cell
        without any committed row has no accuracies. One whose draws stop has ``until``, ``asked`` (the mean number of
        draws) and, in place of what was left open, NaN.
        """
        self._fresh()
        cells = self._read_ahead(self.sweep.adversarial, lambda cell: cell.evaluate)
        frame = pd.DataFrame(
            [{**_identity(cell, self.sweep.labels[cell.id]), **self._measures(cell)} for cell in cells],
        )
        if frame.empty:
            return frame
        return frame.astype({"t_star": "Int64"})  # whole numbers with gaps, of which pandas would make floats

    def _measures(self, cell: Cell) -> dict[str, object]:
        answers, until = self.asked(cell), cell.defence.until
        head: dict[str, object] = {
            "draws": cell.defence.draws,
            **({} if until is None else {"until": until, "asked": self.draws(cell)}),
            "aggregation": cell.defence.aggregation,
            "resubmissions": resubmissions(cell),
            "images": 0 if answers is None else len(answers.label),
            "planned": cell.images.count,
            **self.guarantee(cell),
        }
        if answers is None:
            return head
        votes, mean, label, correct = answers.prediction, answers.mean_probability, answers.label, answers.correct
        values = {
            "accuracy": aggregate(votes, mean, cell.defence.aggregation) == label,
            "avg": average(correct),
            "vote": aggregate(votes, mean, "majority-vote") == label,
            "mean_probability": aggregate(votes, mean, "mean-probability") == label,
            "fixed": correct[:, 0],
        }
        estimates = {name: self.estimate(cell, per_image) for name, per_image in values.items()}
        m = resubmissions(cell)
        estimates["worst"] = self.estimate(cell, worst_of(correct, m)) if self.anytime(cell) else worst(correct, m)
        known = {
            None: tuple(estimates),
            "vote": ("accuracy", "vote", "fixed"),
            "worst": ("accuracy", "worst", "fixed"),
        }
        for name in ("accuracy", "avg", "worst", "vote", "mean_probability", "fixed"):
            head.update(_columns(name, estimates[name] if name in known[until] else _UNKNOWN))
        return head

    def combined(self) -> pd.DataFrame:
        """One row for each defence, norm and budget that several attacks of the sweep were run at, as one attacker.

        Columns ``lowest`` (:func:`workflows.statistics.combined.lowest_per_image`), ``selected`` (nothing where a
        random defence has one draw), ``fixed_aa_mean`` and ``fixed_aa_any``, each with ``_low`` and ``_high``;
        ``attacks``, how many there are. Cells that are not complete are left out, and those whose draws stop, and
        budgets in different norms stay apart.
        """
        self._fresh()
        groups: dict[tuple[object, ...], dict[str, Cell]] = {}
        for cell in self.sweep.adversarial:
            if cell.attack_stage is None or cell.defence.until is not None:
                continue
            attack, stage = cell.attack_stage.attack, cell.evaluate
            chunks = tuple(chunk.name for chunk in cell.images.chunks)
            key = (stage.dataset.id, chunks, stage.classifier.id, stage.purifier.id, stage.draws, stage.seed)
            groups.setdefault((*key, attack.norm, attack.eps), {}).setdefault(stage.id, cell)
        lines = []
        for cells in groups.values():
            # Rows of complete cells are those of the same images in the same order, or of the first of them.
            complete = [cell for cell in cells.values() if self.complete(cell)]
            if len(complete) > 1:
                lines.append(self._combination(complete))
        return pd.DataFrame(lines)

    def _combination(self, cells: list[Cell]) -> dict[str, object]:
        matrices = [self.correct(cell) for cell in cells]
        shared = min(map(len, matrices))
        matrices = [matrix[:shared] for matrix in matrices]
        estimate = partial(self.estimate, cells[0])
        identity = _identity(cells[0], self.sweep.labels[cells[0].id])
        line: dict[str, object] = {
            **{name: identity[name] for name in ("dataset", "classifier", "defence", "norm", "eps", "seed")},
            "draws": cells[0].defence.draws,
            "images": len(matrices[0]),
            "attacks": len(cells),
            "cells": [cell.id for cell in cells],
        }
        stochastic = cells[0].defence.purifier.stochastic
        lowest = lowest_per_image(matrices, estimate)
        several = min(matrix.shape[1] for matrix in matrices) > 1
        line.update(_columns("lowest", lowest))
        if self.sweep.precision is not None:
            line["guarantee"] = self.guarantee(cells[0])["guarantee"]
        if several or not stochastic:
            line.update(_columns("selected", selected_per_image(matrices, estimate) if several else lowest))
        line.update(_columns("fixed_aa_mean", fixed_aa_mean(matrices, estimate)))
        line.update(_columns("fixed_aa_any", fixed_aa_any(matrices, estimate)))
        return line

    def corrupted(self) -> list[tuple[dict[str, Any], dict[str, pd.DataFrame]]]:
        """Answers under corruptions, for each data set, classifier, seed and origin of images.

        Returns:
            The identity of each group; and for each of its defences the share of right draws in [0, 1] of every
            complete cell: rows are ``corruption`` and ``severity``, columns image ids.

        Raises:
            InvalidInput: A cell is there twice, or the cells of a defence are not of the same images.
        """
        self._fresh()
        groups: dict[tuple[object, ...], dict[str, dict[tuple[str, int], Cell]]] = {}
        for cell in self._read_ahead(self.sweep.corrupted, lambda cell: cell.evaluate):
            corruption = cell.corruption
            if corruption is None or self.images(cell) < cell.images.count:
                continue
            labels = self.sweep.labels[cell.id]
            key = (labels["dataset"], labels["classifier"], cell.seed, corruption.origin)
            cells = groups.setdefault(key, {}).setdefault(labels["defence"], {})
            if (corruption.corruption, corruption.severity) in cells:
                raise InvalidInput(
                    f"{labels['defence']!r} has two cells of {corruption.corruption} at severity "
                    f"{corruption.severity}, and a table of corruptions has one: give them other sweeps."
                )
            cells[corruption.corruption, corruption.severity] = cell
        names = ("dataset", "classifier", "seed", "origin")
        return [
            (
                dict(zip(names, key, strict=True)),
                {defence: self._shares(defence, cells) for defence, cells in defences.items()},
            )
            for key, defences in groups.items()
        ]

    def _shares(self, defence: str, cells: dict[tuple[str, int], Cell]) -> pd.DataFrame:
        order = sorted(cells)
        ids = [self.image_ids(cells[key]) for key in order]
        if any(other is not ids[0] for other in ids):  # equal ones are one array
            raise InvalidInput(
                f"defence {defence!r} was not judged on the same images in every cell: a mean over corruptions would "
                "mix them."
            )
        values = np.stack([self.correct(cells[key]).mean(1) for key in order])
        index = pd.MultiIndex.from_tuples(order, names=["corruption", "severity"])
        return pd.DataFrame(values, index=index, columns=pd.Index(ids[0], name="image_id")).sort_index(axis=1)

    def quality(self) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
        """Image quality, for each cell where it was measured and each pair of images.

        Yields:
            What it is of: ``dataset``, ``classifier``, ``defence``, ``threat``, ``eps``, ``seed``; ``pair``
            (``input``, ``output``, ``change``, see :mod:`tasks.stages.quality`; those that compare an image with
            itself are left out), and ``missing``, why a measure could not be taken. And its frame with one row per
            image: ``image_id``, ``psnr``, ``ssim``, ``lpips``.
        """
        self._fresh()
        seen: set[str] = set()
        for cell in self._read_ahead(self.sweep.cells, lambda cell: cell.measure):
            if cell.measure is None or cell.measure.id in seen:
                continue
            rows = self.quality_rows(cell)
            if rows.empty:
                continue
            seen.add(cell.measure.id)
            labels = self.sweep.labels[cell.id]
            identity = {
                **{part: labels[part] for part in ("dataset", "classifier", "defence")},
                "threat": labels.get("attack") or labels["corruption"],
                "eps": 0.0 if cell.attack is None else cell.attack.eps,
                "seed": cell.seed,
                "missing": self._missing_measures(cell),
            }
            for pair in _pairs(cell):
                measures = {name: rows[f"{name}_{pair}"].astype(float) for name in ("psnr", "ssim", "lpips")}
                yield {**identity, "pair": pair}, pd.DataFrame({"image_id": rows["image_id"], **measures})

    def probes(self) -> pd.DataFrame:
        """Rows of the committed probes, each with what was probed; empty without any.

        Columns: ``dataset``, ``probed`` (the label of the purifier or classifier), ``cells`` (ids of the cells that
        use it, a tuple), and those of the stage's rows, see :data:`tasks.stages.ROW_SCHEMAS`.
        """
        self._fresh()
        cells: dict[tuple[str, str], list[str]] = {}
        found: dict[tuple[str, str], tuple[ProbeStage, str, str]] = {}
        for cell in self.sweep.cells:
            for spec, chunk in cell.probes:
                labels, key = self.sweep.labels[cell.id], (self._id(spec), chunk.name)
                label = labels["classifier" if spec.purifier is None else "defence"]
                found.setdefault(key, (spec, labels["dataset"], label))
                cells.setdefault(key, []).append(cell.id)
        frames = []
        for (stage_id, chunk_name), (spec, dataset, label) in found.items():
            if chunk_name not in self._done(spec.stage, stage_id):
                continue
            table = self._together(spec, [chunk_name])
            assert table is not None
            rows = table.to_pandas()
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
        """Return one row per distinct stage: images, network evaluations (from rows), seconds and MiB (from commits).

        Samples of certificates are many stages of one kind, and one row; so are all corruptions of one defence.
        """
        self._fresh()
        groups: dict[tuple[str, ...], tuple[dict[str, object], _Spent]] = {}
        for stage in make_plan(self.sweep).stages:
            done = self._done(stage.spec.stage, stage.id)
            chunks = [chunk.name for chunk in stage.chunks if chunk.name in done]
            images = sum(len(chunk.ids) for chunk in stage.chunks if chunk.name in done)
            identity = _stage_identity(stage.spec)
            key: tuple[str, ...] = (stage.id,)
            if isinstance(stage.spec, SampleStage | SequenceStage):
                key = (stage.spec.stage, stage.spec.smoothed.id, str(identity["attack"]))
            elif identity["attack"] == _CORRUPTIONS:
                key = tuple(map(str, identity.values()))
            _, spent = groups.setdefault(key, (identity, _Spent()))
            spent.add(images, self._facts_of(stage.spec, chunks))
        return pd.DataFrame([{**identity, **spent.columns()} for identity, spent in groups.values()])


@dataclass
class _Spent:
    """The cost of units of one kind."""

    images: int = 0
    denoiser: int = 0
    classifier: int = 0
    seconds: float = 0.0
    peak: float = 0.0

    def add(self, images: int, units: Iterable[Facts]) -> None:
        """Add the units of a further stage on the same images."""
        self.images = max(self.images, images)
        for facts in units:
            self.denoiser += facts.denoiser
            self.classifier += facts.classifier
            self.seconds += facts.seconds
            self.peak = max(self.peak, facts.peak)

    def columns(self) -> dict[str, object]:
        """Return the columns of the cost table."""
        return {
            "images": self.images,
            "denoiser_evaluations": self.denoiser,
            "classifier_evaluations": self.classifier,
            "seconds": round(self.seconds, 2),
            "images_per_second": round(self.images / self.seconds, 2) if self.seconds else None,
            "peak_mib": round(self.peak) or None,
        }


def _pairs(cell: Cell) -> tuple[str, ...]:
    """Return the pairs of images that are not the same by definition."""
    if cell.threat is None:
        return ("output",)
    return ("input",) if cell.defence.purifier.purifier == "none" else ("input", "output", "change")


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


_UNKNOWN = Proportion(float("nan"), float("nan"), float("nan"), 0)
"""What not all draws were asked for."""


def _columns(name: str, value: Proportion) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
