"""Paired differences: closed forms, and simulations in which the truth is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from defense.errors import InvalidInput
from workflows.statistics.paired import paired_difference, safe_t_test

Values = npt.NDArray[np.float64]


def binary(images: int, worse: int, better: int, right: int) -> tuple[Values, Values]:
    """Answers before and now: so many lost, gained, right in both; the rest wrong in both."""
    before, now = np.zeros(images), np.zeros(images)
    before[: worse + right], now[worse : worse + right + better] = 1, 1
    return before, now


def bound(d: Values, t: float, largest: float = 1.0) -> float:
    """The lower bound, from the sample with its pseudo-images written out as weights."""
    w = t * t / 2
    values, weights = np.append(d, -largest), np.append(np.ones(len(d)), w)
    centre = np.average(values, weights=weights)
    variance = np.average((values - centre) ** 2, weights=weights)
    skew = np.average((values - centre) ** 3, weights=weights)
    kappa = min(1.0, max(0.0, -skew / variance / (largest + centre)))
    mean = (d.sum() - kappa * w * largest) / (len(d) + kappa * w)
    return float(mean - t * (variance / (len(d) + w)) ** 0.5)


@pytest.mark.parametrize(("worse", "better"), [(9, 2), (2, 9), (5, 5), (0, 4), (4, 0)])
def test_the_interval_is_that_of_the_t_test_with_pseudo_images(worse: int, better: int) -> None:
    before, now = binary(100, worse, better, right=70)
    drop, t = paired_difference(now, before), float(stats.t.ppf(0.975, 99))
    assert drop.low == pytest.approx(bound(before - now, t), abs=1e-12)
    assert drop.high == pytest.approx(-bound(now - before, t), abs=1e-12)
    assert (drop.value, drop.rose, drop.fell) == (pytest.approx((worse - better) / 100), worse, better)
    assert (drop.first, drop.second, drop.images) == (now.mean(), before.mean(), 100)
    assert drop.spread == pytest.approx((before - now).std())
    # Where both ways are alike hardly anything joins the mean: it is the t interval, a little wider.
    if worse == better:
        half = t * ((10 + t * t / 2) / (100 + t * t / 2)) ** 0.5 / (100 + t * t / 2) ** 0.5
        assert drop.high == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.02])
@pytest.mark.parametrize(("worse", "better"), [(3, 0), (12, 2), (30, 31), (40, 2)])
def test_p_is_the_level_at_which_the_lower_bound_meets_the_margin(worse: int, better: int, margin: float) -> None:
    before, now = binary(300, worse, better, right=200)
    p = float(safe_t_test((before - now)[None], margin)[0])
    t = float(stats.t.isf(p, 299))
    if t > 0:
        assert bound(before - now, t) == pytest.approx(margin, abs=1e-8)
    for alpha, rejected in ((p * 1.2, True), (p * 0.8, False)):
        level = float(stats.t.isf(alpha, 299))
        if 0 < alpha < 0.5:
            assert (bound(before - now, level) > margin) == rejected


def test_a_smaller_largest_difference_moves_the_pseudo_images() -> None:
    rng = np.random.default_rng(0)
    first, second = 0.5 + 0.1 * rng.random(60), 0.52 + 0.1 * rng.random(60)
    t = float(stats.t.ppf(0.975, 59))
    for largest in (1.0, 0.2):
        difference = paired_difference(first, second, largest)
        assert difference.low == pytest.approx(bound(second - first, t, largest), abs=1e-12)
        assert difference.high == pytest.approx(-bound(first - second, t, largest), abs=1e-12)
    p = float(safe_t_test((second - first)[None], 0.01, 0.2)[0])
    assert bound(second - first, float(stats.t.isf(p, 59)), 0.2) == pytest.approx(0.01, abs=1e-8)


def test_swapping_the_two_changes_the_sign_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(50), rng.random(50)
    one_way, other = paired_difference(first, second), paired_difference(second, first)
    assert one_way.value == second.mean() - first.mean() == -other.value
    assert (one_way.low, one_way.high) == (-other.high, -other.low)
    assert (one_way.rose, one_way.fell) == (other.fell, other.rose) and one_way.rose + one_way.fell == 50


def test_equal_runs_give_an_interval_with_a_length_and_no_alarm() -> None:
    same = paired_difference(np.ones(400), np.ones(400))
    assert same.value == 0 and safe_t_test(np.zeros((1, 400)), 0.01)[0] > 0.99
    assert same.high == -same.low and 0.008 < same.high < 0.013  # the rule of three says 3/400 to 3.7/400


def test_what_cannot_be_paired_is_refused() -> None:
    for first, second in ((np.ones(3), np.ones(4)), (np.ones(0), np.ones(0)), (np.ones((2, 2)), np.ones((2, 2)))):
        with pytest.raises(InvalidInput, match="same images in both"):
            paired_difference(first, second)


def test_one_image_has_no_spread() -> None:
    single = paired_difference(np.array([0.25]), np.array([1.0]))
    assert (single.value, single.low, single.high) == (0.75, -1, 1)
    with pytest.raises(InvalidInput, match="at least two images"):
        safe_t_test(np.ones((1, 1)), 0.0)


def test_pairing_sees_a_drop_that_the_totals_hide() -> None:
    rng = np.random.default_rng(0)
    before = (rng.random(400) < 0.5).astype(float)
    now = before.copy()
    now[np.flatnonzero(before)[:16]] = 0
    assert safe_t_test((before - now)[None], 0.01)[0] < 0.02
    assert safe_t_test((rng.permutation(before) - now)[None], 0.01)[0] > 0.05  # the same totals, unpaired


def simulated(rng: np.random.Generator, kind: str, runs: int, images: int, mean: float) -> Values:
    """Drops per image of that mean, shape (runs, images)."""
    u = rng.random((runs, images))
    if kind == "losses":
        return (u < mean).astype(float)
    if kind == "both ways":
        return np.where(u < 0.05 + mean / 2, 1.0, np.where(u > 0.95 + mean / 2, -1.0, 0.0))
    if kind == "shares":  # three draws before and now, of easy and hard images
        p = rng.beta(0.3, 0.15, (runs, images)) * (1 - mean) + mean
        q = (p - mean) / (1 - mean) * (1 - mean)
        return rng.binomial(3, p) / 3 - rng.binomial(3, q) / 3
    few = float(kind.removeprefix("skewed "))  # few images improve by all, all others lose a little
    return np.where(u < few, -1.0, (mean + few) / (1 - few))


@pytest.mark.parametrize("kind", ["losses", "both ways", "shares", "skewed 0.002", "skewed 0.01", "skewed 0.05"])
@pytest.mark.parametrize(("images", "margin"), [(50, 0.05), (300, 0.01), (1000, 0.0), (1000, 0.01)])
def test_at_a_true_drop_of_the_margin_alarms_are_as_rare_as_alpha(kind: str, images: int, margin: float) -> None:
    rng = np.random.default_rng(1)
    d = np.concatenate([simulated(rng, kind, 1000, images, margin) for _ in range(3)])
    if kind != "skewed 0.002":  # of its images with -1 there are too few to average
        assert d.mean() == pytest.approx(margin, abs=4 * d.std() / d.size**0.5 + 1e-12)
    p = safe_t_test(d, margin)
    for alpha in (0.05, 0.01):
        assert (p <= alpha).mean() <= alpha + 2.6 * (alpha * (1 - alpha) / len(p)) ** 0.5


@pytest.mark.parametrize(
    ("kind", "images", "mean"), [("both ways", 200, 0.05), ("both ways", 1000, 0.02), ("shares", 500, 0.05)]
)
def test_the_interval_covers_the_truth(kind: str, images: int, mean: float) -> None:
    d = simulated(np.random.default_rng(2), kind, 2000, images, mean)
    # An end is beyond the truth where the test of the truth rejects it at 2.5 %.
    missed = (safe_t_test(d, mean) < 0.025).mean() + (safe_t_test(-d, -mean) < 0.025).mean()
    assert 0.03 <= missed <= 0.06
    drop = paired_difference(np.maximum(-d[0], 0), np.maximum(d[0], 0))
    rejected = safe_t_test(d[:1], mean)[0] < 0.025, safe_t_test(-d[:1], -mean)[0] < 0.025
    assert (drop.low > mean, drop.high < mean) == rejected


def matched_normal(d: Values, largest: float) -> tuple[float, float]:
    """Agresti and Min's interval of matched proportions (Stat. Med. 2005), with differences of at most ``largest``.

    Half an image of either sign and one that does not differ join the sample, and the interval is normal.
    """
    n = len(d) + 2
    centre = float(d.sum()) / n
    half = 1.959964 * float(((d**2).sum() + largest**2) / n - centre**2) ** 0.5 / n**0.5
    return centre - half, centre + half


@pytest.mark.parametrize("images", [20, 100, 500])
@pytest.mark.parametrize(
    ("answers", "a", "b", "gain"),
    [(1, 1e3, 1e-9, 0.0), (1, 9.0, 1.0, 0.2), (5, 2.0, 1.0, 0.05), (75, 0.3, 0.15, 0.05), (75, 1.0, 9.0, 0.1)],
    ids=["equal", "binary", "five severities", "whole benchmark", "skewed"],
)
def test_gains_of_means_over_many_answers_are_covered_at_least_as_often_as_by_matched_proportions(
    images: int, answers: int, a: float, b: float, gain: float
) -> None:
    """Images are right with probability p, easy and hard ones, and behind the defence with p + (1 - p) gain."""
    rng = np.random.default_rng(4)
    truth, runs = gain * b / (a + b), 400
    p = rng.beta(a, b, (runs, images))
    bare = rng.binomial(answers, p) / answers
    defended = rng.binomial(answers, p + (1 - p) * gain) / answers
    safe, normal = [], []
    for first, second in zip(bare, defended, strict=True):
        largest = max(float(np.abs(second - first).max()), 1 / answers)
        difference = paired_difference(first, second, largest)
        safe.append(difference.low <= truth <= difference.high)
        low, high = matched_normal(second - first, largest)
        normal.append(low <= truth <= high)
    assert np.mean(safe) >= np.mean(normal)
    assert np.mean(safe) >= 0.95 - 2.6 * (0.05 * 0.95 / runs) ** 0.5


def test_few_images_that_differ_are_missed_by_matched_proportions_and_not_here() -> None:
    """One image in 50 gains: the normal interval leaves the truth out in one run of eight."""
    rng = np.random.default_rng(5)
    safe, normal = [], []
    for second in (rng.random((1000, 100)) < 0.02).astype(float):
        difference = paired_difference(np.zeros(100), second)
        safe.append(difference.low <= 0.02 <= difference.high)
        low, high = matched_normal(second, 1.0)
        normal.append(low <= 0.02 <= high)
    assert np.mean(normal) < 0.9 and np.mean(safe) > 0.99
