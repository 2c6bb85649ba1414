"""A sweep whose rows are made up, through a real store, and what the auditor says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from helpers_small import ASSETS, small_sweep
from torch import Tensor

from defense.randomness import Omega
from tasks.attacks import AttackConfig, AttackResult, LadderConfig
from tasks.attacks.region import perturbation_norms
from tasks.attacks.target import Target
from tasks.datasets import DigitsConfig
from tasks.stages import AttackStage, EvaluateStage, Output, StageSpec, images_to_table
from workflows.audit import Finding, findings
from workflows.audit.view import rung_stages
from workflows.planning.plan import make_plan
from workflows.results.reader import Results
from workflows.store import Attempt, Store

DATA = DigitsConfig().read()
HEAD = """
sweep: audited
datasets: [{{dataset: digits, images: {{first: {images}}}}}]
classifiers: [{classifier}]
denoisers: {{ddpm: {{path: {assets}/digits-ddpm, schedule: linear-1000}}}}
defences: [{defences}]
attacks: [{attacks}]
chunk: 300
"""
NOISE = "{purifier: gaussian-noise, sigma: 0.1, draws: 4}"
GDMP = "{purifier: gdmp, denoiser: ddpm, schedule: linear-1000, t_star: 36, scale_rule: constant, draws: 2}"
PGD = "{attack: pgd, norm: linf, eps: 0.1, steps: 20}"
EXACT = "{attack: pgd, norm: linf, eps: 0.1, steps: 20, gradient: exact, eot: 10}"

Right = Callable[[EvaluateStage], float]


class Audited:
    """A sweep that was filled with made-up rows, and what the auditor said of it."""

    def __init__(
        self,
        folder: Path,
        right: Right,
        *,
        defences: str = "none",
        attacks: str = "none",
        images: int = 520,
        classifier: str = "digits-cnn",
        rows: Callable[[AttackStage, dict[str, Any]], None] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        text = HEAD.format(
            images=images, classifier=classifier, defences=defences, attacks=attacks, assets=ASSETS.as_posix()
        )
        self.sweep = small_sweep(folder, text)
        self.store = Store(str(folder / "store"))
        self.results = Results(self.store, self.sweep)
        bare = {
            None if cell.attack_stage is None else cell.attack_stage.id: right(cell.evaluate)
            for cell in self.sweep.adversarial
            if cell.defence.purifier.purifier == "none"
        }
        ladders: dict[str, list[float]] = {}
        for cell in self.sweep.adversarial:
            if (source := cell.attack_stage) is not None and isinstance(source.attack, LadderConfig):
                judged = [source, *rung_stages(source)]
                ladders[source.id] = [right(cell.evaluate.model_copy(update={"source": one})) for one in judged]
        for stage in make_plan(self.sweep).stages:
            # What the bare classifier answers in the rows of attacks is what it answers where it is judged.
            answers = bare.get(None, 1.0) * images, bare.get(stage.id, 0.0) * images
            shares = [share * images for share in ladders.get(stage.id, ())]
            for chunk in stage.chunks:
                ids = np.array(chunk.ids)
                output = self._judged(stage.spec, ids, right, images) or _attacked(
                    stage.spec, ids, rows, answers, shares
                )
                record = Attempt("a", 1.0, "h")
                self.store.commit(stage.spec, stage.id, chunk, output, record)
        # Rows that are made up are not as accurate as the classifier's card says.
        self.found = [finding for finding in findings(self.results) if finding.rule != "clean-below-card"]

    @staticmethod
    def _judged(spec: StageSpec, ids: npt.NDArray[np.int64], right: Right, images: int) -> Output | None:
        """The first images are right on every draw, the others on none."""
        if not isinstance(spec, EvaluateStage):
            return None
        labels = DATA.labels[ids]
        answer = np.where(ids < round(right(spec) * images), labels, (labels + 1) % 10)
        probability = np.full((len(ids), spec.draws, 10), 0.01)
        probability[np.arange(len(ids)), :, answer] = 0.91 + 0.001 * np.arange(spec.draws)  # no two draws are alike
        return Output(spec._rows(_chunk(ids), labels, probability, None))

    def of(self, rule: str) -> list[Finding]:
        return [finding for finding in self.found if finding.rule == rule]

    def one(self, rule: str) -> Finding:
        (finding,) = self.of(rule)
        return finding

    def cells(self, finding: Finding) -> set[tuple[str, str, float]]:
        """(defence, attack, eps) of the cells of a finding."""
        frame = self.results.robustness()
        frame = frame[frame["cell"].isin(finding.cells)]
        return set(zip(frame["purifier"], frame["attack"], frame["eps"], strict=True))


def _chunk(ids: npt.NDArray[np.int64]) -> Any:
    from tasks.stages import Chunk

    return Chunk(tuple(map(int, ids)))


def _attacked(
    spec: StageSpec,
    ids: npt.NDArray[np.int64],
    change: Callable[[AttackStage, dict[str, Any]], None] | None,
    answers: tuple[float, float],
    ladder: list[float],
) -> Output:
    """Images on the border of the ball, rows that say so; ``change`` may spoil either.

    ``answers`` are how many images the bare classifier has right, before and after; ``ladder`` those that a ladder
    and each of its rungs leave right.
    """
    assert isinstance(spec, AttackStage)
    clean = DATA.images[ids].astype(np.float64)
    inward = np.where(clean > 0.5, -1.0, 1.0)
    size = 0.999 * min(spec.attack.eps / {"l1": 64.0, "l2": 8.0}.get(spec.attack.norm, 1.0), 0.5)
    column: dict[str, Any] = {
        "ids": ids,
        "images": (clean + inward * size).astype(np.float32),
        "label": DATA.labels[ids],
        "clean_prediction": (DATA.labels[ids] + (ids >= round(answers[0]))) % 10,
        "adversarial_prediction": (DATA.labels[ids] + (ids >= round(answers[1]))) % 10,
        "loss": np.ones(len(ids)),
    }
    if ladder:
        right, *rights = ((ids < round(share)).astype(np.float64) for share in ladder)
        column |= {"attack_right": right, "attack_rights": [list(row) for row in zip(*rights, strict=True)]}
        column["attack_rung"] = np.zeros(len(ids), dtype=np.int64)
    if change is not None:
        change(spec, column)
    images, notes = torch.from_numpy(column.pop("images")), column.pop("notes", {})
    norms = perturbation_norms(images, torch.from_numpy(DATA.images[ids]))
    column = {**{name: value.numpy() for name, value in norms.items()}, **column}
    column["image_id"] = column.pop("ids").astype(np.int32)
    for name in ("denoiser_evaluations", "classifier_evaluations"):
        column[name] = np.zeros(len(ids), dtype=np.int64)
    return Output(pa.table(column), images_to_table(tuple(map(int, ids)), images), notes)


def by_threat(table: dict[str, float], default: float = 0.9) -> Right:
    """Accuracy by words that must all be in what the cell is called, the first that fits; clean is ``clean``."""

    def right(spec: EvaluateStage) -> float:
        attack = None if spec.source is None else spec.source.attack
        name = spec.purifier.purifier + (" clean" if attack is None else f" {attack.label()} eps {attack.eps:g}")
        return next((value for words, value in table.items() if all(w in name for w in words.split())), default)

    return right


def worse_than_notes(found: list[Finding]) -> list[str]:
    return [f"{finding.severity} {finding.rule}" for finding in found if finding.severity != "note"]


class AutoAttack(AttackConfig):
    """A stand-in with the fields of the real one."""

    attack: Literal["audited:AutoAttack"] = "audited:AutoAttack"
    version: Literal["standard", "rand"] = "standard"

    @property
    def autoattack(self) -> str | None:
        return self.version

    @property
    def evaluations(self) -> int:
        return 1

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        raise NotImplementedError


class Query(AutoAttack):
    """An attack by queries alone, which says so."""

    attack: Literal["audited:Query"] = "audited:Query"  # type: ignore[assignment]
    black_box: ClassVar[bool] = True

    @property
    def autoattack(self) -> None:
        return None
