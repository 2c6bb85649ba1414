"""Proportions against SciPy, exact arithmetic, and the exact law of what they estimate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from answers import Matrix, matrices
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from defense.aggregate import majority_vote
from workflows.statistics.proportions import Proportion, average, bootstrap, proportion, wilson, worst, worst_of


@given(n=st.integers(1, 10**6), share=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]))
def test_wilson_agrees_with_scipy(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    low, high = wilson(k / n, n, confidence)
    assert abs(low - expected.low) < 1e-10 and abs(high - expected.high) < 1e-10


@given(n=st.integers(1, 10**6), p=st.floats(0, 1))
def test_wilson_ends_solve_the_score_equation_for_means_that_are_no_counts(n: int, p: float) -> None:
    z = stats.norm.ppf(0.975)
    for end in wilson(p, n):
        assert abs((p - end) ** 2 - z * z * end * (1 - end) / n) < 1e-11


@given(n=st.integers(1, 10**6), p=st.floats(0, 1))
def test_wilson_holds_the_estimate_inside_the_range(n: int, p: float) -> None:
    low, high = wilson(p, n)
    assert 0 <= low <= p <= high <= 1
    assert high - low > 0


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_examples(k: int, n: int, low: float, high: float) -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
    assert wilson(k / n, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [0, -1])
def test_wilson_of_no_image_is_an_error(n: int) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        wilson(0.5, n)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_a_proportions_sample_is_its_images(values: list[float]) -> None:
    found = proportion(values)
    p = math.fsum(values) / len(values)
    assert found.n == len(values) and found.value == pytest.approx(p, abs=1e-12)
    assert (found.low, found.high) == pytest.approx(wilson(p, len(values)), abs=1e-9)


def test_more_draws_do_not_narrow_the_interval() -> None:
    few = np.array([[True, False], [True, True], [False, False]])
    assert proportion(average(np.tile(few, 50))) == proportion(average(few)) == Proportion(0.5, *wilson(0.5, 3), n=3)


@given(correct=matrices())
def test_average_is_the_share_of_right_draws(correct: Matrix) -> None:
    expected = [float(Fraction(sum(map(bool, row)), len(row))) for row in correct]
    assert average(correct).tolist() == pytest.approx(expected, abs=1e-15)


@given(correct=matrices(), data=st.data())
def test_worst_of_m_is_the_exact_ratio_of_binomial_coefficients(correct: Matrix, data: st.DataObject) -> None:
    draws = correct.shape[1]
    m = data.draw(st.integers(1, draws))
    exact = [float(Fraction(math.comb(int(row.sum()), m), math.comb(draws, m))) for row in correct]
    np.testing.assert_allclose(worst_of(correct, m), exact, rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    ("c", "draws", "m"), [(4999, 5000, 2500), (9000, 10000, 20), (100000, 100000, 7), (3, 10**6, 3)]
)
def test_worst_of_m_holds_for_thousands_of_draws(c: int, draws: int, m: int) -> None:
    correct = (np.arange(draws) < c)[None]
    exact = float(Fraction(math.comb(c, m), math.comb(draws, m)))
    assert worst_of(correct, m)[0] == pytest.approx(exact, rel=1e-8)


@given(correct=matrices())
def test_worst_of_one_is_the_average_and_worst_of_all_asks_every_draw(correct: Matrix) -> None:
    np.testing.assert_allclose(worst_of(correct, 1), average(correct), rtol=1e-12)
    assert worst_of(correct, correct.shape[1]).tolist() == correct.all(1).astype(float).tolist()


@given(correct=matrices(max_draws=12))
def test_more_resubmissions_never_help_and_none_beats_the_average(correct: Matrix) -> None:
    found = np.stack([worst_of(correct, m) for m in range(1, correct.shape[1] + 1)])
    assert (np.diff(found, axis=0) <= 1e-12).all()
    assert (found <= average(correct) + 1e-12).all()
    assert ((found >= 0) & (found <= 1)).all()


@given(p=st.floats(0, 1), draws=st.integers(1, 25), data=st.data())
def test_worst_of_m_is_unbiased_for_p_to_the_m(p: float, draws: int, data: st.DataObject) -> None:
    """Its expectation, summed exactly over all numbers of right draws."""
    m = data.draw(st.integers(1, draws))
    counts = np.arange(draws + 1)
    outcomes = np.arange(draws)[None] < counts[:, None]
    law = np.array([math.comb(draws, int(c)) * p**c * (1 - p) ** (draws - c) for c in counts])
    expectation = float(law @ worst_of(outcomes, m))
    assert expectation == pytest.approx(p**m, abs=1e-10)


def test_worst_of_m_meets_p_to_the_m_in_simulation_where_the_plug_in_is_too_high() -> None:
    generator = np.random.default_rng(0)
    p = generator.beta(2, 1, size=40_000)
    correct = generator.random((len(p), 10)) < p[:, None]
    truth = p**5
    found = worst_of(correct, 5)
    error = float((found - truth).std() / math.sqrt(len(p)))
    assert abs(float((found - truth).mean())) < 4 * error
    # (c / N)^M, the maximum-likelihood estimate, is biased upward by far more than that.
    assert float((average(correct) ** 5 - truth).mean()) > 20 * error


@pytest.mark.parametrize("m", [0, -1, 4, 100])
def test_worst_of_more_than_there_are_draws_is_an_error(m: int) -> None:
    with pytest.raises(ValueError, match="there are 3"):
        worst_of(np.ones((2, 3), dtype=bool), m)


@pytest.mark.parametrize("draws", [1, 2, 3, 5, 8])
def test_worst_of_m_is_the_mean_over_all_subsets_of_m_draws(draws: int) -> None:
    """By definition: how often M of the N draws, drawn without replacement, are all right."""
    generator = np.random.default_rng(draws)
    correct = generator.random((40, draws)) < generator.random((40, 1))
    for m in range(1, draws + 1):
        subsets = [correct[:, list(chosen)].all(1) for chosen in itertools.combinations(range(draws), m)]
        np.testing.assert_allclose(worst_of(correct, m), np.mean(subsets, axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "p"), [(128, 0.5), (128, 0.9), (512, 0.1), (512, 0.45), (512, 0.8), (1000, 0.95)])
def test_wilsons_interval_covers_the_truth_95_times_in_100(n: int, p: float) -> None:
    successes = np.random.default_rng(1).binomial(n, p, size=20_000)
    ends = {int(k): wilson(k / n, n) for k in np.unique(successes)}
    covered = np.array([ends[int(k)][0] <= p <= ends[int(k)][1] for k in successes])
    assert covered.mean() == pytest.approx(0.95, abs=0.01)


def test_the_interval_of_a_mean_over_draws_covers_at_least_as_often() -> None:
    """Images are the sample: their means over draws vary less than single answers, so it is conservative."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(2000):
        p = generator.beta(2, 1, size=512)  # mean 2/3
        found = proportion(average(generator.random((512, 10)) < p[:, None]))
        covered += found.low <= 2 / 3 <= found.high
    assert covered / 2000 > 0.95


