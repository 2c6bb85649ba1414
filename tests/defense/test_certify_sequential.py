from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_certify_table import PUBLISHED

from defense.certify import (
    ABSTAIN,
    ESTIMATE,
    SELECT,
    Counts,
    SequentialPlan,
    lower_bound,
    radius,
    sequence_lower_bound,
)
from defense.errors import InvalidInput

SELECTED = Counts.of(0, SELECT, (100, 0))


def test_while_all_answers_agree_the_bound_is_near_that_of_the_whole_stake() -> None:
    # The whole stake alone, weight 1/4, rejects m once m^-n / 4 >= 1/alpha; no mixture beats its best part.
    n = np.array([20, 100, 1000, 50_000])
    bound = sequence_lower_bound(n, n, 0.001)
    assert (bound >= (0.001 * 0.25) ** (1 / n) - 1e-9).all()
    assert (bound <= 0.001 ** (1 / n)).all()


def test_the_bound_by_a_mixture_written_out() -> None:
    stakes = [2.0 ** (-i / 2) for i in range(15)]
    weights = [0.25] + [0.75 / 14] * 14
    for k, n in ((90, 100), (60, 100), (100, 100), (700, 1000)):
        m = float(sequence_lower_bound(k, n, 0.01))

        def wealth(m: float, k: int = k, n: int = n) -> float:
            return math.fsum(
                w * (1 + s * (1 - m) / m) ** k * (1 - s) ** (n - k) for w, s in zip(weights, stakes, strict=True)
            )

        assert wealth(m) == pytest.approx(100, rel=1e-6)
        assert wealth(0.99 * m) > 100 > wealth(m + 0.01 * (1 - m))


@pytest.mark.slow
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(1e-4, 0.2))
def test_a_bound_for_all_times_is_below_that_for_one_and_grows_with_k(kn: tuple[int, int], alpha: float) -> None:
    k, n = kn
    here, more, later, both, none = sequence_lower_bound(
        [k, min(k + 1, n), k, k + 1, 0], [n, n, n + 1, n + 1, n], alpha
    )
    assert 0 <= here <= float(lower_bound(k, n, alpha)) + 1e-12
    assert more >= here - 1e-12 and later <= here + 1e-12 and both >= here - 1e-12
    assert none == pytest.approx(0.0, abs=1e-12)


def paths(p: float, looks: npt.NDArray[np.int64], runs: int, seed: int) -> npt.NDArray[np.int64]:
    """Counts at each look, shape (runs, looks)."""
    steps = np.diff(np.r_[0, looks])
    return np.random.default_rng(seed).binomial(steps, p, size=(runs, len(steps))).cumsum(1)


def once_each(
    bound: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float64]],
    k: npt.NDArray[np.int64],
    looks: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """The bound of each path at each look, computed once for equal counts: it is found by bisection."""
    pairs, where = np.unique(np.stack(np.broadcast_arrays(k, looks), -1).reshape(-1, 2), axis=0, return_inverse=True)
    return bound(pairs[:, 0], pairs[:, 1])[where.reshape(k.shape)]


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9, 0.99, 0.999])
def test_the_sequence_covers_at_every_look_at_once(p: float) -> None:
    alpha, runs = 0.05, 500
    looks = np.unique(np.round(np.geomspace(1, 5000, 60)).astype(np.int64))
    k = paths(p, looks, runs, 1)
    missed = (once_each(lambda k, n: sequence_lower_bound(k, n, alpha), k, looks) > p).any(1).mean()
    assert missed <= alpha + 3 * math.sqrt(alpha / runs)
    # The same looks with Clopper-Pearson: that is why a sequence is needed (few answers are wrong at p = .999).
    if p <= 0.99:
        assert (once_each(lambda k, n: lower_bound(k, n, alpha), k, looks) > p).any(1).mean() > 2 * alpha


