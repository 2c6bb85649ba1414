from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from defense import InvalidInput, get_schedule
from defense.samplers import forward_noise
from defense.schedules import SCHEDULES, vp_abar

names = st.sampled_from(sorted(SCHEDULES))


# methods.md 9.1 counts linear-1000 from 0: its index i is our t = i + 1.
@pytest.mark.parametrize(
    ("index", "abar"),
    [
        (35, 0.983976),
        (69, 0.946358),
        (74, 0.939121),
        (99, 0.897018),
        (124, 0.846180),
        (149, 0.788321),
        (469, 0.105444),
    ],
)
def test_linear_1000_has_the_published_abar(index: int, abar: float) -> None:
    assert get_schedule("linear-1000").level(index + 1).abar == pytest.approx(abar, abs=5.1e-7)


@pytest.mark.parametrize(
    ("t", "abar"),
    [
        (36, 0.983640),
        (75, 0.938503),
        (100, 0.896282),
        (125, 0.845380),
        (150, 0.787513),
        (470, 0.105932),
        (500, 0.079064),
    ],
)
def test_vp_continuous_has_the_published_abar(t: int, abar: float) -> None:
    assert get_schedule("vp-continuous").level(t).abar == pytest.approx(abar, abs=5.1e-7)
    assert float(vp_abar(t / 1000)) == pytest.approx(
        math.exp(-0.5 * 19.9 * (t / 1000) ** 2 - 0.1 * t / 1000), rel=1e-14
    )


@pytest.mark.parametrize(("name", "abar"), [("linear-1000", 4.0e-5), ("vp-continuous", 4.3e-5)])
def test_a_full_schedule_leaves_almost_nothing(name: str, abar: float) -> None:
    assert get_schedule(name).level(1000).abar == pytest.approx(abar, abs=5.1e-7)


@pytest.mark.parametrize(
    ("name", "t", "sigma_eq"),
    [
        ("linear-1000", 100, 0.16941),
        ("linear-1000", 70, 0.11904),
        ("linear-1000", 36, 0.06381),
        ("cosine-4000", 470, 0.09885),
    ],
)
def test_sigma_eq_is_the_published_pixel_noise(name: str, t: int, sigma_eq: float) -> None:
    level = get_schedule(name).level(t)
    assert level.sigma_eq == pytest.approx(sigma_eq, abs=5.1e-6)
    assert level.t_star == t


def test_cosine_4000_has_the_published_abar() -> None:
    assert get_schedule("cosine-4000").level(470).abar == pytest.approx(0.962387, abs=5.1e-7)


