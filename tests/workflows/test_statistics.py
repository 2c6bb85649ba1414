"""Statistics against SciPy, exact arithmetic, and the exact law of what they estimate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from defense.aggregate import majority_vote
from defense.errors import InvalidInput
from workflows.statistics.combined import fixed_aa_any, fixed_aa_mean, lowest_per_image, selected_per_image
from workflows.statistics.paired import PairedTest, paired_test
from workflows.statistics.proportions import Proportion, average, bootstrap, proportion, wilson, worst, worst_of

Matrix = npt.NDArray[np.bool_]


def matrices(max_images: int = 6, max_draws: int = 40) -> st.SearchStrategy[Matrix]:
    shape = st.tuples(st.integers(1, max_images), st.integers(1, max_draws))
    return shape.flatmap(lambda s: hnp.arrays(np.bool_, s, elements=st.booleans()))


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
    """How often an interval holds the truth; of 3000 times, 0.95 has a standard error of 0.004."""
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
    [(512, 0.3, 0.2, 20, 10), (128, 2, 1, 10, 5), (360, 8, 0.5, 10, 3)],
)
def test_the_interval_of_worst_of_m_covers_95_in_100(images: int, a: float, b: float, draws: int, m: int) -> None:
    """p_i from a Beta law, of which E p^M is known; from images that draws decide to ones that they hardly touch."""
    truth = float(np.prod([(a + k) / (a + b + k) for k in range(m)]))

    def interval(generator: np.random.Generator) -> Proportion:
        return worst(generator.random((images, draws)) < generator.beta(a, b, size=(images, 1)), m)

    assert covered(3000, interval, truth) == pytest.approx(0.95, abs=0.01)


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


# ------------------------------------------------------------------------------------------------- paired comparison


def enumerated(first: Matrix, second: Matrix) -> float:
    """P(sum of d_i with random signs >= sum of d_i) over all 2^n signs, in exact arithmetic."""
    d = [Fraction(int(a.sum()), len(a)) - Fraction(int(b.sum()), len(b)) for a, b in zip(first, second, strict=True)]
    sums = [
        sum(s * abs(x) for s, x in zip(signs, d, strict=True)) for signs in itertools.product((-1, 1), repeat=len(d))
    ]
    return sum(total >= sum(d) for total in sums) / len(sums)


@given(data=st.data())
def test_the_paired_test_is_the_sum_over_all_signs(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 8))
    first, second = (
        data.draw(hnp.arrays(np.bool_, (n, data.draw(st.integers(1, 6))), elements=st.booleans())) for _ in "ab"
    )
    found = paired_test(first, second)
    assert found.p == pytest.approx(enumerated(first, second), abs=1e-12)
    assert (found.first, found.second, found.n) == (first.mean(), second.mean(), n)
    assert found.difference == pytest.approx(first.mean() - second.mean())


@given(data=st.data(), n=st.integers(1, 300))
def test_with_one_draw_the_paired_test_is_mcnemars_exact_one(data: st.DataObject, n: int) -> None:
    first, second = (data.draw(hnp.arrays(np.bool_, (n, 1), elements=st.booleans())) for _ in "ab")
    up, down = int((first & ~second).sum()), int((second & ~first).sum())
    found = paired_test(first, second)
    assert found.changed == up + down
    expected = stats.binomtest(up, up + down, alternative="greater").pvalue if up + down else 1.0
    assert found.p == pytest.approx(float(expected), rel=1e-9)


def test_a_long_sum_is_as_that_of_a_simulation_of_signs() -> None:
    generator = np.random.default_rng(3)
    share = generator.random((600, 1))
    first, second = generator.random((600, 20)) < share + 0.005, generator.random((600, 20)) < share
    d = average(first) - average(second)
    signs = 2 * generator.integers(0, 2, size=(40_000, 600)) - 1
    expected = float(((signs * np.abs(d)).sum(1) >= d.sum() - 1e-9).mean())
    assert 0.001 < expected < 0.2
    assert paired_test(first, second).p == pytest.approx(expected, abs=4 * math.sqrt(expected / 40_000))


def test_a_grid_that_is_too_long_has_the_normal_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    share = generator.random((900, 1))
    first, second = generator.random((900, 10)) < share + 0.01, generator.random((900, 7)) < share
    exact = paired_test(first, second)
    monkeypatch.setattr("workflows.statistics.proportions._LONGEST_GRID", 1)
    assert paired_test(first, second).p == pytest.approx(exact.p, rel=0.03)


@pytest.mark.parametrize("draws", [1, 4])
def test_two_cells_that_are_alike_differ_at_one_percent_once_in_a_hundred(draws: int) -> None:
    generator = np.random.default_rng(5)
    share = generator.beta(2, 1, size=(300, 1))
    fired = [
        paired_test(generator.random((300, draws)) < share, generator.random((300, draws)) < share).p < 0.01
        for _ in range(3000)
    ]
    # 0.01 +- 3 standard errors; less with one draw, whose p are few and coarse.
    assert float(np.mean(fired)) < 0.0155 and (draws == 1 or float(np.mean(fired)) > 0.0045)


def test_the_paired_test_finds_what_the_unpaired_intervals_miss() -> None:
    """450 and 430 of 512 images: the intervals overlap, but the 20 images all changed one way."""
    first, second = np.arange(512)[:, None] < 450, np.arange(512)[:, None] < 430
    assert wilson(430 / 512, 512)[1] > wilson(450 / 512, 512)[0]
    assert paired_test(first, second).p == pytest.approx(0.5**20)
    assert paired_test(second, first).p == 1
    assert paired_test(first, first) == PairedTest(450 / 512, 450 / 512, 1.0, 512, 0)


def test_a_p_that_was_chosen_among_several_is_multiplied() -> None:
    test = PairedTest(0.5, 0.4, 0.004, 100, 10)
    assert test.among(3).p == pytest.approx(0.012) and test.among(1000).p == 1 and test.among(0).p == 0.004


@pytest.mark.parametrize("sizes", [(0, 0), (3, 4)])
def test_other_images_cannot_be_paired(sizes: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="same images"):
        paired_test(*(np.ones((n, 2), dtype=bool) for n in sizes))


# -------------------------------------------------------------------------------------- two readings of one protocol


def test_the_two_readings_of_fixed_autoattack() -> None:
    # Two attacks, three images, four draws.
    first = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 1, 1]], dtype=bool)
    second = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    # Means over draws and images 9/12 and 8/12; no image but the first is right on every draw of both.
    assert fixed_aa_mean([first, second]) == Proportion(8 / 12, *wilson(8 / 12, 3), n=3)
    assert fixed_aa_any([first, second]) == Proportion(1 / 3, *wilson(1 / 3, 3), n=3)
    # The minimum is over attacks for the data set: not 7/12, the mean of the lower share of each image.
    assert fixed_aa_mean([first]).value == 9 / 12 and fixed_aa_any([second]).value == 2 / 3


@given(correct=matrices(), data=st.data())
def test_any_is_never_above_mean_and_both_fall_with_more_attacks(correct: Matrix, data: st.DataObject) -> None:
    other = data.draw(hnp.arrays(np.bool_, (len(correct), 3), elements=st.booleans()))
    for reading in (fixed_aa_mean, fixed_aa_any):
        assert reading([correct, other]).value <= min(reading([correct]).value, reading([other]).value) + 1e-12
    assert fixed_aa_any([correct, other]).value <= fixed_aa_mean([correct, other]).value + 1e-12
    assert fixed_aa_any([correct]).value == pytest.approx(worst_of(correct, correct.shape[1]).mean())


def test_the_attack_of_each_image_is_bracketed_by_selection_with_and_without_its_draws() -> None:
    """Three attacks that are alike on average and not on each image: the truth is the mean of the lowest p."""
    generator = np.random.default_rng(10)
    lowest, selected = [], []
    p = generator.beta(2, 2, size=(3, 4000, 1))
    truth = float(p.min(0).mean())
    for _ in range(20):
        attacks = [generator.random((4000, 10)) < each for each in p]
        lowest.append(lowest_per_image(attacks).value)
        selected.append(selected_per_image(attacks).value)
    error = 3 * 0.5 / math.sqrt(20 * 4000)
    assert np.mean(lowest) < truth - 2 * error and np.mean(selected) > truth + 2 * error
    assert np.mean(selected) - truth < 0.1  # and far below the best single attack, which is at 1/2
    # The bias of the minimum is that of its draws, and goes with their number.
    many = [generator.random((4000, 400)) < each for each in p]
    assert lowest_per_image(many).value == pytest.approx(truth, abs=0.01)
    assert selected_per_image(many).value == pytest.approx(truth, abs=0.01)


def test_selection_by_hand() -> None:
    # One image, two attacks, four draws; draws 0 and 2 against draws 1 and 3.
    first = np.array([[0, 1, 0, 0]], dtype=bool)  # shares 0 and 1/2
    second = np.array([[1, 0, 0, 0]], dtype=bool)  # shares 1/2 and 0
    assert lowest_per_image([first, second]).value == 1 / 4
    # Chosen on the first half: the first attack, judged 1/2 on the second; and the other way round.
    assert selected_per_image([first, second]).value == 1 / 2
    assert selected_per_image([first]).value == lowest_per_image([first]).value == 1 / 4
    with pytest.raises(InvalidInput, match="one draw"):
        selected_per_image([first, first[:, :1]])


@pytest.mark.parametrize("attacks", [[], [np.ones((2, 3), bool), np.ones((3, 3), bool)], [np.ones((0, 3), bool)]])
def test_attacks_are_combined_on_the_same_images(attacks: list[Matrix]) -> None:
    for reading in (fixed_aa_mean, fixed_aa_any, lowest_per_image, selected_per_image):
        with pytest.raises(InvalidInput, match="same images"):
            reading(attacks)
