from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import defense
from defense.certify import (
    ABSTAIN,
    ESTIMATE,
    SELECT,
    Counts,
    certify,
    lower_bound,
    predict,
    radius,
    two_class_radius,
    upper_bound,
)
from defense.errors import InvalidInput

ALPHA = 0.001


def select(*per_class: int, image: int = 7) -> Counts:
    return Counts.of(image, SELECT, per_class)


def estimate(*per_class: int, image: int = 7, first: int = 0) -> Counts:
    return Counts.of(image, ESTIMATE, per_class, first)


@st.composite
def sharded(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Answers of samples 0..n-1, and the samples cut into parts in any order."""
    answers = draw(st.lists(st.integers(0, 3), min_size=1, max_size=60))
    cuts = sorted(draw(st.sets(st.integers(0, len(answers)), max_size=8)) | {0, len(answers)})
    return answers, draw(st.permutations(list(itertools.pairwise(cuts))))


@given(sharded())
def test_parts_add_up_to_the_whole_in_any_order(case: tuple[list[int], list[tuple[int, int]]]) -> None:
    answers, parts = case

    def part(first: int, stop: int) -> Counts:
        return Counts.of(3, ESTIMATE, np.bincount(answers[first:stop], minlength=4), first)

    total = part(*parts[0])
    for i, (first, stop) in enumerate(parts[1:], 1):
        seen = {sample for a, b in parts[:i] for sample in range(a, b)}
        gaps = {sample for a, b in total.missing(len(answers)) for sample in range(a, b)}
        assert gaps == set(range(len(answers))) - seen
        total = total + part(first, stop)
    assert total == part(0, len(answers)) and total.missing(len(answers)) == ()


def test_what_an_interrupted_certificate_still_needs() -> None:
    half = estimate(50, 0, first=100) + estimate(0, 10, first=400)
    assert half.samples == ((100, 150), (400, 410))
    assert half.missing(500) == ((0, 100), (150, 400), (410, 500))
    assert half.missing(120) == ((0, 100),)
    assert estimate(0, 0).missing(5) == ((0, 5),)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (estimate(5, 5, first=9), "samples 9 to 9 are counted twice"),
        (estimate(5, 5), "samples 0 to 9 are counted twice"),
        (estimate(5, 5, image=8, first=10), "image 7 and 8"),
        (Counts.of(7, SELECT, (5, 5), 10), "role 'certify-estimate' and 'certify-select'"),
        (estimate(5, 5, 0, first=10), "number of classes 2 and 3"),
    ],
)
def test_counts_that_would_be_a_wrong_certificate_do_not_add_up(other: Counts, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        estimate(4, 6) + other


@pytest.mark.parametrize(
    ("per_class", "samples", "says"),
    [
        ((3,), ((0, 3),), "two classes"),
        ((-1, 4), ((0, 3),), "negative"),
        ((1, 2), ((0, 4),), "3 answers"),
        ((1, 2), ((0, 2), (2, 3)), "gaps between"),
        ((1, 2), ((4, 6), (0, 1)), "rising"),
        ((1, 2), ((-1, 2),), "rising"),
    ],
)
def test_counts_hold_one_answer_a_sample(
    per_class: tuple[int, ...], samples: tuple[tuple[int, int], ...], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        Counts(0, ESTIMATE, per_class, samples)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(InvalidInput, match="role 'judge'"):
        Counts.of(0, "judge", (1, 2))  # type: ignore[arg-type]


def test_certify_by_the_published_numbers() -> None:
    found = certify(select(2, 98), estimate(1_000, 99_000), ALPHA, 0.25, n=100_000)
    assert (found.prediction, found.n, found.rule, found.guarantee) == (1, 100_000, "one-sided", "fixed-n")
    assert found.radius == pytest.approx(0.57250, abs=5.1e-6)
    assert found.p_lower == pytest.approx(0.98898934, abs=5.1e-9) and found.p_other == 1 - found.p_lower


@pytest.mark.parametrize(("k", "certified"), [(50_490, True), (50_489, False)])
def test_certify_abstains_below_the_smallest_count(k: int, certified: bool) -> None:
    found = certify(select(60, 40), estimate(k, 100_000 - k), ALPHA, 0.5)
    assert (found.prediction == 0) is certified and (found.radius > 0) is certified
    assert found.abstains is not certified and (certified or found.prediction == ABSTAIN == -1)


def test_the_class_is_that_of_the_selection_samples_whatever_the_estimation_samples_say() -> None:
    found = certify(select(51, 49), estimate(0, 1000), ALPHA, 0.5)
    assert found.abstains and found.p_lower == 0.0
    assert certify(select(50, 50), estimate(1000, 0), ALPHA, 0.5).prediction == 0  # a tie: the lowest class


@pytest.mark.parametrize(
    ("counts0", "counts", "options", "says"),
    [
        (estimate(9, 1), estimate(90, 10), {}, "has no bound"),
        (select(9, 1), select(90, 10), {}, "has no bound"),
        (select(9, 1, image=1), estimate(90, 10, image=2), {}, "one certificate is of one image"),
        (select(9, 1, 0), estimate(90, 10), {}, "with 3 classes"),
        (select(0, 0), estimate(90, 10), {}, "one at least"),
        (select(9, 1), estimate(90, 10), {"n": 101}, r"still to be drawn: \(\(100, 101\),\)"),
        (select(9, 1), estimate(90, 10, first=1), {"n": 100}, r"\(\(0, 1\),\)"),
        (select(9, 1), estimate(90, 10), {"rule": "three-class"}, "one-sided or two-class"),
        (select(9, 1), estimate(90, 10), {"alpha": 1.5}, "alpha = 1.5"),
        (select(9, 1), estimate(90, 10), {"sigma": -1.0}, "sigma = -1.0"),
    ],
)
def test_what_is_no_certificate_is_refused(counts0: Counts, counts: Counts, options: dict, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        certify(counts0, counts, **{"alpha": ALPHA, "sigma": 0.5, **options})


def test_the_two_class_rule_from_its_parts() -> None:
    found = certify(select(90, 5, 5), estimate(700, 200, 100), ALPHA, 0.5, "two-class")
    p_a, p_b = float(lower_bound(700, 1000, ALPHA / 2)), float(upper_bound(200, 1000, ALPHA / 2))
    assert p_b < 1 - p_a
    assert (found.p_lower, found.p_other, found.rule) == (p_a, p_b, "two-class")
    assert found.radius == float(two_class_radius(p_a, p_b, 0.5))
    assert found.radius > certify(select(90, 5, 5), estimate(700, 200, 100), ALPHA, 0.5).radius


def test_the_two_class_rule_certifies_below_one_half_and_pays_where_two_classes_are_all() -> None:
    wide = estimate(4500, 1000, 1000, 1000, 1000, 1000, 500)
    zeros = (0,) * 6
    assert certify(select(10, *zeros), wide, ALPHA, 0.5).abstains
    assert certify(select(10, *zeros), wide, ALPHA, 0.5, "two-class").prediction == 0
    two = estimate(900, 100)
    assert certify(select(10, 0), two, ALPHA, 0.5, "two-class").radius == pytest.approx(
        float(radius(lower_bound(900, 1000, ALPHA / 2), 0.5)), rel=1e-12
    )
    # The selected class need not lead the estimation samples.
    assert certify(select(10, 0), estimate(100, 900), ALPHA, 0.5, "two-class").abstains


LAWS = [(0.5, 0.3, 0.2), (0.4, 0.35, 0.25), (0.4, *[0.06] * 10), (0.8, 0.15, 0.05), (0.34, 0.33, 0.33)]


@pytest.mark.parametrize("law", LAWS)
def test_both_rules_are_wrong_with_at_most_alpha(law: tuple[float, ...]) -> None:
    # The true radius is sigma/2 (Phi^-1(p_A) - Phi^-1(p_B)): a certificate beyond it, or of another class, is wrong.
    alpha, n, runs = 0.05, 300, 40_000
    rng = np.random.default_rng(5)
    counts = rng.multinomial(n, law, size=runs)
    truth = float(two_class_radius(law[0], law[1], 1.0))
    one = radius(lower_bound(counts[:, 0], n, alpha), 1.0)
    p_a = lower_bound(counts[:, 0], n, alpha / 2)
    p_b = np.minimum(upper_bound(counts[:, 1:].max(1), n, alpha / 2), 1 - p_a)
    two = two_class_radius(p_a, p_b, 1.0)
    slack = 4 * np.sqrt(alpha / runs)
    assert (one > truth).mean() <= alpha + slack
    assert (two > truth).mean() <= alpha + slack
    # The vectors above are what certify says.
    for row in range(5):
        pair = [
            certify(select(9, *[0] * (len(law) - 1)), estimate(*counts[row]), alpha, 1.0, rule).radius
            for rule in ("one-sided", "two-class")
        ]
        assert pair == pytest.approx([one[row], two[row]], rel=1e-12)


def test_a_wrong_selected_class_is_certified_with_at_most_alpha() -> None:
    # Selection named class 1 although class 0 leads: its certificates are all wrong.
    alpha, n, runs = 0.05, 300, 40_000
    counts = np.random.default_rng(6).multinomial(n, (0.42, 0.40, 0.18), size=runs)
    p_a = lower_bound(counts[:, 1], n, alpha / 2)
    p_b = np.minimum(upper_bound(counts[:, [0, 2]].max(1), n, alpha / 2), 1 - p_a)
    assert (p_a > p_b).mean() <= alpha


@pytest.mark.slow
def test_a_linear_classifier_is_certified_up_to_its_true_distance_and_hardly_ever_beyond() -> None:
    # f(y) = 1[w y > 0] at distance d from the boundary: P(f(x + sigma n) = 1) = Phi(d / sigma), radius d exactly.
    rng, sigma, alpha, runs = np.random.default_rng(7), 0.25, 0.01, 20_000
    for distance in (0.05, 0.3, 0.6):
        p = stats.norm.cdf(distance / sigma)
        gaps = []
        for n in (1_000, 10_000, 100_000):
            radii = radius(lower_bound(rng.binomial(n, p, size=runs), n, alpha), sigma)
            assert (radii > distance).mean() <= alpha + 4 * np.sqrt(alpha / runs)
            gaps.append(distance - np.median(radii))
        # Towards the distance like 1/sqrt(n), from below: a hundred times the samples, a tenth of the gap.
        assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 0.2 * gaps[0]


@pytest.mark.parametrize(
    ("counts", "answer"),
    [
        ((70, 30), 0),
        ((33, 67), 1),
        ((66, 34), ABSTAIN),
        ((40, 0, 60), ABSTAIN),
        ((5, 70, 25), 1),
        ((50, 50), ABSTAIN),
    ],
)
def test_predict_by_the_published_numbers(counts: tuple[int, ...], answer: int) -> None:
    assert predict(estimate(*counts), ALPHA) == answer


@pytest.mark.slow
def test_predict_is_wrong_with_at_most_alpha() -> None:
    law, n, alpha = (0.36, 0.34, 0.30), 200, 0.1
    counts = np.random.default_rng(8).multinomial(n, law, size=4000)
    rows, times = np.unique(counts, axis=0, return_inverse=True)
    answers = np.array([predict(estimate(*row), alpha) for row in rows])[times.ravel()]
    assert ((answers != 0) & (answers != ABSTAIN)).mean() <= alpha
    assert (answers == 0).mean() > 0.05


@pytest.mark.slow
def test_the_package_needs_no_torch() -> None:
    # With torch blocked, and a parent that has `defense.errors` and nothing else.
    folder = Path(defense.__file__).parent
    code = f"""
import sys, types
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] != "torch"
sys.meta_path.insert(0, NoTorch())
parent = types.ModuleType("defense")
parent.__path__ = [{str(folder)!r}]
sys.modules["defense"] = parent
from defense.certify import Counts, ESTIMATE, SELECT, certify
found = certify(Counts.of(0, SELECT, [0, 100]), Counts.of(0, ESTIMATE, [1000, 99000]), 0.001, 0.25)
third = {{name.partition(".")[0] for name in sys.modules}} & {{"pandas", "pydantic", "ray", "pyarrow", "sklearn"}}
print(found.prediction, round(found.radius, 4), sorted(third))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "1 0.5725 []"
