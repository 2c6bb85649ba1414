"""How often the auditor speaks of sound sweeps: 200 simulated ones of 20 cells, of which nothing is wrong.

    python benchmarks/false_alarms.py [--sweeps 200] [--images 512] [--seed 0]

Each sweep has two defences (none, and one that is random and judged on 8 draws), clean images, and blind, BPDA, exact
and black-box attacks and a ladder of these at two budgets. Its rows are drawn from honest models:

    logit P(image i is right on a draw under attack a) = difficulty_i - strength_a + jitter_ia

with strengths in the order that truth has (clean <= black-box <= blind <= BPDA <= exact, and a larger budget is no
weaker), of which neighbours are equal half of the time. Equal strengths are the hardest case: half of their measured
orders are reversed, and each rule that tests an order tests nothing but noise. A ladder chooses by 6 draws of its
own, as :class:`tasks.attacks.LadderConfig` does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.attacks import AttackConfig, LadderConfig
from tasks.stages import AttackStage, StageSpec
from workflows.audit import Finding, findings
from workflows.grid.load import Cell, Sweep, load_sweep
from workflows.results.reader import Results
from workflows.results.reading.rows import Answers
from workflows.statistics.proportions import wilson
from workflows.store import Store

__all__ = ["Honest", "SoundResults", "false_alarms", "sound_sweep"]

DRAWS, SELECT = 8, 6
CLASSES = 10
TEXT = f"""
sweep: sound
datasets: [{{dataset: digits, images: {{first: IMAGES}}}}]
classifiers: [digits-cnn]
defences: [none, {{purifier: gaussian-noise, sigma: 0.1, draws: {DRAWS}}}]
attacks:
  - none
  - {{attack: pgd, norm: linf, eps: [0.05, 0.1], steps: 20}}
  - {{attack: pgd, norm: linf, eps: [0.05, 0.1], steps: 20, gradient: bpda, eot: 10}}
  - {{attack: pgd, norm: linf, eps: [0.05, 0.1], steps: 20, gradient: exact, eot: 10}}
  - {{attack: pgd, norm: linf, eps: [0.05, 0.1], steps: 20, gradient: exact, eot: 10, loss: margin}}
  - {{attack: square, norm: linf, eps: [0.05, 0.1], queries: 500, knows: purifier, eot: 10}}
  - attack: ladder
    norm: linf
    eps: [0.05, 0.1]
    select: {SELECT}
    rungs: [blind, bpda, surrogate(3), exact, {{attack: square, queries: 300, knows: purifier, eot: 10}}]
