from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import every
from scipy import stats

from defense.certify import (
    ceiling,
    cohen_dataset_bound,
    dataset_bound,
    lower_bound,
    radius,
    smallest_k,
    top_two_p_value,
    two_class_radius,
    upper_bound,
)
from defense.errors import InvalidInput

ALPHA = 0.001


# methods.md 9.6, alpha = .001 one-sided.
@every(
    ("n", "k", "bound", "unit_radius", "at_quarter"),
    [
        (100_000, 100_000, 0.99993092, 3.811457, 0.95286),
        (100_000, 99_900, 0.99865099, 3.000201, 0.75005),
        (100_000, 99_000, 0.98898934, 2.290000, 0.57250),
        (100_000, 95_000, 0.94783490, 1.624214, 0.40605),
        (100_000, 90_000, 0.89703650, 1.264845, 0.31621),
        (100_000, 80_000, 0.79606607, 0.827652, 0.20691),
        (100_000, 60_000, 0.59520105, 0.240945, 0.06024),
        (100_000, 51_000, 0.50510935, 0.012808, 0.00320),
        (100_000, 50_000, 0.49510904, 0.0, 0.0),
        (10_000, 10_000, 0.99930946, 3.198578, 0.79964),
        (10_000, 9_900, 0.98653116, 2.212420, 0.55310),
        (10_000, 9_000, 0.89040973, 1.228710, 0.30718),
        (1_000, 1_000, 0.99311605, 2.463263, 0.61582),
        (1_000, 990, 0.97603619, 1.978010, 0.49450),
        (1_000, 900, 0.86746402, 1.114483, 0.27862),
    ],
)
def test_published_bounds_and_radii(n: int, k: int, bound: float, unit_radius: float, at_quarter: float) -> None:
    found = float(lower_bound(k, n, ALPHA))
    assert found == pytest.approx(bound, abs=5.1e-9)
    assert float(radius(found, 1.0)) == pytest.approx(unit_radius, abs=5.1e-7)
    assert float(radius(found, 0.25)) == pytest.approx(at_quarter, abs=5.1e-6)


@pytest.mark.parametrize(("n", "k"), [(100_000, 50_490), (10_000, 5_156), (1_000, 550)])
def test_published_smallest_certifiable_counts(n: int, k: int) -> None:
    assert smallest_k(n, ALPHA) == k
    # Another way to the same number: the exact binomial test of p = 1/2 rejects from there on.
    assert stats.binom.sf(k - 1, n, 0.5) < ALPHA <= stats.binom.sf(k - 2, n, 0.5)


@pytest.mark.parametrize(
    ("n", "value"), [(100, 1.500475), (1_000, 2.463263), (10_000, 3.198578), (100_000, 3.811457)]
)
def test_published_ceilings_have_the_closed_form(n: int, value: float) -> None:
    assert ceiling(n, ALPHA, 1.0) == pytest.approx(value, abs=5.1e-7)
    assert ceiling(n, ALPHA, 0.5) == pytest.approx(0.5 * stats.norm.ppf(ALPHA ** (1 / n)), rel=1e-9)


@pytest.mark.parametrize(
    ("sigma", "alpha", "value"), [(0.25, 0.01, 0.9776), (0.5, 0.01, 1.955), (0.12, 0.001, 0.457)]
)
def test_ceilings_of_the_published_result_files(sigma: float, alpha: float, value: float) -> None:
    assert ceiling(100_000, alpha, sigma) == pytest.approx(value, abs=5.1e-4)


@pytest.mark.parametrize(
    ("first", "second", "p", "rel"),
    [(70, 30, 7.85e-5, 1e-3), (67, 33, 8.74e-4, 1e-3), (66, 34, 1.79e-3, 3e-3), (60, 40, 0.0569, 1e-3)],
)
def test_published_p_values_of_predict(first: int, second: int, p: float, rel: float) -> None:
    assert top_two_p_value(first, second) == pytest.approx(p, rel=rel)


def test_a_tie_and_no_answer_at_all_have_p_1() -> None:
    assert top_two_p_value(5, 5) == 1.0 and top_two_p_value(0, 0) == 1.0


counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.floats(1e-4, 0.2))
def test_the_lower_bound_is_where_the_binomial_tail_is_alpha(kn: tuple[int, int], alpha: float) -> None:
    k, n = kn
    p = float(lower_bound(k, n, alpha))
    assert (p == 0) if k == 0 else (stats.binom.sf(k - 1, n, p) == pytest.approx(alpha, rel=1e-6))
    q = float(upper_bound(k, n, alpha))
    assert (q == 1) if k == n else (stats.binom.cdf(k, n, q) == pytest.approx(alpha, rel=1e-6))
    assert p <= k / n <= q