def test_the_wealth_of_a_true_null_has_mean_1_and_below_it_less() -> None:
    # Exactly, by the binomial law: what Ville's inequality rests on.
    n, stakes, weights = 40, 2.0 ** -(np.arange(15) / 2), np.r_[0.25, np.full(14, 0.75 / 14)]
    k = np.arange(n + 1)

    def mean_wealth(p: float, m: float) -> float:
        wealth = ((1 + stakes * (1 - m) / m) ** k[:, None] * (1 - stakes) ** (n - k)[:, None]) @ weights
        return float(stats.binom.pmf(k, n, p) @ wealth)

    for m in (0.5, 0.8, 0.97):
        assert mean_wealth(m, m) == pytest.approx(1.0, rel=1e-10)
        assert mean_wealth(m - 0.05, m) < 1


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.4, 0.502, 0.53, 0.8, 0.99])
def test_a_plan_is_wrong_with_at_most_alpha_at_its_own_stop_and_at_the_worst_one(p: float) -> None:
    plan, runs = SequentialPlan(n=3000, alpha=0.05), 500
    looks = np.array(plan.looks(10, growth=1.15))
    k = paths(p, looks, runs, 2)
    slack = 3 * math.sqrt(plan.alpha / runs)
    bounds = once_each(plan.lower_bound, k, looks)
    assert (bounds > p).any(1).mean() <= plan.alpha + slack  # whoever stops where it suits him best
    stop = plan.done(k, looks).argmax(1)
    assert (bounds[np.arange(runs), stop] > p).mean() <= plan.alpha + slack


def test_at_the_last_sample_the_plan_has_clopper_pearson_of_its_share() -> None:
    plan = SequentialPlan(n=10_000)
    assert float(plan.lower_bound(5300, 10_000)) == float(lower_bound(5300, 10_000, 0.0003))
    assert float(plan.lower_bound(5300, 9_999)) == float(sequence_lower_bound(5300, 9_999, 0.0007))
    assert float(plan.lower_bound(5300, 9_999)) < float(plan.lower_bound(5300, 10_000))


def test_looks_are_whole_batches_that_grow_and_end_with_n() -> None:
    looks = SequentialPlan(n=100_000).looks(1000)
    assert looks[0] == 1000 and looks[-1] == 100_000 and all(look % 1000 == 0 for look in looks)
    assert all(0 < b - a <= max(1000, 0.05 * a + 1000) for a, b in itertools.pairwise(looks))
    assert SequentialPlan(n=150).looks(100) == (100, 150)
    assert SequentialPlan(n=50).looks(100) == (50,)


def published_probabilities(sigma: float) -> npt.NDArray[np.float64]:
    """Probabilities of the selected class on real images: Phi(R / sigma) of public certificates.

    Abstentions, whose probability is not published, are spread evenly over 0.3 to 0.5.
    """
    found: list[npt.NDArray[np.float64]] = []
    for line in PUBLISHED.read_text().splitlines():
        if line.startswith(f"{sigma} "):
            _, kind, *values = line.split()
            if kind == "abstained":
                found.append(np.linspace(0.3, 0.5, int(values[0])))
            else:
                found.append(stats.norm.cdf(np.array([int(value) / 1000 for value in values]) / sigma))
    return np.concatenate(found)


def compare(plan: SequentialPlan, p: npt.NDArray[np.float64], batch: int, seed: int) -> dict[str, float]:
    """A plan and the fixed-n certificate on the same samples."""
    looks = np.array(plan.looks(batch))
    k = np.random.default_rng(seed).binomial(np.diff(np.r_[0, looks]), p[:, None]).cumsum(1)
    used, early, going = np.zeros(len(p)), np.zeros(len(p)), np.ones(len(p), dtype=bool)
    for look, column in zip(looks, k.T, strict=True):
        at = np.flatnonzero(going)
        stop = at[plan.done(column[at], look)]
        used[stop], early[stop], going[stop] = look, radius(plan.lower_bound(column[stop], look), 1.0), False
    fixed = radius(lower_bound(k[:, -1], plan.n, plan.alpha), 1.0)
    certified = fixed > 0
    ratio = early[certified] / fixed[certified]
    return {
        "samples": float(used.mean() / plan.n),
        "same": float(((early > 0) == certified).mean()),
        "mean ratio": float(early.sum() / fixed.sum()),
        "within": float((ratio >= 1 - plan.tolerance).mean()),
    }


