"""Rules for certificates and corruptions: each finds a planted defect with its numbers, and nothing in what is sound.

Sweeps are planned from real files. Counts of samples and answers of draws are made up from a probability that is
known, and committed through a real store; certificates are computed from the counts by the real stage. The last test
computes everything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
import torch
from helpers_small import ASSETS, compute, small_sweep
from PIL import Image
from scipy import stats
from scipy.special import ndtr

from defense.certify import SequentialPlan, lower_bound, radius
from defense.classifiers import ClassifierConfig
from defense.purifiers import NoPurifierConfig
from defense.schedules import get_schedule
from tasks.attacks.base import perturbation_norms
from tasks.compute import Compute, Context
from tasks.corruptions import BENCHMARK, FROST_FILES
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import Cifar10Config, DigitsConfig
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
from workflows.audit.corrupted import generated
from workflows.audit.promise import Promise, kept
from workflows.audit.view import LEVEL, View
from workflows.cells import Cell, Defence, Images
from workflows.plan import make_plan
from workflows.reader import Results
from workflows.statistics import wilson
from workflows.store import Store
from workflows.sweep import load_sweep
from workflows.tables import render

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
                    record = {"attempt": "a", "seconds": 1.0, "host": "h"}
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
            return Output(spec._rows(chunk, labels, np.eye(10)[answer] * 0.9 + 0.01))
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


# ----------------------------------------------------------------------------------------------- promises and draws


def test_the_test_of_promises_by_hand() -> None:
    # Three images, 20 draws each, promised 1/2; alpha so small that no certificate may be wrong.
    found = kept(np.array([0, 1, 9]), 20, np.full(3, 0.5), 10, 1e-9, 0.01)
    alone = [0.5**20, 21 * 0.5**20, stats.binom.cdf(9, 20, 0.5)]
    assert found.allowed == 0 and found.covered == 3 and found.worst == 0
    assert found.worst_p == pytest.approx(3 * 3 * alone[0])
    # Holm: 3 * 9.5e-7 and 2 * 2.0e-5 are below 0.01 / 3, 1 * 0.41 is not.
    assert found.refuted == 2 and found.broken
    assert found.together == pytest.approx(3 * stats.binom.cdf(10, 60, 0.5))
    # Ten tests of the same certificates.
    again = kept(np.array([0, 1, 9]), 20, np.full(3, 0.5), 10, 1e-9, 0.01, tests=10)
    assert (again.worst_p, again.together) == pytest.approx((10 * found.worst_p, 10 * found.together))


def test_as_many_are_forgiven_as_certificates_may_be_wrong() -> None:
    right, q = np.array([0, 0, *[20] * 98]), np.full(100, 0.99)
    # P(Bin(100, 0.001) > 2) = 1.5e-4 and P(> 1) = 0.0046: two at the level 0.01 / 3.
    assert stats.binom.sf(1, 100, 0.001) > 0.01 / 3 > stats.binom.sf(2, 100, 0.001)
    found = kept(right, 20, q, 100, 0.001, 0.01)
    assert (found.allowed, found.refuted, found.together, found.broken) == (2, 2, 1.0, False)
    right[2] = 0
    assert kept(right, 20, q, 100, 0.001, 0.01).broken


def _simulated(rng: np.random.Generator, alpha: float, n: int, draws: int, gap: float) -> Promise | None:
    """Certificates of half-spaces, attacked in the worst direction; ``gap`` is added to every radius."""
    margin = rng.uniform(-0.2, 0.8, 200)
    bound = lower_bound(rng.binomial(n, ndtr(margin / SIGMA)), n, alpha)
    far = radius(bound, SIGMA) + np.where(bound > 0.5, gap, 0)
    norm = rng.uniform(0, 0.5, 200)
    covered = (bound > 0.5) & (far >= norm)
    right = rng.binomial(draws, ndtr((margin - norm) / SIGMA))
    q = ndtr((far - norm) / SIGMA)
    return kept(right[covered], draws, q[covered], 200, alpha, LEVEL) if covered.any() else None


@pytest.mark.parametrize("draws", [1, 10, 200])
@pytest.mark.parametrize(("alpha", "n"), [(0.001, 1000), (0.2, 100), (0.2, 100_000)])
def test_sound_certificates_are_not_called_broken_in_99_of_100_sweeps(alpha: float, n: int, draws: int) -> None:
    rng, runs = np.random.default_rng([draws, n]), 400
    broken = sum(_simulated(rng, alpha, n, draws, 0.0).broken for _ in range(runs))  # type: ignore[union-attr]
    assert broken <= stats.binom.ppf(0.999, runs, LEVEL)


def test_promises_that_are_exactly_kept_are_called_broken_in_one_of_100_at_most() -> None:
    rng, runs = np.random.default_rng(5), 2000
    q = rng.uniform(0.5, 0.99, 100)
    broken = sum(kept(rng.binomial(20, q), 20, q, 100, 1e-9, LEVEL).broken for _ in range(runs))
    assert 0 < broken <= stats.binom.ppf(0.999, runs, LEVEL)  # not 0: that would test nothing


@pytest.mark.parametrize("draws", [3, 20])
def test_radii_that_are_too_large_are_found(draws: int) -> None:
    rng = np.random.default_rng(6)
    assert all(_simulated(rng, 0.001, 1000, draws, 0.25).broken for _ in range(50))  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------ certificates and draws


@pytest.mark.parametrize("defences", [ONE_SHOT, NOISE])
def test_a_certificate_and_draws_of_one_truth_have_no_findings_but_few_images(tmp_path: Path, defences: str) -> None:
    audited = Audited(tmp_path, by_margin(), defences=defences)
    certified = audited.results.rows(audited.sweep.certified[0])
    # It was compared: most images are certified beyond the attack.
    assert (certified["radius"] >= NORM).mean() > 0.9
    assert audited.rules() == {"few-images"}


@pytest.mark.parametrize("defences", [ONE_SHOT, NOISE])
def test_an_attack_within_the_radius_that_succeeds_is_an_error(tmp_path: Path, defences: str) -> None:
    audited = Audited(tmp_path, broken_under_attack(0.3), defences=defences)
    finding = audited.one("certified-above-attacked")
    assert finding.severity == "error"
    clean, attacked, certificate = audited.sweep.cells
    assert set(finding.cells) == {certificate.id, attacked.id} and clean.id not in finding.cells
    rows, judged = audited.results.rows(certificate), audited.results.rows(attacked)
    right = np.stack(judged["prediction"].to_list()) == judged["label"].to_numpy()[:, None]
    # An image that is moved by r keeps at least Phi((R - r) / sigma), at the noise that the draws have.
    level = attacked.defence.purifier.noise_level
    noise = SIGMA if level is None else level.sigma_eq
    norms = audited.results.attack_rows(attacked)["l2"].to_numpy()
    assert norms == pytest.approx(NORM, abs=1e-6)
    covered = rows["radius"].to_numpy() >= norms
    q = ndtr((rows["radius"].to_numpy() - norms) / noise)[covered]
    p = stats.binom.cdf(right[covered].sum(1), 20, q)
    place = covered.nonzero()[0][p.argmin()]
    evidence = finding.evidence
    assert evidence["covered"] == covered.sum() and evidence["certificates"] == 60
    assert evidence["certified"] == covered.mean()
    votes = right.sum(1)
    assert (votes > 10).mean() <= evidence["attacked"] <= (votes >= 10).mean()  # a tie goes to the first vote
    # Two cells are compared with this certificate, in three parts of the level.
    assert evidence["p"] == pytest.approx(min(1, 2 * 3 * len(p) * p.min()))
    assert evidence["refuted"] == sum(np.sort(p) * np.arange(len(p), 0, -1) * 2 <= 0.01 / 3)
    assert (evidence["image"], evidence["right"], evidence["draws"]) == (rows["image_id"][place], votes[place], 20)
    assert evidence["radius"] == rows["radius"][place] and evidence["norm"] == norms[place]
    assert evidence["promised"] == pytest.approx(q[p.argmin()])
    assert evidence["p_together"] < 1e-6
    assert (evidence["allowed"], evidence["expected_wrong"]) == (1, pytest.approx(0.06))
    assert not audited.of("certified-above-clean")
    assert audited.sweep.cells[2].id in finding.as_dict()["cells"]  # type: ignore[operator]
    assert json.loads(json.dumps(finding.as_dict(), allow_nan=False)) == finding.as_dict()


@pytest.mark.parametrize("defences", [ONE_SHOT, NOISE])
def test_a_certified_class_that_clean_draws_deny_is_an_error(tmp_path: Path, defences: str) -> None:
    def other(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
        return 0.95 if isinstance(spec, SampleStage) else 0.4

    audited = Audited(tmp_path, other, defences=defences, threats=f"attacks: [none]\n{CERTIFICATE}")
    finding = audited.one("certified-above-clean")
    assert finding.severity == "error" and finding.evidence["norm"] == 0
    assert finding.evidence["certified"] == 1 and finding.evidence["clean"] < 0.6
    assert set(finding.cells) == {cell.id for cell in audited.sweep.cells}


def test_a_vote_of_few_draws_is_no_evidence_against_a_certificate(tmp_path: Path) -> None:
    """Of probability 0.55 ten thousand samples are sure, and three draws are wrong four times in ten."""
    audited = Audited(
        tmp_path,
        lambda spec, ids: 0.55,
        defences=ONE_SHOT.replace("20", "3"),
        threats="attacks: [none]\ncertificates: [{sigma: 0.25, n: 10000, n0: 2000}]",
        images=500,
    )
    table, certified = audited.results.robustness(), audited.results.rows(audited.sweep.certified[0])
    assert table["vote"][0] < 0.65 and (certified["prediction"] == certified["label"]).all()
    assert audited.rules() == {"few-images"}


def test_as_few_as_may_be_wrong_by_chance_are_a_note(tmp_path: Path) -> None:
    one = Audited(tmp_path / "a", broken_under_attack(0.0, 0.6, images=1)).one("certified-above-attacked")
    assert (one.severity, one.evidence["refuted"], one.evidence["allowed"]) == ("note", 1, 1)
    assert one.evidence["image"] == 0 and one.evidence["p_together"] == 1
    two = Audited(tmp_path / "b", broken_under_attack(0.0, 0.6, images=2)).one("certified-above-attacked")
    assert (two.severity, two.evidence["refuted"]) == ("error", 2)


def test_images_that_were_moved_beyond_their_radius_say_nothing(tmp_path: Path) -> None:
    # Radii of about 0.1, the attack at 0.24.
    audited = Audited(tmp_path, broken_under_attack(0.0, margin=0.15))
    certified = audited.results.rows(audited.sweep.certified[0])
    assert ((certified["radius"] > 0) & (certified["radius"] < NORM)).all()
    assert audited.rules() == {"few-images"}


def test_images_that_are_certified_for_another_class_say_nothing(tmp_path: Path) -> None:
    audited = Audited(tmp_path, lambda spec, ids: 0.05)
    certified = audited.results.rows(audited.sweep.certified[0])
    assert ((certified["prediction"] != certified["label"]) & (certified["radius"] > NORM)).all()
    assert audited.rules() == {"few-images"}


def test_certificates_are_held_against_their_own_classifier(tmp_path: Path) -> None:
    def chance(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
        of = spec.smoothed if isinstance(spec, SampleStage) else spec
        return 0.95 if of.classifier.classifier == "digits-cnn" else 0.3

    audited = Audited(tmp_path, chance, classifiers="digits-cnn, digits-at")
    assert len(audited.sweep.certified) == 2 and audited.rules() == {"few-images"}


@pytest.mark.parametrize(
    ("defences", "attack", "certificate"),
    [
        (NOISE.replace("0.25", "0.2"), PGD, CERTIFICATE),  # another noise
        ("{purifier: one-shot, denoiser: ddpm, sigma_eq: 0.2, draws: 20}", PGD, CERTIFICATE),  # another depth
        (ONE_SHOT, PGD.replace("gradient: exact", "knows: randomness"), CERTIFICATE),  # the draws are no fresh ones
        (ONE_SHOT, PGD, "certificates: [{sigma: 0.25, n: 1000, base: purified}]"),
        (ONE_SHOT, PGD, "certificates: [{sigma: 0.25, n: 1000, base: bare}]"),
        # Guidance looks at the image itself, or at the noised one in a certificate.
        (
            "{purifier: gdmp, denoiser: ddpm, sigma_eq: 0.25, scale_rule: constant, draws: 20}",
            PGD,
            "certificates: [{sigma: 0.25, n: 1000, base: denoised}]",
        ),
        # Twenty draws of one forward noise are one answer of a vote of twenty, and none of single draws.
        ("{purifier: densepure, denoiser: ddpm, sigma_eq: 0.25, draws: 20}", PGD, CERTIFICATE),
    ],
)
def test_another_classifier_than_the_certified_one_is_not_compared(
    tmp_path: Path, defences: str, attack: str, certificate: str
) -> None:
    audited = Audited(
        tmp_path, broken_under_attack(0.1), defences=defences, threats=f"attacks: [none, {attack}]\n{certificate}"
    )
    assert not {"certified-above-attacked", "certified-above-clean"} & audited.rules()


@pytest.mark.parametrize("clip", [False, True])
def test_clipped_noise_is_another_classifier_than_the_bare_one_under_noise(tmp_path: Path, clip: bool) -> None:
    defences = NOISE.replace("draws", f"clip: {str(clip).lower()}, draws")
    threats = f"attacks: [none, {PGD}]\ninclude: [{{defences: [none], {CERTIFICATE}}}]"
    audited = Audited(tmp_path, broken_under_attack(0.1), defences=defences, threats=threats)
    assert bool(audited.of("certified-above-attacked")) is not clip


def test_densepure_is_judged_by_one_vote(tmp_path: Path) -> None:
    defences = "{purifier: densepure, denoiser: ddpm, sigma_eq: 0.25, draws: 5, aggregation: majority-vote}"

    def chance(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
        return 0.95 if isinstance(spec, SampleStage) or spec.source is None else 0.2

    evidence = Audited(tmp_path, chance, defences=defences).one("certified-above-attacked").evidence
    assert evidence["draws"] == 1 and evidence["p_together"] < 0.01 and evidence["refuted"] == 0


# ------------------------------------------------------------------------------------------- certificates alone

CERTIFICATES = {
    "fixed": "{sigma: 0.25, n: 1000}",
    "two-class": "{sigma: 0.25, n: 1000, rule: two-class}",
    "sequential": "{sigma: 0.25, n: 1000, guarantee: sequential}",
}


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_radii_follow_from_their_counts(tmp_path: Path, kind: str) -> None:
    def half(columns: dict[str, Any]) -> None:
        columns["radius"][7] *= 2
        columns["prediction"][11] = -1

    threats = f"certificates: [{CERTIFICATES[kind]}]"
    sound = Audited(tmp_path / "a", by_margin(0.3), threats=threats)
    assert sound.rules() == {"few-images"}
    spoiled = Audited(tmp_path / "b", by_margin(0.3), threats=threats, spoil=half)
    finding = spoiled.one("radius-not-of-counts")
    assert (finding.severity, finding.evidence["images"], finding.evidence["of"]) == ("error", 2, 60)
    assert finding.evidence["image"] == 7
    assert finding.evidence["radius"] == pytest.approx(2 * finding.evidence["radius_of_counts"])


def test_a_class_below_one_half_that_the_two_class_rule_certifies_is_promised_no_more_than_its_bound(
    tmp_path: Path,
) -> None:
    """0.4 against 0.067 for each of nine others, where Phi(R / sigma) is 0.7."""
    threats = "attacks: [none]\ncertificates: [{sigma: 0.25, n: 1000, rule: two-class}]"
    audited = Audited(tmp_path, lambda spec, ids: 0.4, threats=threats, others=9)
    rows = audited.results.rows(audited.sweep.certified[0])
    assert (rows["prediction"] == rows["label"]).all() and (rows["radius"] > 0.1).all()
    assert audited.rules() == {"few-images"}


@pytest.mark.parametrize(("t_star", "fires"), [(60, True), (300, False)])
def test_a_purifier_too_shallow_for_the_noise(tmp_path: Path, t_star: int, fires: bool) -> None:
    defences = f"{{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: {t_star}, steps: 2}}"
    audited = Audited(tmp_path, by_margin(), defences=defences, threats=CERTIFICATE)
    assert audited.rules() == {"few-images"} | ({"sigma-t-star-mismatch"} if fires else set())
    if fires:
        finding = audited.one("sigma-t-star-mismatch")
        assert finding.severity == "warning"
        level = get_schedule("linear-1000").level(60)
        assert (finding.evidence["sigma"], finding.evidence["sigma_eq"]) == (0.25, level.sigma_eq)


@pytest.mark.parametrize(("sigma", "fires"), [(0.0055, True), (0.0073, False)])
def test_a_schedule_too_coarse_for_the_noise(tmp_path: Path, sigma: float, fires: bool) -> None:
    """sigma_eq is 0.0050 after one step of linear-1000 and 0.0074 after two."""
    threats = f"attacks: [none]\ncertificates: [{{sigma: {sigma}, n: 1000}}]"
    defences = f"{{purifier: one-shot, denoiser: ddpm, sigma_eq: {sigma}, draws: 20}}"

    def chance(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
        return 0.9 if isinstance(spec, SampleStage) else 0.1

    audited = Audited(tmp_path, chance, defences=defences, threats=threats)
    assert bool(audited.of("sigma-t-star-mismatch")) is fires
    # Draws with so much more noise are not those of the certified classifier.
    assert bool(audited.of("certified-above-clean")) is not fires


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_radii_at_the_ceiling_are_held_down_by_the_samples(tmp_path: Path, kind: str) -> None:
    def sure(share: int) -> Chance:
        return lambda spec, ids: np.where(ids < share, 1.0, 0.9)

    threats = f"certificates: [{CERTIFICATES[kind]}]"
    finding = Audited(tmp_path / "a", sure(13), threats=threats).one("too-few-samples")
    assert finding.severity == "note"
    assert finding.evidence["share"] == pytest.approx(13 / 60)
    p = 0.001 ** (1 / 1000)
    if kind == "two-class":
        p = 0.0005 ** (1 / 1000)
    if kind == "sequential":
        p = float(SequentialPlan(1000, 0.001).lower_bound(1000, 1000))
    assert finding.evidence["ceiling"] == pytest.approx(SIGMA * stats.norm.ppf(p))
    assert not Audited(tmp_path / "b", sure(12), threats=threats).of("too-few-samples")  # a fifth, not more


# ------------------------------------------------------------------------------------------------- corruptions


def on_corruptions(accuracy: dict[str, float]) -> Chance:
    """The first images are right on every draw; by ``name severity`` of the corruption, clean is ``clean``."""

    def chance(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
        if isinstance(spec.source, CorruptStage):
            share = accuracy.get(spec.source.corruption.label(), 0.5)
        else:
            share = accuracy["clean"]
        return (ids < round(share * 520)).astype(float)

    return chance


def corrupted(folder: Path, accuracy: dict[str, float], **parts: Any) -> Audited:
    threats = "attacks: [none]\ncorruptions: [{corruption: [fog, contrast], severity: [1, 3]}]"
    given = {"defences": "none", "threats": threats, "images": 520, **parts}
    return Audited(folder, on_corruptions(accuracy), **given)


def test_corrupted_above_clean_is_a_warning_or_a_note_if_mild(tmp_path: Path) -> None:
    severe = corrupted(tmp_path / "a", {"clean": 0.8, "fog 1": 0.9, "fog 3": 0.85, "contrast 3": 0.8})
    finding = severe.one("corrupted-above-clean")
    assert finding.severity == "warning"
    evidence = finding.evidence
    assert (evidence["corrupted"], evidence["clean"], evidence["cells"]) == (0.9, 0.8, 2)
    assert evidence["p"] == pytest.approx(4 * 0.5**52)  # 52 images one way, and four cells were compared
    labels = [severe.sweep.labels[cell] for cell in finding.cells]
    assert [label.get("corruption", label.get("attack")) for label in labels] == ["fog 1", "fog 3", "clean"]
    mild = corrupted(tmp_path / "b", {"clean": 0.8, "fog 1": 0.9})
    assert mild.one("corrupted-above-clean").severity == "note"
    assert not corrupted(tmp_path / "c", {"clean": 0.8, "fog 1": 0.8, "fog 3": 0.8}).of("corrupted-above-clean")


@pytest.mark.parametrize(("more", "fires"), [(8, False), (9, True)])
def test_corrupted_cells_share_the_level(tmp_path: Path, more: int, fires: bool) -> None:
    """Four of them: 4 * 0.5 ** 8 = 0.016, 4 * 0.5 ** 9 = 0.008."""
    audited = corrupted(tmp_path, {"clean": 400 / 520, "fog 3": (400 + more) / 520})
    assert bool(audited.of("corrupted-above-clean")) is fires


@pytest.fixture(scope="module")
def frost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frost")
    for name in FROST_FILES:
        Image.new("RGB", (300, 250)).save(folder / name)
    return folder


def test_a_mean_over_part_of_the_benchmark_says_so(tmp_path: Path, frost: Path) -> None:
    four = corrupted(tmp_path / "a", {"clean": 0.9})
    part = four.one("incomplete-benchmark")
    assert part.severity == "note"
    assert part.evidence == {"corruptions": 2, "severities": 2, "cells": 4}
    assert len(part.cells) == 4
    whole = f"corruptions: [{{corruption: benchmark, photographs: {frost.as_posix()}}}]"
    audited = corrupted(tmp_path / "b", {"clean": 0.9}, threats=whole, images=20)
    assert len(audited.sweep.corrupted) == len(BENCHMARK) * 5
    assert audited.rules() == {"few-images"}
    # A cell that lacks some of its images, or all of them, is not in the mean.
    for sweep, expected in ((four, (2, 1, 3)), (audited, (15, 4, 74))):
        cell = sweep.sweep.corrupted[3]
        sweep.store.revoke("evaluate", cell.evaluate.id, cell.images.chunks[0].name)
        again = findings(Results(sweep.store, sweep.sweep), images=False)
        evidence = next(finding.evidence for finding in again if finding.rule == "incomplete-benchmark")
        assert tuple(evidence.values()) == expected
    extra = "corruptions: [{corruption: extra}]"
    assert corrupted(tmp_path / "c", {"clean": 0.9}, threats=extra, images=20).rules() == {"few-images"}


def test_generated_images_are_noted_where_there_are_published_ones(tmp_path: Path) -> None:
    """CIFAR-10 has published arrays of its test images; its training images and digits have none."""

    def view(dataset: Any, origin: str) -> View:
        fog = CorruptionConfig.model_validate({"corruption": "fog", "severity": 2, "origin": origin})
        images = Images(dataset, (Chunk((0, 1)),))
        defence = Defence(NoPurifierConfig(), 1, "single")
        classifier = ClassifierConfig(classifier="resnet20", sha256="0" * 64)
        cell = Cell(images, classifier, defence, fog, 0, Compute())
        return View(cell, (cell.id,), pd.DataFrame({"image_id": [0, 1]}), pd.DataFrame())

    cifar = Cifar10Config(digest="d", root=None)
    own, official = view(cifar, "generated"), view(cifar, "official")
    (finding,) = generated([own, official], [])
    assert (finding.severity, finding.rule, finding.cells) == ("note", "generated-corruptions", own.ids)
    assert "CIFAR-10-C" in finding.text and finding.evidence == {"cells": 1, "images": 2}
    train = Cifar10Config(digest="d", root=None, split="train")
    assert not list(generated([official, view(train, "generated"), view(DigitsConfig(), "generated")], []))


# -------------------------------------------------------------------------------------------------- in general

ALL = f"attacks: [none]\ncorruptions: [{{corruption: fog, severity: 3}}]\n{CERTIFICATE}"


def _all(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
    return 0.9


def test_few_images_are_one_note_for_cells_of_all_kinds(tmp_path: Path) -> None:
    audited = Audited(tmp_path / "a", _all, threats=ALL, images=100)
    finding = audited.one("few-images")
    assert set(finding.cells) == {cell.id for cell in audited.sweep.cells} and len(finding.cells) == 3
    shares = [np.stack(audited.results.rows(cell)["prediction"].to_list()) for cell in audited.sweep.cells]
    labels = DATA.labels[:100]
    accuracies = [float((s == (labels[:, None] if s.ndim == 2 else labels)).mean()) for s in shares]
    widths = [(b - a) / 2 for a, b in (wilson(accuracy, 100) for accuracy in accuracies)]
    assert finding.evidence["half_width"] == pytest.approx(max(widths))
    enough = Audited(tmp_path / "b", _all, threats=ALL, images=512)
    assert not enough.of("few-images")


def test_tables_name_the_cells_of_every_finding(tmp_path: Path) -> None:
    audited = Audited(tmp_path / "a", _all, threats=ALL, images=100)
    frames = audited.results.robustness(), audited.results.cost()
    text = " ".join(render(*frames, "text", findings=audited.found).split())
    labels = [audited.sweep.labels[cell.id] for cell in audited.sweep.cells[1:]]
    assert labels[0]["defence"].startswith("one-shot t*=146") and labels[0]["corruption"] == "fog 3"
    fog, certificate = (f"digits-cnn, {each['defence']}" for each in labels)
    fog, certificate = f"{fog}, fog 3", f"{certificate}, certificate s=0.25 n=1000"
    assert f"cells: the cell of the robustness table; {fog}; {certificate}" in text
    assert f"cells: {fog} evidence: corruptions 1, severities 1, cells 1" in text
    assert "few-images" in render(*frames, "csv", findings=audited.found)


def test_several_cells_of_a_defence_are_named_together_and_a_sweep_may_have_certificates_alone(
    tmp_path: Path,
) -> None:
    threats = "certificates: [{sigma: 0.25, n: [1000, 2000]}]"
    audited = Audited(tmp_path, _all, threats=threats, images=100)
    (finding,) = audited.found
    assert finding.names == ("digits-cnn, one-shot t*=146, all 2 certificates",)
    assert "names" not in finding.as_dict()
    frames = audited.results.robustness(), audited.results.cost()
    for how in ("text", "md", "csv", "latex", "json"):
        shown = render(*frames, how, findings=audited.found)  # type: ignore[arg-type]
        assert how not in ("text", "md") or finding.names[0] in shown
    assert json.loads(render(*frames, "json", findings=audited.found))["findings"][0]["cells"] == [*finding.cells]


@pytest.mark.slow
def test_real_certificates_of_digits_are_not_beaten_by_a_real_attack(tmp_path: Path) -> None:
    text = HEAD.format(
        images=20,
        classifiers="digits-cnn",
        assets=ASSETS.as_posix(),
        defences=f"{ONE_SHOT}, {NOISE}",
        threats=f"attacks: [none, {PGD.replace('eot: 10', 'eot: 3')}]\n"
        "corruptions: [{corruption: contrast, severity: [2, 5]}]\n"
        "certificates: [{sigma: 0.25, n: 400}]\ncompute: {batch: 200}",
    )
    path = tmp_path / "real.yaml"
    path.write_text(text)
    sweep = load_sweep(path)
    compute(sweep, str(tmp_path / "store"))
    results = Results(Store(str(tmp_path / "store")), sweep)
    found = findings(results)
    assert [finding.text for finding in found if finding.severity != "note"] == []
    assert {finding.rule for finding in found} >= {"few-images", "incomplete-benchmark"}
    # Images were compared: certified beyond the distance that the attack moved them.
    for certificate, attacked in zip(sweep.certified, (sweep.adversarial[1], sweep.adversarial[3]), strict=True):
        rows, moved = results.rows(certificate), results.attack_rows(attacked)
        right = rows["prediction"] == rows["label"]
        assert ((rows["radius"] >= moved["l2"]) & right).sum() >= 5
    assert math.isfinite(results.robustness()["avg"].min())
