"""Samplers against closed forms: time grids, a mixture of Gaussians, a Gaussian, other forms of the same update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixtures import (
    FLOOR,
    SAMPLES,
    TOY,
    Noise,
    ddim,
    fresh,
    gaussian_slope,
    gaussian_variance,
    law,
    no_noise,
    reverse,
)
from scipy.stats import wasserstein_distance
from torch import Tensor

from defense import DiffPure, GaussianMixtureDenoiser, InvalidInput, Omega, Schedule, get_schedule
from defense.samplers import (
    Ancestral,
    EpsModel,
    Variance,
    forward_noise,
    predicted_z0,
    time_grid,
)
from defense.schedules import vp_abar
from defense.torchvision_cpu import allow_torchvision_import


def ancestral(
    model: EpsModel, z: Tensor, grid: list[int], noise: Noise, variance: Variance = "small", clip: bool = False
) -> Tensor:
    return reverse(model, z, Ancestral(model.schedule, grid, variance=variance, clip=clip), noise)


class TestTimeGrid:
    @given(st.integers(1, 4000).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, t))))
    def test_it_falls_strictly_from_t_star_to_zero_in_the_steps_asked_for(self, sizes: tuple[int, int]) -> None:
        t_star, steps = sizes
        grid = time_grid(t_star, steps)
        assert grid[0] == t_star and grid[-1] == 0 and len(grid) == steps + 1
        gaps = -np.diff(grid)
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 2
        assert np.abs(np.array(grid) - np.linspace(t_star, 0, steps + 1)).max() <= 0.5 + 1e-9

    def test_it_visits_every_level_by_default(self) -> None:
        assert time_grid(4) == [4, 3, 2, 1, 0]
        assert time_grid(100, 4) == [100, 75, 50, 25, 0]

    @pytest.mark.parametrize(("t_star", "steps"), [(100, 101), (100, 0), (100, -1), (0, None)])
    def test_more_steps_than_levels_or_none_are_refused(self, t_star: int, steps: int | None) -> None:
        with pytest.raises(InvalidInput, match=f"does not fit t_star = {t_star}"):
            time_grid(t_star, steps)


class TestMixture:
    """methods.md 9.3 and 9.4."""

    def test_the_oracle_predicts_the_score_of_the_noised_law(self, mixture: GaussianMixtureDenoiser) -> None:
        abar = mixture.schedule.level(100).abar
        z = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
        density = torch.zeros_like(z)
        for weight, mean, std in zip(mixture.weights, mixture.means, mixture.stds, strict=True):
            var = abar * std**2 + 1 - abar
            density = density + weight * (-((z - math.sqrt(abar) * mean) ** 2) / (2 * var)).exp() / math.sqrt(var)
        (score,) = torch.autograd.grad(density.log().sum(), z)
        torch.testing.assert_close(mixture(z, 100), -math.sqrt(1 - abar) * score, rtol=1e-10, atol=1e-10)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("t", "variance", "listed"),
        [
            (100, "small", 0.0047),
            (100, "large", 0.0009),
            pytest.param(470, "small", 0.0033, marks=pytest.mark.nightly),
            pytest.param(470, "large", 0.0013, marks=pytest.mark.nightly),
            pytest.param(1000, "small", 0.0028, marks=pytest.mark.slow),
            pytest.param(1000, "large", 0.0012, marks=pytest.mark.nightly),
        ],
    )
    def test_noising_and_reversing_returns_the_law_of_the_data(
        self, mixture: GaussianMixtureDenoiser, t: int, variance: Variance, listed: float
    ) -> None:
        # A quarter of the samples where the chain is long: sampling errors are twice as large.
        samples, times = (SAMPLES // 4, 2) if t > 100 else (SAMPLES, 1)
        data, noise = law(mixture, samples, 0).float(), fresh(t)
        z = forward_noise(data, mixture.schedule.level(t).abar, noise(0, data))
        out = ancestral(mixture, z, time_grid(t), noise, variance=variance)
        assert wasserstein_distance(out, data) < listed + times * FLOOR
        assert out.std().item() == pytest.approx(0.5218, abs=times * 0.005)
        assert (out > 0).float().mean().item() == pytest.approx(0.700, abs=times * 0.005)

    # DDIM is deterministic, so exact quantiles show the bias of the solver alone; methods.md lists .002, .015, .041
    # from samples (its 50 steps lie on another grid). A coarse grid is visibly biased: a regression, not an equality.
    @pytest.mark.parametrize(("t", "steps", "bias"), [(1000, 1000, 0.0011), (1000, 50, 0.0191), (470, 10, 0.0407)])
    def test_ddim_has_the_known_bias(self, mixture: GaussianMixtureDenoiser, t: int, steps: int, bias: float) -> None:
        out = ddim(mixture, law(mixture, 2000, t), time_grid(t, steps), no_noise)
        assert wasserstein_distance(out, law(mixture, 2000, 0)) == pytest.approx(bias, rel=0.1)

    @pytest.mark.slow
    def test_reversing_samples_the_posterior_of_the_clean_image(self, mixture: GaussianMixtureDenoiser) -> None:
        noise, abar = fresh(4), mixture.schedule.level(100).abar
        x = torch.zeros(SAMPLES)
        z = forward_noise(x, abar, noise(0, x))
        positive = (ancestral(mixture, z, time_grid(100), noise) > 0).double().mean().item()
        # The mean over the forward noise of the second component's responsibility, by quadrature.
        nodes, weights = np.polynomial.hermite_e.hermegauss(100)
        share = mixture.responsibilities(torch.from_numpy(nodes) * math.sqrt(1 - abar), 100)[:, 1].numpy()
        exact = float(share @ weights / weights.sum())
        assert exact == pytest.approx(0.657, abs=0.0015)
        assert positive == pytest.approx(0.658, abs=0.005)
        assert positive == pytest.approx(exact, abs=0.006)

    @pytest.mark.slow
    def test_reversing_one_state_splits_by_its_responsibilities(self, mixture: GaussianMixtureDenoiser) -> None:
        out = ancestral(mixture, torch.zeros(SAMPLES), time_grid(100), fresh(5), variance="large")
        exact = mixture.responsibilities(torch.zeros(1, dtype=torch.float64), 100)[0, 1].item()
        assert (out > 0).double().mean().item() == pytest.approx(exact, abs=0.006)


def coefficients(schedule: Schedule, grid: list[int], s2: float) -> Iterator[tuple[float, float, float]]:
    """Per step, for data N(0, s2): z_s = c z_t + noise, as (c, variance small, variance large); methods.md 0."""
    for t, s in pairwise(grid):
        a, a_s = float(schedule.abar[t]), float(schedule.abar[s])
        alpha, beta = a / a_s, 1 - a / a_s
        z0hat = math.sqrt(a) * s2 / (a * s2 + 1 - a)
        c = math.sqrt(a_s) * beta / (1 - a) * z0hat + math.sqrt(alpha) * (1 - a_s) / (1 - a)
        yield c, beta * (1 - a_s) / (1 - a), beta if s else 0.0


def expected_response(
    schedule: Schedule, t_star: int, grid: list[int], s2: float, variance: Variance
) -> tuple[float, float]:
    """Slope and variance of forward-then-reverse at finite steps."""
    abar = float(schedule.abar[t_star])
    slope, var = math.sqrt(abar), 1 - abar
    for c, small, large in coefficients(schedule, grid, s2):
        slope, var = slope * c, var * c**2 + (large if variance == "large" else small)
    return slope, var


def measured_response(schedule: Schedule, t_star: int, s2: float, variance: Variance) -> tuple[float, float]:
    """The same from the sampler itself, by the derivatives with respect to the input and to every noise."""
    taps: list[Tensor] = []

    def tap(t: int, like: Tensor) -> Tensor:
        taps.append(torch.zeros_like(like, requires_grad=True))
        return taps[-1]

    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    z = forward_noise(x, float(schedule.abar[t_star]), tap(t_star, x))
    out = ancestral(GaussianMixtureDenoiser.gaussian(schedule, s2), z, time_grid(t_star), tap, variance=variance)
    slope, *shares = torch.autograd.grad(out, [x, *taps])
    return slope.item(), sum(share.item() ** 2 for share in shares)


class TestGaussian:
    """methods.md 9.5."""

    @pytest.mark.parametrize(("t", "s2", "k", "var"), TOY)
    def test_the_formulas_give_the_listed_values(self, t: float, s2: float, k: float, var: float) -> None:
        abar = float(vp_abar(t))
        assert gaussian_slope(abar, s2) == pytest.approx(k, abs=5.1e-7)
        assert gaussian_variance(abar, s2) == pytest.approx(var, abs=5.1e-7)

    @pytest.mark.slow
    @pytest.mark.parametrize("variance", ["small", "large"])
    @pytest.mark.parametrize(("t", "s2", "k", "var"), TOY)
    def test_small_steps_converge_to_the_listed_slope_and_variance(
        self, t: float, s2: float, k: float, var: float, variance: Variance
    ) -> None:
        coarse, fine = (
            measured_response(Schedule("vp", vp_abar(np.arange(n + 1) / n)), round(t * n), s2, variance)
            for n in (500, 2000)
        )
        assert coarse[0] == pytest.approx(k, abs=1e-6) and fine[0] == pytest.approx(k, abs=1e-6)
        # A quarter of the step leaves about a quarter of the error (h log h for the small variance).
        assert abs(fine[1] - var) < 0.32 * abs(coarse[1] - var)
        assert fine[1] == pytest.approx(var, rel=0.015)

    @pytest.mark.parametrize("variance", ["small", "large"])
    @pytest.mark.parametrize(
        ("schedule", "t_star"), [("vp-continuous", 100), ("linear-1000", 470), ("cosine-4000", 30)]
    )
    def test_the_response_at_finite_steps_is_exact(self, schedule: str, t_star: int, variance: Variance) -> None:
        given_schedule = get_schedule(schedule)
        measured = measured_response(given_schedule, t_star, 0.25, variance)
        assert measured == pytest.approx(
            expected_response(given_schedule, t_star, time_grid(t_star), 0.25, variance), abs=1e-12, rel=0
        )

    @pytest.mark.parametrize("steps", [None, 25, 7, 1])
    @pytest.mark.parametrize("s2", [0.25, 1.0])
    def test_autograd_through_diffpure_is_the_product_of_the_step_coefficients(
        self, s2: float, steps: int | None
    ) -> None:
        schedule = get_schedule("vp-continuous")
        purifier = DiffPure(GaussianMixtureDenoiser.gaussian(schedule, s2), 100, steps=steps, clip_denoised=False)
        x = torch.rand(
            2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
        )
        (slope,) = torch.autograd.grad(purifier(x, Omega.of("toy", 0, "judge", [5, 9])).sum(), x)
        product, _ = expected_response(schedule, 100, time_grid(100, steps), s2, "small")
        torch.testing.assert_close(slope, torch.full_like(slope, product), rtol=0, atol=1e-12)
        assert product == pytest.approx(gaussian_slope(schedule.level(100).abar, s2), abs=1e-9)

    @pytest.mark.slow
    @pytest.mark.parametrize("variance", ["small", "large"])
    def test_many_draws_of_diffpure_have_the_mean_and_variance(self, variance: Variance) -> None:
        schedule = get_schedule("vp-continuous")
        purifier = DiffPure(
            GaussianMixtureDenoiser.gaussian(schedule, 0.25), 100, variance=variance, clip_denoised=False
        )
        omega = Omega.of("toy", 0, "judge", range(100))
        z = 2 * purifier(torch.full((100, SAMPLES // 100), 0.8), omega) - 1
        k, var = expected_response(schedule, 100, time_grid(100), 0.25, variance)
        assert z.mean().item() == pytest.approx(k * 0.6, abs=4 * math.sqrt(var / SAMPLES))
        assert z.var().item() == pytest.approx(var, rel=4 * math.sqrt(2 / SAMPLES))
        assert var == pytest.approx(0.133179, rel=0.025)


class TestAgainstOtherForms:
    @pytest.mark.parametrize("clip", [False, True])
    @pytest.mark.parametrize(("t_star", "steps"), [(100, None), (470, 10), (1000, 3)])
    def test_ddim_with_full_noise_is_ancestral_small(
        self, mixture: GaussianMixtureDenoiser, t_star: int, steps: int | None, clip: bool
    ) -> None:
        z, grid = torch.linspace(-2, 2, 101, dtype=torch.float64), time_grid(t_star, steps)
        ours = ddim(mixture, z, grid, fresh(1), eta=1.0, clip=clip)
        theirs = ancestral(mixture, z, grid, fresh(1), variance="small", clip=clip)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("clip", [False, True])
    # Respaced, diffusers adds noise at the last step too: 1e-10 of it if small, visibly if large.
    @pytest.mark.parametrize(("steps", "variance"), [(200, "small"), (200, "large"), (10, "small")])
    def test_ancestral_is_the_ddpm_scheduler_of_diffusers(
        self, mixture: GaussianMixtureDenoiser, steps: int, variance: Variance, clip: bool
    ) -> None:
        allow_torchvision_import()
        from diffusers import DDPMScheduler

        grid = time_grid(200, steps)
        scheduler = DDPMScheduler(
            beta_schedule="linear",
            beta_start=1e-4,
            beta_end=0.02,
            variance_type=f"fixed_{variance}",
            clip_sample=clip,
        )
        scheduler.set_timesteps(timesteps=[t - 1 for t in grid[:-1]])
        scheduler.alphas_cumprod = torch.from_numpy(mixture.schedule.abar[1:])
        scheduler.one = torch.tensor(1.0, dtype=torch.float64)
        start = torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]
        z, generator = start, torch.Generator().manual_seed(2)
        for index in scheduler.timesteps:
            z = scheduler.step(mixture(z, int(index) + 1), index, z, generator=generator).prev_sample
        ours = ancestral(mixture, start, grid, fresh(2), variance=variance, clip=clip)
        torch.testing.assert_close(ours, z, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("eta", [0.0, 0.5])
    def test_ddim_is_the_ddim_scheduler_of_diffusers(self, mixture: GaussianMixtureDenoiser, eta: float) -> None:
        allow_torchvision_import()
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=False)
        scheduler.set_timesteps(50)
        scheduler.alphas_cumprod = torch.from_numpy(mixture.schedule.abar[1:])
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
        start = torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]
        z, generator = start, torch.Generator().manual_seed(3)
        for index in scheduler.timesteps:
            z = scheduler.step(mixture(z, int(index) + 1), index, z, eta=eta, generator=generator).prev_sample
        ours = ddim(mixture, start, time_grid(1000, 50), fresh(3), eta=eta)
        torch.testing.assert_close(ours, z, rtol=0, atol=1e-10)

    @given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.01, 0.99))
    def test_predicted_z0_undoes_forward_noise_and_clips_to_the_image_range(
        self, z0: float, noise: float, abar: float
    ) -> None:
        clean, eps = torch.tensor(z0, dtype=torch.float64), torch.tensor(noise, dtype=torch.float64)
        z = forward_noise(clean, abar, eps)
        assert predicted_z0(z, eps, abar, clip=False).item() == pytest.approx(z0, abs=1e-12)
        assert predicted_z0(z, eps, abar, clip=True).item() == pytest.approx(min(max(z0, -1), 1), abs=1e-12)