chunk: IMAGES
"""

Floats = npt.NDArray[np.float64]


def sound_sweep(folder: Path, images: int = 512) -> Sweep:
    """Return the sweep of 20 cells, of which no unit is computed."""
    file = folder / "sound.yaml"
    file.write_text(TEXT.replace("IMAGES", str(images)))
    return load_sweep(file)


@dataclass
class Honest:
    """One drawing of what each attack leaves.

    Arguments:
        sweep: The sweep.
        rng: Random numbers.

    Attributes:
        difficulty: Logit of being right on a clean image.
        jitter: Spread of an attack's effect over images, in logits.
    """

    sweep: Sweep
    rng: np.random.Generator

    def __post_init__(self) -> None:
        rng = self.rng
        self.images = self.sweep.cells[0].images.count
        self.difficulty = rng.normal(rng.uniform(0.5, 3.5), rng.uniform(0.5, 2.5), self.images)
        self.jitter = rng.uniform(0.0, 0.8)
        steps = rng.exponential(0.8, 8) * (rng.random(8) < 0.5)  # half of the neighbours are equal
        kinds = ("black-box", "blind", "bpda", "surrogate", "exact")
        self.small = dict(zip(kinds, np.cumsum(steps[:5]), strict=True))
        self.more = float(steps[5])
        self._drawn: dict[tuple[str, bool], Floats] = {}

    def p(self, attack: AttackConfig | None, key: str, bare: bool) -> Floats:
        """Probability of a right draw of each image; on no defence answers are certain, 0 or 1."""
        if (key, bare) not in self._drawn:
            logit = self.difficulty.copy()
            if attack is not None:
                extra = self.more if attack.eps > 0.07 else 0.0
                kind = "black-box" if attack.black_box else (attack.gradient or "blind").partition("(")[0]
                kind = "exact" if bare and not attack.black_box else kind
                logit += self.rng.normal(0, self.jitter, self.images) - self.small[kind] - extra
            p = 1 / (1 + np.exp(-logit))
            if bare:  # what has no draws has a threshold
                p = (logit > 0).astype(np.float64)
            self._drawn[key, bare] = p
        return self._drawn[key, bare]


class SoundResults(Results):
    """Results whose rows are drawn instead of read."""

    def __init__(self, store: Store, sweep: Sweep, rng: np.random.Generator) -> None:
        super().__init__(store, sweep)
        self._honest = Honest(sweep, rng)
        self._rng = rng
        self._labels = sweep.cells[0].images.dataset.load().labels[list(sweep.cells[0].images.chunks[0].ids)]
        self._frames: dict[str, pd.DataFrame] = {}
        self._submitted: dict[tuple[str, bool], Floats] = {}

    def _stage(self, spec: StageSpec, cell: Cell) -> pd.DataFrame:
        if spec.id not in self._frames:
            made = self._attacked(spec, cell) if isinstance(spec, AttackStage) else self._judged(cell)
            self._frames[spec.id] = made
        return self._frames[spec.id]

    def images(self, cell: Cell) -> int:
        """See :class:`Results`."""
        return len(self.rows(cell))

    def answers(self, cell: Cell) -> Answers | None:
        """See :class:`Results`."""
        rows = self.rows(cell)
        votes = np.stack(rows["prediction"].to_list())
        return Answers(rows["image_id"].to_numpy(), rows["label"].to_numpy(), votes, np.zeros((len(rows), CLASSES)))

    def _remember(self, cell: Cell) -> tuple[str, tuple[str, ...]]:
        key = cell.evaluate.id, ()
        if key not in self._right:
            answers = self.answers(cell)
            assert answers is not None
            self._right[key] = np.packbits(answers.correct), (len(answers.label), cell.defence.draws)
            self._ids_of[key] = answers.image_id.astype(np.int64)
        return key

    def _p(self, source: AttackStage | None, cell: Cell) -> Floats:
        """Probability of a right draw on the submitted images."""
        bare = not cell.defence.purifier.stochastic
        if source is not None and isinstance(source.attack, LadderConfig):
            self._stage(source, cell)
            return self._submitted[source.id, bare]
        key = "clean" if source is None else source.id
        return self._honest.p(None if source is None else source.attack, key, bare)

    def _bare(self, source: AttackStage | None) -> npt.NDArray[np.bool_]:
        attack = None if source is None else source.attack
        right: npt.NDArray[np.bool_] = self._honest.p(attack, "clean" if source is None else source.id, True) > 0.5
        return right

    def _answers(self, right: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        labels = self._labels.reshape(-1, *[1] * (right.ndim - 1))
        return np.where(right, labels, (labels + 1) % CLASSES)

    def _judged(self, cell: Cell) -> pd.DataFrame:
        p = self._p(cell.attack_stage, cell)
        right = self._rng.random((len(p), cell.defence.draws)) < p[:, None]
        # Attacks lower the probability of the true class on every image; jitter is of answers alone.
        odds = self._honest.difficulty - (0.0 if cell.attack is None else 0.2 + self._honest.small["blind"])
        probability = 0.9 / (1 + np.exp(-odds[:, None])) + 1e-4 * self._rng.random(right.shape)
        return pd.DataFrame(
            {
                **self._head(),
                "prediction": list(self._answers(right)),
                "label_probability": list(probability),
                "t_star": None,
                "abar": None,
                "sigma_eq": None,
            }
        )

    def _head(self) -> dict[str, Any]:
        return {"image_id": np.arange(len(self._labels)), "label": self._labels}

    def _attacked(self, stage: AttackStage, cell: Cell) -> pd.DataFrame:
        count, static = len(self._labels), stage.attack.static
        own: dict[str, Any] = {}
        if isinstance(stage.attack, LadderConfig):
            bare = not cell.defence.purifier.stochastic
            p = np.stack([self._p(source, cell) for source in stage.sources], 1)
            draws = 1 if bare else SELECT
            rights = self._rng.binomial(draws, p) / draws
            rung = (rights + 1e-3 * p).argmin(1)  # ties by the margin loss, which knows p better than few draws do
            rows = np.arange(count)
            self._submitted[stage.id, bare] = p[rows, rung]
            own = {"attack_right": rights[rows, rung], "attack_rights": list(rights), "attack_rung": rung}
        after = self._bare(stage) if static and not own else np.zeros(count, dtype=bool)
        size = np.full(count, stage.attack.eps)
        return pd.DataFrame(
            {
                **self._head(),
                "clean_prediction": self._answers(self._bare(None)),
                "adversarial_prediction": self._answers(after),
                "loss": 1.0,
                "linf": size,
                "l2": 4 * size,
                "l1": 30 * size,
                "attack_gradients": 20,
                "attack_gradient_zero": 0,
                "attack_gradient_nan": 0,
                **own,
            }
        )


def false_alarms(sweep: Sweep, folder: Path, sweeps: int, seed: int) -> Iterator[list[Finding]]:
    """Yield the findings of so many sound reports."""
    store = Store(str(folder / "store"))
    for number in range(sweeps):
        yield findings(SoundResults(store, sweep, np.random.default_rng([seed, number])), images=False)


def main() -> None:
    """Print how many reports have a finding of each rule and severity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sweep = sound_sweep(Path(name), options.images)
        started = time.process_time()
        reports = list(false_alarms(sweep, Path(name), options.sweeps, options.seed))
        seconds = time.process_time() - started
    print(f"{options.sweeps} sound sweeps of {len(sweep.cells)} cells, {options.images} images; {seconds:.0f} s")
    for severity in ("error", "warning", "note"):
        hit = sum(any(finding.severity == severity for finding in report) for report in reports)
        low, high = wilson(hit / len(reports), len(reports))
        print(f"any {severity}: {hit} of {len(reports)} ({100 * low:.1f} to {100 * high:.1f} %)")
        rules = Counter(rule for r in reports for rule in {f.rule for f in r if f.severity == severity})
        for rule, times in rules.most_common():
            print(f"    {rule}: {times}")


if __name__ == "__main__":
    main()