@given(counts.filter(lambda kn: kn[0] < kn[1]), st.floats(1e-4, 0.2), st.floats(0.05, 2.0))
def test_radii_grow_with_k_with_n_at_equal_share_and_with_alpha(
    kn: tuple[int, int], alpha: float, sigma: float
) -> None:
    k, n = kn
    here = float(radius(lower_bound(k, n, alpha), sigma))
    assert float(radius(lower_bound(k + 1, n, alpha), sigma)) >= here
    assert float(lower_bound(k + 1, n, alpha)) > float(lower_bound(k, n, alpha))
    if 2 * k > n:
        assert float(radius(lower_bound(2 * k, 2 * n, alpha), sigma)) >= here
    assert float(radius(lower_bound(k, n, 2 * alpha), sigma)) >= here
    assert here <= ceiling(n, alpha, sigma)


@given(st.floats(0.5001, 0.9999), st.floats(0.05, 2.0))
def test_two_classes_alone_have_the_one_sided_radius(p: float, sigma: float) -> None:
    assert float(two_class_radius(p, 1 - p, sigma)) == pytest.approx(float(radius(p, sigma)), rel=1e-9, abs=1e-12)


def test_the_two_class_radius_by_hand() -> None:
    # Phi(1) = .8413447, Phi(-1) = .1586553, Phi(-2) = .0227501.
    assert float(two_class_radius(0.8413447460685429, 0.022750131948179195, 0.5)) == pytest.approx(0.75, rel=1e-12)
    assert float(two_class_radius(0.4, 0.3, 1.0)) == pytest.approx(
        (stats.norm.ppf(0.4) - stats.norm.ppf(0.3)) / 2, rel=1e-12
    )
    assert two_class_radius([0.3, 0.3], [0.3, 0.4], 1.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("n", [50, 400])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_clopper_pearson_covers_whatever_the_truth_is(n: int, alpha: float) -> None:
    # Exact, not simulated: the chance of a bound above p is a sum over k.
    k = np.arange(n + 1)
    low, high = lower_bound(k, n, alpha), upper_bound(k, n, alpha)
    p = np.linspace(0.001, 0.999, 500)[:, None]
    weight = stats.binom.pmf(k, n, p)
    too_high = (weight * (low > p)).sum(1)
    too_low = (weight * (high < p)).sum(1)
    assert too_high.max() <= alpha * (1 + 1e-9) and too_low.max() <= alpha * (1 + 1e-9)
    assert too_high.max() > 0.9 * alpha  # and no larger than needed


@pytest.mark.parametrize(("images", "alpha", "rho"), [(500, 0.001, 0.001), (10_000, 0.001, 0.001), (500, 0.05, 0.01)])
def test_the_dataset_bound_fails_with_at_most_rho_and_is_the_best_such(images: int, alpha: float, rho: float) -> None:
    wrong = round((0.8 - dataset_bound(0.8, images, alpha, rho)) * images)
    assert stats.binom.sf(wrong, images, alpha) <= rho < stats.binom.sf(wrong - 1, images, alpha)


def test_the_dataset_bound_never_promises_less_than_nothing() -> None:
    assert dataset_bound(0.001, 500, 0.05, 0.01) == 0.0


def test_the_published_dataset_correction_and_where_it_fails() -> None:
    def correction(images: int, alpha: float, rho: float) -> float:
        return 0.8 - cohen_dataset_bound(0.8, images, alpha, rho)

    log = math.log(1000)
    assert correction(500, 0.001, 0.001) == pytest.approx(0.001 + math.sqrt(0.000999 * log / 500) + log / 1500)
    for images, alpha, chance in ((10_000, 0.001, 0.00158), (50_000, 0.01, 0.00374)):
        allowed = math.floor(correction(images, alpha, 0.001) * images)
        assert stats.binom.sf(allowed, images, alpha) == pytest.approx(chance, rel=0.01)  # above rho = .001
        assert cohen_dataset_bound(0.8, images, alpha, 0.001) > dataset_bound(0.8, images, alpha, 0.001)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: lower_bound(3, 2, 0.01), "0 <= k <= n"),
        (lambda: lower_bound(-1, 2, 0.01), "0 <= k <= n"),
        (lambda: lower_bound(0, 0, 0.01), "at least one sample"),
        (lambda: lower_bound(1, 2, 0.0), "alpha = 0.0 is an error probability"),
        (lambda: upper_bound(1, 2, 1.0), "alpha = 1.0 is an error probability"),
        (lambda: radius(0.9, 0.0), "sigma = 0.0"),
        (lambda: radius(0.9, math.nan), "sigma = nan"),
        (lambda: smallest_k(9, 0.001), "more than 10.0"),
        (lambda: dataset_bound(1.1, 10, 0.01, 0.01), "share of 1.1"),
        (lambda: dataset_bound(0.5, 0, 0.01, 0.01), "of 0 images"),
        (lambda: dataset_bound(0.5, 10, 0.01, 2.0), "rho = 2.0"),
    ],
)
def test_what_cannot_be_bounded_is_refused(call: object, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        call()  # type: ignore[operator]


def test_ten_samples_are_the_fewest_that_certify_at_alpha_001() -> None:
    assert smallest_k(10, 0.001) == 10