def covered(times: int, interval: Callable[[np.random.Generator], Proportion], truth: float) -> float:
    """How often an interval holds the truth; 0.95 has a standard error of 0.007 in 1000 times."""
    generator = np.random.default_rng(11)
    found = [interval(generator) for _ in range(times)]
    return float(np.mean([each.low <= truth <= each.high for each in found]))


@pytest.mark.slow
@pytest.mark.parametrize("images", [128, 512])
def test_the_interval_of_avg_covers_95_in_100_where_draws_agree(images: int) -> None:
    """The hardest case: draws that say nothing new, so that all that varies are the images."""

    def interval(generator: np.random.Generator) -> Proportion:
        return proportion(average(np.repeat(generator.random((images, 1)) < 0.6, 10, axis=1)))

    assert covered(10_000, interval, 0.6) == pytest.approx(0.95, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "a", "b", "draws", "m"),
    [
        pytest.param(512, 0.3, 0.2, 20, 10, marks=pytest.mark.nightly),
        (128, 2, 1, 10, 5),
        pytest.param(360, 8, 0.5, 10, 3, marks=pytest.mark.nightly),
    ],
)
def test_the_interval_of_worst_of_m_covers_95_in_100(images: int, a: float, b: float, draws: int, m: int) -> None:
    """p_i from a Beta law, of which E p^M is known; from images that draws decide to ones that they hardly touch."""
    truth = float(np.prod([(a + k) / (a + b + k) for k in range(m)]))

    def interval(generator: np.random.Generator) -> Proportion:
        return worst(generator.random((images, draws)) < generator.beta(a, b, size=(images, 1)), m)

    # With draws that count as images it covers 48 times in 100, with the quantiles of 0.9 it covers 89 times.
    assert covered(1000, interval, truth) == pytest.approx(0.95, abs=0.025)


@pytest.mark.slow
def test_the_interval_of_the_vote_covers_95_in_100() -> None:
    """Two classes and seven draws, p_i uniform: the vote is right for half of the images."""

    def interval(generator: np.random.Generator) -> Proportion:
        votes = (generator.random((300, 7)) < generator.random((300, 1))).astype(np.int64)
        return proportion(majority_vote(votes) == 1)

    assert covered(3000, interval, 0.5) == pytest.approx(0.95, abs=0.01)


@given(values=hnp.arrays(np.float64, st.integers(1, 60), elements=st.sampled_from([0.0, 0.1, 0.5, 1.0])))
def test_a_bootstrap_interval_holds_its_estimate_in_the_range_and_has_a_length(
    values: npt.NDArray[np.float64],
) -> None:
    found = bootstrap(values)
    assert found == bootstrap(values[::-1])  # nothing of it is chance
    assert found.value == pytest.approx(values.mean()) and found.n == len(values)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high > found.low  # even of one image, or of values that are all alike


@pytest.mark.parametrize(("right", "n"), [(0, 100), (3, 100), (50, 100), (256, 512), (512, 512)])
def test_the_bootstrap_of_right_and_wrong_answers_is_nearly_wilsons(right: int, n: int) -> None:
    found = bootstrap(np.arange(n) < right)
    assert (found.low, found.high) == pytest.approx(wilson(right / n, n), abs=1.6 / n)


def test_worst_of_all_draws_is_a_proportion_and_of_fewer_is_narrower_than_one() -> None:
    correct = np.random.default_rng(9).random((400, 8)) < 0.9
    assert worst(correct, 8) == proportion(correct.all(1))
    some = worst(correct, 3)
    low, high = wilson(some.value, 400)
    assert some.value == pytest.approx(worst_of(correct, 3).mean())
    assert some.high - some.low < 0.6 * (high - low)
    with pytest.raises(ValueError, match="one image"):
        bootstrap([])
