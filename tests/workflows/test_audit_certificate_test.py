"""Certificates against draws: unsound ones are found, and sound ones are not called so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from audited_certified import CERTIFICATE, NOISE, NORM, ONE_SHOT, PGD, SIGMA, Audited, broken_under_attack, by_margin
from scipy import stats
from scipy.special import ndtr

from defense.certify import lower_bound, radius
from tasks.stages import (
    SampleStage,
)
from workflows.audit.excess import LEVEL
from workflows.audit.rules.certificate_test import CertificateTest, certificate_test


def test_the_test_of_certified_bounds_by_hand() -> None:
    # Three images, 20 draws each, bounded by 1/2; alpha so small that no certificate may be wrong.
    found = certificate_test(np.array([0, 1, 9]), 20, np.full(3, 0.5), 10, 1e-9, 0.01)
    alone = [0.5**20, 21 * 0.5**20, stats.binom.cdf(9, 20, 0.5)]
    assert found.allowed == 0 and found.covered == 3 and found.worst == 0
    assert found.worst_p == pytest.approx(3 * 3 * alone[0])
    # Holm: 3 * 9.5e-7 and 2 * 2.0e-5 are below 0.01 / 3, 1 * 0.41 is not.
    assert found.refuted == 2 and found.failed
    assert found.together == pytest.approx(3 * stats.binom.cdf(10, 60, 0.5))
    # Ten tests of the same certificates.
    again = certificate_test(np.array([0, 1, 9]), 20, np.full(3, 0.5), 10, 1e-9, 0.01, tests=10)
    assert (again.worst_p, again.together) == pytest.approx((10 * found.worst_p, 10 * found.together))


def test_as_many_are_forgiven_as_certificates_may_be_wrong() -> None:
    right, q = np.array([0, 0, *[20] * 98]), np.full(100, 0.99)
    # P(Bin(100, 0.001) > 2) = 1.5e-4 and P(> 1) = 0.0046: two at the level 0.01 / 3.
    assert stats.binom.sf(1, 100, 0.001) > 0.01 / 3 > stats.binom.sf(2, 100, 0.001)
    found = certificate_test(right, 20, q, 100, 0.001, 0.01)
    assert (found.allowed, found.refuted, found.together, found.failed) == (2, 2, 1.0, False)
    right[2] = 0
    assert certificate_test(right, 20, q, 100, 0.001, 0.01).failed


def _simulated(rng: np.random.Generator, alpha: float, n: int, draws: int, gap: float) -> CertificateTest | None:
    """Certificates of half-spaces, attacked in the worst direction; ``gap`` is added to every radius."""
    margin = rng.uniform(-0.2, 0.8, 200)
    bound = lower_bound(rng.binomial(n, ndtr(margin / SIGMA)), n, alpha)
    far = radius(bound, SIGMA) + np.where(bound > 0.5, gap, 0)
    norm = rng.uniform(0, 0.5, 200)
    covered = (bound > 0.5) & (far >= norm)
    right = rng.binomial(draws, ndtr((margin - norm) / SIGMA))
    q = ndtr((far - norm) / SIGMA)
    return certificate_test(right[covered], draws, q[covered], 200, alpha, LEVEL) if covered.any() else None


@pytest.mark.parametrize("draws", [1, 10, 200])
@pytest.mark.parametrize(("alpha", "n"), [(0.001, 1000), (0.2, 100), (0.2, 100_000)])
def test_sound_certificates_do_not_fail_in_99_of_100_sweeps(alpha: float, n: int, draws: int) -> None:
    rng, runs = np.random.default_rng([draws, n]), 400
    failed = sum(_simulated(rng, alpha, n, draws, 0.0).failed for _ in range(runs))  # type: ignore[union-attr]
    assert failed <= stats.binom.ppf(0.999, runs, LEVEL)


def test_bounds_that_are_tight_fail_in_one_of_100_at_most() -> None:
    rng, runs = np.random.default_rng(5), 2000
    q = rng.uniform(0.5, 0.99, 100)
    failed = sum(certificate_test(rng.binomial(20, q), 20, q, 100, 1e-9, LEVEL).failed for _ in range(runs))
    assert 0 < failed <= stats.binom.ppf(0.999, runs, LEVEL)  # not 0: that would test nothing


@pytest.mark.parametrize("draws", [3, 20])
def test_radii_that_are_too_large_are_found(draws: int) -> None:
    rng = np.random.default_rng(6)
    assert all(_simulated(rng, 0.001, 1000, draws, 0.25).failed for _ in range(50))  # type: ignore[union-attr]


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
    assert evidence["bound"] == pytest.approx(q[p.argmin()])
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
    single = Audited(tmp_path / "a", broken_under_attack(0.0, 0.6, images=1)).one("certified-above-attacked")
    assert (single.severity, single.evidence["refuted"], single.evidence["allowed"]) == ("note", 1, 1)
    assert single.evidence["image"] == 0 and single.evidence["p_together"] == 1
    pair = Audited(tmp_path / "b", broken_under_attack(0.0, 0.6, images=2)).one("certified-above-attacked")
    assert (pair.severity, pair.evidence["refuted"]) == ("error", 2)


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
    # 5 % are right, and an attack whose rows are those of other draws does nothing.
    assert audited.rules() == {"few-images", "clean-at-chance", "surer-than-clean"}


def test_certificates_are_held_against_their_own_classifier(tmp_path: Path) -> None:
    def chance(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
        of = spec.smoothed if isinstance(spec, SampleStage) else spec
        return 0.95 if of.classifier.classifier == "digits-cnn" else 0.3

    audited = Audited(tmp_path, chance, classifiers="digits-cnn, digits-at")
    assert len(audited.sweep.certified) == 2 and audited.rules() == {"few-images", "surer-than-clean"}


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