@pytest.mark.nightly
def test_a_third_of_the_samples_give_the_class_and_the_radius() -> None:
    # 1500 images' probabilities, sigma .25, .5 and 1 alike: "same class and radius, a third of the samples".
    found = [compare(SequentialPlan(), published_probabilities(s), 1000, 3) for s in (0.25, 0.5, 1.0)]
    assert np.mean([each["samples"] for each in found]) <= 1 / 3
    for each in found:
        assert each["samples"] <= 0.4
        assert each["same"] >= 0.99
        assert each["mean ratio"] >= 0.95
        assert each["within"] >= 0.88


@pytest.mark.slow
def test_at_a_tenth_of_the_samples_it_still_saves_and_agrees() -> None:
    found = compare(SequentialPlan(n=10_000), published_probabilities(0.5), 100, 4)
    assert found["samples"] <= 0.7 and found["same"] >= 0.98 and found["mean ratio"] >= 0.95


def test_the_prediction_covers_the_count_at_n_as_often_as_it_says() -> None:
    # Averaged over a flat prior of p, k at n is beta-binomial given k so far.
    plan = SequentialPlan(n=10_000)
    rng = np.random.default_rng(9)
    p = rng.uniform(0.05, 0.95, size=20_000)
    k = rng.binomial(1000, p)
    last = k + rng.binomial(9000, p)
    for z, share in ((1.28, 0.9), (3.0, 0.99865)):
        held = (last <= plan._predicted(k.astype(float), np.full(len(k), 1000.0), z)).mean()
        assert held == pytest.approx(share, abs=0.01)


def estimate(k: int, m: int, first: int = 0) -> Counts:
    return Counts.of(0, ESTIMATE, (k, m - k), first)


def test_certificates_say_that_they_are_sequential_and_rest_on_nothing_but_the_counts() -> None:
    plan = SequentialPlan()
    found = plan.certify(SELECTED, estimate(9_000, 10_000), 0.25)
    assert (found.prediction, found.guarantee, found.rule, found.n) == (0, "sequential", "one-sided", 10_000)
    assert found.alpha == 0.001 and found.p_lower == float(plan.lower_bound(9_000, 10_000))
    assert found.radius == pytest.approx(0.25 * stats.norm.ppf(found.p_lower), rel=1e-12)
    assert found == plan.certify(SELECTED, estimate(4_500, 5_000) + estimate(4_500, 5_000, first=5_000), 0.25)
    assert plan.certify(SELECTED, estimate(4_000, 10_000), 0.25).prediction == ABSTAIN


@pytest.mark.parametrize(("k", "m", "stops"), [(300, 1000, True), (1000, 1000, False), (500, 1000, False)])
def test_hopeless_images_stop_early_and_open_ones_go_on(k: int, m: int, stops: bool) -> None:
    assert bool(SequentialPlan().done(k, m)) is stops


def test_what_is_no_plan_is_refused() -> None:
    plan = SequentialPlan(n=1000)
    with pytest.raises(InvalidInput, match="end at n = 1000"):
        plan.lower_bound(1, 1001)
    with pytest.raises(InvalidInput, match="in order from 0"):
        plan.certify(SELECTED, estimate(90, 100, first=50), 0.25)
    with pytest.raises(InvalidInput, match="no bound"):
        plan.certify(estimate(9, 10), estimate(90, 100), 0.25)
    with pytest.raises(InvalidInput, match="sigma = 0"):
        plan.certify(SELECTED, estimate(90, 100), 0)
    with pytest.raises(InvalidInput, match="n = 10 samples cannot certify"):
        SequentialPlan(n=10)
    for change in ({"alpha": 0.0}, {"tolerance": 1.0}, {"terminal": 0.0}, {"optimism": -1.0}):
        with pytest.raises(InvalidInput):
            replace(plan, **change)
    with pytest.raises(InvalidInput, match="at least 1, and above 1"):
        plan.looks(100, growth=1.0)
