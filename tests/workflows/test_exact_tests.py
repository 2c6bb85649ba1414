"""Exact tests against enumeration, simulation and the binomial law."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from answers import Matrix
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from defense.errors import InvalidInput
from workflows.statistics.exact_tests import mcnemar, sign_flip
from workflows.statistics.proportions import average, wilson


def enumerated(first: Matrix, second: Matrix) -> float:
    """P(sum of d_i with random signs >= sum of d_i) over all 2^n signs, in exact arithmetic."""
    d = [Fraction(int(b.sum()), len(b)) - Fraction(int(a.sum()), len(a)) for a, b in zip(first, second, strict=True)]
    sums = [
        sum(s * abs(x) for s, x in zip(signs, d, strict=True)) for signs in itertools.product((-1, 1), repeat=len(d))
    ]
    return sum(total >= sum(d) for total in sums) / len(sums)


@given(data=st.data())
def test_the_sign_flip_test_is_the_sum_over_all_signs(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 8))
    first, second = (
        data.draw(hnp.arrays(np.bool_, (n, data.draw(st.integers(1, 6))), elements=st.booleans())) for _ in "ab"
    )
    assert sign_flip(first, second) == pytest.approx(enumerated(first, second), abs=1e-12)


@given(data=st.data(), n=st.integers(1, 300))
def test_with_one_draw_it_is_mcnemars_exact_one_sided_test(data: st.DataObject, n: int) -> None:
    first, second = (data.draw(hnp.arrays(np.bool_, (n, 1), elements=st.booleans())) for _ in "ab")
    rose, fell = int((second & ~first).sum()), int((first & ~second).sum())
    expected = stats.binomtest(rose, rose + fell, alternative="greater").pvalue if rose + fell else 1.0
    assert sign_flip(first, second) == pytest.approx(float(expected), rel=1e-9)


def test_a_long_sum_is_as_that_of_a_simulation_of_signs() -> None:
    generator = np.random.default_rng(3)
    share = generator.random((600, 1))
    second, first = generator.random((600, 20)) < share + 0.005, generator.random((600, 20)) < share
    d = average(second) - average(first)
    signs = 2 * generator.integers(0, 2, size=(40_000, 600)) - 1
    expected = float(((signs * np.abs(d)).sum(1) >= d.sum() - 1e-9).mean())
    assert 0.001 < expected < 0.2
    assert sign_flip(first, second) == pytest.approx(expected, abs=4 * math.sqrt(expected / 40_000))


def test_a_law_that_is_too_long_has_the_normal_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    share = generator.random((900, 1))
    second, first = generator.random((900, 10)) < share + 0.01, generator.random((900, 7)) < share
    exact = sign_flip(first, second)
    monkeypatch.setattr("workflows.statistics.exact_tests._LONGEST_LAW", 1)
    limit = sign_flip(first, second)
    assert limit != exact and limit == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("draws", [1, 4])
def test_two_equal_cells_differ_at_one_percent_once_in_a_hundred(draws: int) -> None:
    generator = np.random.default_rng(5)
    share = generator.beta(2, 1, size=(300, 1))
    fired = [
        sign_flip(generator.random((300, draws)) < share, generator.random((300, draws)) < share) < 0.01
        for _ in range(3000)
    ]
    # 0.01 +- 3 standard errors; less with one draw, whose p are few and coarse.
    assert float(np.mean(fired)) < 0.0155 and (draws == 1 or float(np.mean(fired)) > 0.0045)


def test_it_finds_what_the_unpaired_intervals_miss() -> None:
    """450 and 430 of 512 images: the intervals overlap, but the 20 images all changed one way."""
    more, fewer = np.arange(512)[:, None] < 450, np.arange(512)[:, None] < 430
    assert wilson(430 / 512, 512)[1] > wilson(450 / 512, 512)[0]
    assert sign_flip(fewer, more) == pytest.approx(0.5**20)
    assert sign_flip(more, fewer) == 1 and sign_flip(more, more) == 1


@pytest.mark.parametrize("sizes", [(0, 0), (3, 4)])
def test_other_images_cannot_be_paired(sizes: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="same images"):
        sign_flip(*(np.ones((n, 2), dtype=bool) for n in sizes))


def test_mcnemar_is_the_binomial_test_of_the_discordant_images() -> None:
    first = np.array([True] * 101 + [True] * 121 + [False] * 59 + [False] * 33)
    second = np.array([True] * 101 + [False] * 121 + [True] * 59 + [False] * 33)
    assert mcnemar(first, second) == (121, 59, pytest.approx(2 * stats.binom.cdf(59, 180, 0.5), rel=1e-9))
    assert mcnemar(np.array([True] * 5), np.array([False] * 5)) == (5, 0, pytest.approx(2 / 32))
    assert mcnemar(first, first) == (0, 0, 1.0)
