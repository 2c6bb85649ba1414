"""Confidence sequences: the capital is fair, intervals cover at all times, and they cost about what they should."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from workflows.statistics.proportions import wilson
from workflows.statistics.sequences import (
    SCALES,
    _bets,
    _log_capital,
    anytime,
    anytime_difference,
    evidence,
    sequence_ends,
)

Rng = np.random.Generator


def answers(p: float) -> Callable[[Rng, int], np.ndarray]:
    """Right and wrong answers."""
    return lambda rng, n: (rng.random(n) < p).astype(np.float64)


def shares(p: float) -> Callable[[Rng, int], np.ndarray]:
    """Shares of five right draws of images that are easy or hard: draws of one image depend on each other."""
    return lambda rng, n: rng.binomial(5, rng.beta(0.3 * p, 0.3 * (1 - p), n)) / 5


def slow_ends(x: np.ndarray, population: int | None, level: float) -> tuple[float, float]:
    """The same interval from the definition: image by image, on a grid of 501 means."""
    kept = []
    for m in np.linspace(0, 1, 501):
        excluded = False
        for values, mean in ((x, m), (1 - x, 1 - m)):
            capital, seen = [1 / 14, 1 / 14, 4 / 14, 4 / 14, 4 / 14], 0.0
            squares, total = 0.25, 0.5
            variance = 0.25
            for i, value in enumerate(values, start=1):
                expected = mean
                if population is not None:
                    expected = min(1.0, max(0.0, (population * mean - seen) / (population - i + 1)))
                for j, scale in enumerate(SCALES):
                    stake = min(scale / variance, 0.75 / expected) if expected else scale / variance
                    capital[j] *= 1 + stake * (value - expected)
                excluded |= sum(capital) >= 2 / level
                seen += value
                total += value
                squares += (value - total / (i + 1)) ** 2
                variance = squares / (i + 1)
        if population is not None:
            excluded |= not x.sum() / population - 1e-9 <= m <= (x.sum() + population - len(x)) / population + 1e-9
        if not excluded:
            kept.append(m)
    return min(kept), max(kept)


@pytest.mark.parametrize("population", [None, 90])
@pytest.mark.parametrize("values", [answers(0.3), shares(0.8)])
def test_it_is_the_definition(values: Callable[[Rng, int], np.ndarray], population: int | None) -> None:
    x = values(np.random.default_rng(3), 60)
    assert sequence_ends(x, population, 0.2) == pytest.approx(slow_ends(x, population, 0.2), abs=1.01 / 500)


def test_nobody_can_expect_to_win() -> None:
    # The mean capital over all outcomes is 1 at every image, for any bets that look at earlier images alone.
    p, n = 0.3, 9
    for mean, up in ((p, 1), (1 - p, 0)):
        total = np.zeros(n)
        for outcome in itertools.product((0.0, 1.0), repeat=n):
            x = np.array(outcome)
            weight = math.prod(p if value else 1 - p for value in outcome)
            values = x if up else 1 - x
            total += weight * np.exp(_log_capital(values, _bets(x), mean, None))
        assert total == pytest.approx(np.ones(n))


def test_nobody_can_expect_to_win_without_replacement() -> None:
    images = (0.0, 0.25, 1.0, 1.0, 0.5, 0.0)
    orders = [np.array(order) for order in itertools.permutations(images)]
    capital = [np.exp(_log_capital(x, _bets(x), float(np.mean(images)), len(images))) for x in orders]
    assert np.mean(capital, axis=0) == pytest.approx(np.ones(len(images)))
    # With replacement in mind it would not be fair: who has seen the small ones knows that large ones are left.
    naive = [np.exp(_log_capital(x, _bets(x), float(np.mean(images)), None)) for x in orders]
    assert abs(np.mean(naive, axis=0)[-1] - 1) > 1e-4


RUNS, IMAGES, CHUNK = 120, 500, 50


def misses(values: Callable[[Rng, int], np.ndarray], p: float) -> tuple[int, int]:
    """Of RUNS, how often the sequence and how often Wilson's interval, looked at after each chunk, is ever wrong."""
    wrong = peeked = 0
    for run in range(RUNS):
        x = values(np.random.default_rng(run), IMAGES)
        # Excluded at some image by a bet on either side; the ends themselves need not be found for that.
        wrong += min(evidence(x, p), evidence(1 - x, 1 - p)) <= 0.025
        ends = [wilson(float(x[:n].mean()), n) for n in range(CHUNK, IMAGES + 1, CHUNK)]
        peeked += any(not low <= p <= high for low, high in ends)
    return wrong, peeked