def test_edm_has_the_noise_levels_of_equation_5_counted_from_the_clean_end() -> None:
    schedule, rho = get_schedule("edm"), 7
    for t in (1, 2, 300, 500, 999, 1000):
        i = 1000 - t
        sigma = (80 ** (1 / rho) + i / 999 * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
        assert 2 * schedule.level(t).sigma_eq == pytest.approx(sigma, rel=1e-9)
        assert schedule.level(t).abar == pytest.approx(1 / (1 + sigma**2), rel=1e-12)
    assert schedule.level(1).sigma_eq == pytest.approx(0.001, rel=1e-9)
    assert schedule.level(1000).sigma_eq == pytest.approx(40, rel=1e-9)
    # In the middle of the root scale: ((0.002^(1/7) + 80^(1/7))/2)^7, the mean of levels 500 and 501 being its root.
    middle = (
        ((2 * schedule.level(500).sigma_eq) ** (1 / 7) + (2 * schedule.level(501).sigma_eq) ** (1 / 7)) / 2
    ) ** 7
    assert middle == pytest.approx(2.51522, abs=5e-6)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_abar_falls_from_one_and_stays_positive(name: str) -> None:
    schedule = get_schedule(name)
    assert schedule.abar[0] == 1 and schedule.level(0).sigma_eq == 0
    assert (np.diff(schedule.abar) < 0).all() and schedule.abar[-1] > 0
    assert schedule.steps == {"cosine-4000": 4000, "rectified-flow": 999}.get(name, 1000)


@pytest.mark.parametrize("t", [36, 100, 470, 1000])
def test_noised_samples_have_the_marginal_of_the_schedule(t: int) -> None:
    n, z0, abar = 100_000, 0.6, get_schedule("linear-1000").level(t).abar
    noise = torch.randn(n, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    z = forward_noise(torch.full((n,), z0, dtype=torch.float64), abar, noise)
    assert z.mean().item() == pytest.approx(math.sqrt(abar) * z0, abs=4 * math.sqrt((1 - abar) / n))
    assert z.var().item() == pytest.approx(1 - abar, rel=4 * math.sqrt(2 / n))


# methods.md 5.3; its t counts from 0 too.
@pytest.mark.parametrize(
    ("sigma", "linear", "linear_sigma", "cosine", "cosine_sigma"),
    [
        (0.12, 70, 0.12069, 573, 0.12012),
        (0.25, 145, 0.25158, 1158, 0.25012),
        (0.50, 259, 0.50239, 1984, 0.50031),
        (0.75, 339, 0.75328, 2490, 0.75012),
        (1.00, 396, 1.00024, 2809, 1.00001),
    ],
)
def test_t_for_sigma_matches_the_published_table(
    sigma: float, linear: int, linear_sigma: float, cosine: int, cosine_sigma: float
) -> None:
    for name, index, reached in (("linear-1000", linear, linear_sigma), ("cosine-4000", cosine, cosine_sigma)):
        t = get_schedule(name).t_for_sigma(sigma)
        assert t == index + 1
        assert get_schedule(name).level(t).sigma_eq == pytest.approx(reached, abs=5.1e-6)


@given(st.floats(0.02, 5))
def test_t_for_sigma_on_cosine_4000_rounds_up_the_closed_form_of_densepure(sigma: float) -> None:
    edge = math.asin(math.sin(math.pi / 2.016) / math.sqrt(1 + (2 * sigma) ** 2))
    t = 4000 * (1 - 2 * 1.008 * edge / math.pi)
    assert get_schedule("cosine-4000").t_for_sigma(sigma) in {math.ceil(t - 1e-6), math.ceil(t + 1e-6)}


@given(names, st.floats(-22, 0))
def test_t_for_sigma_is_the_smallest_t_with_enough_noise(name: str, exponent: float) -> None:
    schedule = get_schedule(name)
    sigma = schedule.level(schedule.steps).sigma_eq * 2.0**exponent  # schedules end at .3 to 500
    t = schedule.t_for_sigma(sigma)
    assert schedule.level(t - 1).sigma_eq < sigma <= schedule.level(t).sigma_eq


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_sigma_eq_of_every_level_leads_back_to_its_t(name: str) -> None:
    schedule = get_schedule(name)
    assert [schedule.t_for_sigma(schedule.level(t).sigma_eq) for t in range(1, schedule.steps + 1)] == list(
        range(1, schedule.steps + 1)
    )


@given(names, st.integers().filter(lambda t: not 0 <= t <= 4000))
def test_a_t_off_the_schedule_is_refused(name: str, t: int) -> None:
    with pytest.raises(InvalidInput, match=rf"t_star = {t} is not on schedule '{name}'"):
        get_schedule(name).level(t)


def test_the_first_t_past_the_end_is_refused_and_the_last_is_not() -> None:
    schedule = get_schedule("linear-1000")
    assert schedule.level(1000).t_star == 1000
    with pytest.raises(InvalidInput, match="steps 0 to 1000"):
        schedule.level(1001)


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.nan, math.inf, 78.71])
def test_a_sigma_off_the_schedule_is_refused_with_its_reach(sigma: float) -> None:
    with pytest.raises(InvalidInput, match=r"reaches from above 0 to 78\.7"):
        get_schedule("linear-1000").t_for_sigma(sigma)


def test_an_unknown_schedule_names_the_nearest_and_all() -> None:
    listed = "cosine-4000, edm, flowpure, linear-1000, rectified-flow, sub-vp, ve, vp-continuous"
    with pytest.raises(InvalidInput, match=rf"did you mean 'cosine-4000'\?.*{listed}\."):
        get_schedule("cosine-400")
