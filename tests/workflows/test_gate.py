"""The statistics of the gate: closed forms, and simulations in which the truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from defense.errors import InvalidInput
from workflows.statistics.paired import detectable, drop_p, holm, mcnemar, paired_drop

Values = npt.NDArray[np.float64]


def binary(images: int, worse: int, better: int, right: int) -> tuple[Values, Values]:
    """Answers before and now: so many lost, gained, right in both; the rest wrong in both."""
    before, now = np.zeros(images), np.zeros(images)
    before[: worse + right], now[worse : worse + right + better] = 1, 1
    return before, now


def bound(d: Values, t: float) -> float:
    """The lower bound, from the sample with its pseudo-images written out as weights."""
    w = t * t / 2
    values, weights = np.append(d, -1.0), np.append(np.ones(len(d)), w)
    centre = np.average(values, weights=weights)
    variance = np.average((values - centre) ** 2, weights=weights)
    skew = np.average((values - centre) ** 3, weights=weights)
    kappa = min(1.0, max(0.0, -skew / variance / (1 + centre)))
    mean = (d.sum() - kappa * w) / (len(d) + kappa * w)
    return float(mean - t * (variance / (len(d) + w)) ** 0.5)


@pytest.mark.parametrize(("worse", "better"), [(9, 2), (2, 9), (5, 5), (0, 4), (4, 0)])
def test_the_interval_is_that_of_the_t_test_with_pseudo_images(worse: int, better: int) -> None:
    before, now = binary(100, worse, better, right=70)
    found, t = paired_drop(before, now), float(stats.t.ppf(0.975, 99))
    assert found.low == pytest.approx(bound(before - now, t), abs=1e-12)
    assert found.high == pytest.approx(-bound(now - before, t), abs=1e-12)
    assert (found.value, found.worse, found.better) == (pytest.approx((worse - better) / 100), worse, better)
    # Where both ways are alike hardly anything joins the mean: it is the t interval, a little wider.
    if worse == better:
        half = t * ((10 + t * t / 2) / (100 + t * t / 2)) ** 0.5 / (100 + t * t / 2) ** 0.5
        assert found.high == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.02])
@pytest.mark.parametrize(("worse", "better"), [(3, 0), (12, 2), (30, 31), (40, 2)])
def test_p_is_the_level_at_which_the_lower_bound_meets_the_margin(worse: int, better: int, margin: float) -> None:
    before, now = binary(300, worse, better, right=200)
    p = paired_drop(before, now, margin).p
    t = float(stats.t.isf(p, 299))
    if t > 0:
        assert bound(before - now, t) == pytest.approx(margin, abs=1e-8)
    for alpha, rejected in ((p * 1.2, True), (p * 0.8, False)):
        level = float(stats.t.isf(alpha, 299))
        if 0 < alpha < 0.5:
            assert (bound(before - now, level) > margin) == rejected


def test_equal_runs_give_an_interval_with_a_length_and_no_alarm() -> None:
    same = paired_drop(np.ones(400), np.ones(400), 0.01)
    assert same.value == 0 and same.p > 0.99
    assert same.high == -same.low and 0.008 < same.high < 0.013  # the rule of three says 3/400 to 3.7/400


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(InvalidInput, match="same images in both"):
        paired_drop(np.ones(3), np.ones(4))
    with pytest.raises(InvalidInput, match="at least two"):
        paired_drop(np.ones(1), np.ones(1))


def test_pairing_sees_a_drop_that_the_totals_hide() -> None:
    rng = np.random.default_rng(0)
    before = (rng.random(400) < 0.5).astype(float)
    now = before.copy()
    now[np.flatnonzero(before)[:16]] = 0
    assert paired_drop(before, now, 0.01).p < 0.02
    assert paired_drop(rng.permutation(before), now, 0.01).p > 0.05  # the same totals, unpaired


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
    p = drop_p(d, margin)
    for alpha in (0.05, 0.01):
        assert (p <= alpha).mean() <= alpha + 2.6 * (alpha * (1 - alpha) / len(p)) ** 0.5


@pytest.mark.parametrize(
    ("kind", "images", "mean"), [("both ways", 200, 0.05), ("both ways", 1000, 0.02), ("shares", 500, 0.05)]
)
def test_the_interval_covers_the_truth(kind: str, images: int, mean: float) -> None:
    d = simulated(np.random.default_rng(2), kind, 2000, images, mean)
    # An end is beyond the truth where the test of the truth rejects it at 2.5 %.
    missed = (drop_p(d, mean) < 0.025).mean() + (drop_p(-d, -mean) < 0.025).mean()
    assert 0.03 <= missed <= 0.06
    one = paired_drop(np.maximum(d[0], 0), np.maximum(-d[0], 0))
    assert (one.low > mean, one.high < mean) == (drop_p(d[:1], mean)[0] < 0.025, drop_p(-d[:1], -mean)[0] < 0.025)


@pytest.mark.parametrize(("images", "spread"), [(200, 0.1), (1000, 0.0), (1000, 0.3), (5000, 0.1)])
def test_a_drop_of_the_detectable_size_is_found_in_80_percent_of_the_runs(images: int, spread: float) -> None:
    alpha, margin = 0.01, 0.01
    smallest = detectable(images, spread, alpha, margin)
    assert smallest is not None
    rng = np.random.default_rng(3)
    u, lost = rng.random((1000, images)), rng.random((1000, images)) < smallest
    noise = np.where(u < spread**2 / 2, 1.0, np.where(u > 1 - spread**2 / 2, -1.0, 0.0))
    power = (drop_p(np.where(lost, 1.0, noise), margin) <= alpha).mean()
    assert 0.77 <= power <= 0.9
    # Half of it is not.
    half = rng.random((1000, images)) < smallest / 2
    assert (drop_p(np.where(half, 1.0, noise), margin) <= alpha).mean() < 0.4


def test_what_few_images_cannot_see() -> None:
    assert detectable(5, 0.0, 0.05, 0.01) is None
    sizes = [detectable(n, 0.1, 0.05, 0.01) for n in (50, 100, 1000, 10_000)]
    assert all(a is not None and b is not None and a > b > 0.01 for a, b in itertools.pairwise(sizes))


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, then the running maximum.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(p: list[float]) -> None:
    found = holm(p)
    assert all(one <= both <= min(1.0, one * len(p)) + 1e-12 for one, both in zip(p, found, strict=True))
    assert all(found[i] <= found[j] for i in range(len(p)) for j in range(len(p)) if p[i] <= p[j])


def test_mcnemar_is_the_binomial_test_of_the_discordant_images() -> None:
    first = np.array([True] * 101 + [True] * 121 + [False] * 59 + [False] * 33)
    second = np.array([True] * 101 + [False] * 121 + [True] * 59 + [False] * 33)
    assert mcnemar(first, second) == pytest.approx(2 * stats.binom.cdf(59, 180, 0.5), rel=1e-9)
    assert mcnemar(np.array([True] * 5), np.array([False] * 5)) == pytest.approx(2 / 32)
    assert mcnemar(first, first) == 1.0
