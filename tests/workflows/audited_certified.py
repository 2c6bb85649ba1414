"""A sweep whose counts of samples and answers of draws are made up, and what the auditor says of it.

Both come from a probability that is known, and are committed through a real store; certificates are computed from the
counts by the real stage.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from helpers_small import ASSETS, small_sweep
from scipy.special import ndtr

from tasks.attacks.region import perturbation_norms
from tasks.compute import Context
from tasks.datasets import DigitsConfig
from tasks.stages import (
    AttackStage,
    CertifyStage,
    Chunk,
    CorruptStage,
    EvaluateStage,
    Output,
    SampleStage,
    SequenceStage,
    images_to_table,
)
from workflows.audit import Finding, findings
from workflows.planning.plan import make_plan
from workflows.results.reader import Results
from workflows.store import Attempt, Store

DATA = DigitsConfig().read()
SIGMA = 0.25
HEAD = """
sweep: audited
datasets: [{{dataset: digits, images: {{first: {images}}}}}]
classifiers: [{classifiers}]
denoisers: {{ddpm: {{path: {assets}/digits-ddpm, schedule: linear-1000}}}}
defences: [{defences}]
{threats}
chunk: 300
"""
ONE_SHOT = "{purifier: one-shot, denoiser: ddpm, sigma_eq: 0.25, draws: 20}"
NOISE = "{purifier: gaussian-noise, sigma: 0.25, draws: 20}"
PGD = "{attack: pgd, norm: l2, eps: 0.25, steps: 5, gradient: exact, eot: 10}"
CERTIFICATE = "certificates: [{sigma: 0.25, n: 1000}]"
NORM = 0.24
"""By how much the made-up attack moves each image."""

Pixels = npt.NDArray[np.float64]
Chance = Callable[[Any, npt.NDArray[np.int64]], npt.ArrayLike]
"""From a stage and image ids to the probability of a right answer."""


def by_margin(margin: float = 0.4) -> Chance:
    """A classifier of half-spaces, of which radii are tight: the truth that certificates and draws share."""

    def chance(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
        if isinstance(spec, SampleStage | SequenceStage):
            return np.full(len(ids), ndtr(margin / spec.smoothed.sigma))
        moved = NORM if isinstance(spec.source, AttackStage) else 0.0
        level = spec.purifier.noise_level
        return np.full(len(ids), ndtr((margin - moved) / (SIGMA if level is None else level.sigma_eq)))

    return chance


class Audited:
    """A sweep that was filled with answers of known probability, and what the auditor said of it."""

    def __init__(
        self,
        folder: Path,
        chance: Chance,
        *,
        defences: str = ONE_SHOT,
        threats: str = f"attacks: [none, {PGD}]\n{CERTIFICATE}",
        images: int = 60,
        classifiers: str = "digits-cnn",
        spoil: Callable[[dict[str, Any]], None] | None = None,
        seed: int = 0,
        others: int = 1,
    ) -> None:
        folder.mkdir(exist_ok=True)
        parts = {"images": images, "classifiers": classifiers, "defences": defences, "threats": threats}
        text = HEAD.format(**parts, assets=ASSETS.as_posix())
        self.sweep = small_sweep(folder, text)
        self.store = Store(str(folder / "store"))
        self.results = Results(self.store, self.sweep)
        self.chance, self.rng, self.spoil, self.others = chance, np.random.default_rng(seed), spoil, others
        plan, done = make_plan(self.sweep), {}
        for position, stage in enumerate(plan.stages):
            for chunk in stage.chunks:
                inputs = {role: done[i, chunk.name] for role, i in stage.inputs.items() if (i, chunk.name) in done}
                output = self._output(stage.spec, chunk, inputs)
                if output is not None:
                    done[position, chunk.name] = output.rows
                    record = Attempt("a", 1.0, "h")
                    self.store.commit(stage.spec, stage.id, chunk, output, record)
        self.found = findings(self.results, images=False)

    def _output(self, spec: Any, chunk: Chunk, inputs: dict[str, pa.Table]) -> Output | None:
        ids = np.array(chunk.ids)
        labels = DATA.labels[ids]
        if isinstance(spec, SampleStage):
            return Output(pa.table({"image_id": ids, "counts": self._counts(spec, ids, spec.count)}))
        if isinstance(spec, SequenceStage):
            # In one range, and as if it looked at its end alone.
            counts = self._counts(spec, ids, spec.stop - spec.first)
            if spec.after is not None:
                counts = (np.array(counts) + np.array(inputs["after"]["counts"].to_pylist())).tolist()
            return Output(pa.table({"image_id": ids, "counts": counts, "stopped": [True] * len(ids)}))
        if isinstance(spec, CertifyStage):
            rows = spec.run(chunk, inputs, Context()).rows
            if self.spoil is None:
                return Output(rows)
            columns = {name: np.array(rows[name].to_pylist()) for name in ("radius", "prediction")}
            self.spoil(columns)
            for name, values in columns.items():
                place = rows.column_names.index(name)
                rows = rows.set_column(place, name, pa.array(values, rows[name].type))
            return Output(rows)
        if isinstance(spec, EvaluateStage):
            p = np.broadcast_to(self.chance(spec, ids), len(ids))
            right = self.rng.random((len(ids), spec.draws)) < p[:, None]
            answer = np.where(right, labels[:, None], (labels[:, None] + 1) % 10)
            return Output(spec._rows(chunk, labels, np.eye(10)[answer] * 0.9 + 0.01, None))
        assert isinstance(spec, AttackStage | CorruptStage)
        return _moved(ids) if isinstance(spec, AttackStage) else None

    def _counts(self, spec: Any, ids: npt.NDArray[np.int64], count: int) -> list[list[int]]:
        labels = DATA.labels[ids]
        counts = np.zeros((len(ids), 10), dtype=np.int64)
        right = self.rng.binomial(count, np.broadcast_to(self.chance(spec, ids), len(ids)))
        counts[np.arange(len(ids)), labels] = right
        for other in range(1, self.others + 1):  # wrong answers are shared out evenly
            counts[np.arange(len(ids)), (labels + other) % 10] = (count - right + other - 1) // self.others
        return counts.tolist()

    def of(self, rule: str) -> list[Finding]:
        return [finding for finding in self.found if finding.rule == rule]

    def one(self, rule: str) -> Finding:
        (finding,) = self.of(rule)
        return finding

    def rules(self) -> set[str]:
        return {finding.rule for finding in self.found}


def _moved(ids: npt.NDArray[np.int64]) -> Output:
    """Images of which each of the 64 pixels is moved by as much, in all by NORM."""
    clean = DATA.images[ids].astype(np.float64)
    images = torch.from_numpy((clean + np.where(clean > 0.5, -1, 1) * NORM / 8).astype(np.float32))
    norms = perturbation_norms(images, torch.from_numpy(DATA.images[ids]))
    zero = np.zeros(len(ids), dtype=np.int64)
    rows = {
        "image_id": ids.astype(np.int32),
        **{name: value.numpy() for name, value in norms.items()},
        "label": DATA.labels[ids],
        "clean_prediction": DATA.labels[ids],
        "adversarial_prediction": (DATA.labels[ids] + 1) % 10,
        "loss": np.ones(len(ids)),
        "denoiser_evaluations": zero,
        "classifier_evaluations": zero,
    }
    return Output(pa.table(rows), images_to_table(tuple(map(int, ids)), images))


def broken_under_attack(p: float, margin: float = 0.4, images: int | None = None) -> Chance:
    """Under attack right with probability ``p`` on the first images, all of them by default; else sound."""
    sound = by_margin(margin)

    def chance(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
        found = np.array(sound(spec, ids))
        if isinstance(spec, EvaluateStage) and isinstance(spec.source, AttackStage):
            found[: len(found) if images is None else images] = p
        return found

    return chance