def test_it_covers_however_often_one_looks_where_wilsons_interval_does_not() -> None:
    few = int(stats.binom.isf(1e-3, RUNS, 0.05))
    for p in (0.01, 0.1, 0.5, 0.9, 0.99):
        wrong, peeked = misses(answers(p), p)
        assert wrong <= few, p
        if 0.1 <= p <= 0.9:
            assert peeked > 2 * 0.05 * RUNS, p
    for p in (0.1, 0.5, 0.9):
        assert misses(shares(p), p)[0] <= few, p


def test_the_mean_of_finitely_many_images_is_covered_too() -> None:
    wrong, level = 0, 0.2
    for run in range(RUNS):
        rng = np.random.default_rng(run)
        images = rng.permutation(np.repeat([0.0, 0.6, 1.0], (30, 20, 50)))
        low, high = sequence_ends(images[:60], 100, level)
        wrong += not low <= images.mean() <= high
    assert wrong <= stats.binom.isf(1e-3, RUNS, level)


def test_it_narrows_to_a_point_when_all_images_are_seen() -> None:
    x = answers(0.4)(np.random.default_rng(0), 80)
    assert sequence_ends(x, 80) == (x.mean(), x.mean())
    low, high = sequence_ends(x[:79], 80)
    assert high - low <= 1 / 80 + 1e-9


def test_later_intervals_lie_in_earlier_ones() -> None:
    x = shares(0.6)(np.random.default_rng(1), 300)
    before = (0.0, 1.0)
    for n in range(0, 301, 20):
        ends = sequence_ends(x[:n])
        assert before[0] - 1e-6 <= ends[0] <= ends[1] <= before[1] + 1e-6
        before = ends


def test_both_sides_are_treated_alike() -> None:
    x = shares(0.7)(np.random.default_rng(2), 150)
    low, high = sequence_ends(x)
    assert sequence_ends(1 - x) == pytest.approx((1 - high, 1 - low), abs=1e-6)
    d = anytime_difference(x, 1 - x)
    assert (d.low, d.high) == pytest.approx(
        (-anytime_difference(1 - x, x).high, -anytime_difference(1 - x, x).low), abs=1e-6
    )
    assert d.value == pytest.approx(1 - 2 * x.mean())


@pytest.mark.parametrize(("half_width", "p"), [(0.05, 0.5), (0.05, 0.2), (0.02, 0.1)])
def test_it_takes_about_twice_the_images_of_wilsons_interval(half_width: float, p: float) -> None:
    fixed = 1.96**2 * p * (1 - p) / half_width**2

    def half(n: float) -> float:
        ends = [sequence_ends(answers(p)(np.random.default_rng(run), int(n))) for run in range(8)]
        return float(np.mean([(high - low) / 2 for low, high in ends]))

    assert half(1.4 * fixed) > half_width  # nobody can do with as few as at a fixed number
    assert half(2.3 * fixed) <= half_width


def test_evidence_is_the_level_at_which_the_interval_meets_the_mean() -> None:
    x = answers(0.6)(np.random.default_rng(8), 250)
    p = evidence(x, 0.5)
    assert 0 < p < 1
    assert sequence_ends(x, None, 2 * p)[0] == pytest.approx(0.5, abs=1e-5)
    assert evidence(1 - x, 0.5) > 0.5
    assert evidence([], 0.5) == 1.0


def test_what_is_no_share_of_an_image_is_refused() -> None:
    for values in ([1.2], [-0.1], [math.nan], [[0.5]]):
        with pytest.raises(ValueError, match=r"one value in \[0, 1\]"):
            sequence_ends(values)
    with pytest.raises(ValueError, match="3 images of 2"):
        sequence_ends([0, 1, 1], 2)
    assert sequence_ends([]) == (0.0, 1.0)
    assert anytime([0.0] * 200).high < 0.03
