"""Settings of the authors' code, replayed: their loops written out with the same noise, step by step."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from mixtures import gaussian_slope
from torch import Tensor

from defense import DiffPureConfig, DiffusersConfig, GaussianMixtureDenoiser, InvalidInput, Omega, get_schedule
from defense.purifiers import (
    DensePureConfig,
    Diffusion,
    GDMPConfig,
    GradualNoiseConfig,
    OneShotConfig,
    PurifierConfig,
    SequenceConfig,
    SimilarityGuidance,
)
from defense.samplers import Sampler
from defense.spec import Reading

LINEAR, CONTINUOUS, COSINE = (
    DiffusersConfig(schedule=name, path="unet") for name in ("linear-1000", "vp-continuous", "cosine-4000")
)
BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHAS_CUMPROD = np.cumprod(1 - BETAS)
KEYS = Omega.of("spec", 0, "judge", [4, 7])


def images() -> Tensor:
    return torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def oracle(schedule: str) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(get_schedule(schedule), [0.3, 0.7], [-0.6, 0.5], [0.1, 0.15])


def config(kind: type[PurifierConfig], denoiser: DiffusersConfig = LINEAR, **fields: Any) -> Any:
    return kind(denoiser=denoiser, schedule=denoiser.schedule, **fields)


@pytest.mark.parametrize(
    ("kind", "fields", "clips"),
    [
        (DiffPureConfig, {"t_star": 100}, False),
        (DiffPureConfig, {"t_star": 100, "form": "sde"}, False),
        (GradualNoiseConfig, {}, False),
        (GDMPConfig, {"t_star": 36}, True),
        (OneShotConfig, {"t_star": 100}, True),
        (DensePureConfig, {"t_star": 100}, True),
    ],
)
def test_the_predicted_image_is_clamped_where_the_authors_clamp_it(
    kind: type[PurifierConfig], fields: dict[str, Any], clips: bool
) -> None:
    assert config(kind, **fields).clip_denoised is clips


@pytest.mark.parametrize("steps", [36, 6])
def test_gdmp_is_the_authors_loop(steps: int) -> None:
    purifier = config(GDMPConfig, t_star=36, steps=steps, rounds=2, b_ref=2)
    model, x, scale = oracle("linear-1000"), images(), 100.0
    guidance = SimilarityGuidance("mse", scale, 2, 8.0)
    found = Diffusion(model, [purifier.sampler()] * 2, guidance=guidance)(x, KEYS)

    adversarial = 2 * x - 1
    levels = [round(36 * (steps - i) / steps) for i in range(steps + 1)]
    abar = {0: 1.0} | {t: float(ALPHAS_CUMPROD[t - 1]) for t in range(1, 38)}
    state = adversarial
    for turn in range(2):
        noise = KEYS.normal("forward", turn, x)
        state = math.sqrt(ALPHAS_CUMPROD[36]) * state + math.sqrt(1 - ALPHAS_CUMPROD[36]) * noise
        for i, (t, s) in enumerate(pairwise(levels)):
            key = turn * 1001 + t
            # Their index t - 1 is level t: the mean of the batch of two, of -MSE, times their scale.
            target = math.sqrt(abar[t]) * adversarial + math.sqrt(1 - abar[t]) * KEYS.normal("guidance", key, x)
            slope = -2 * (state - target) / (2 * 9)
            slope = slope * math.sqrt(1 - abar[t]) / ((2 * 8 / 255) / 3 / scale * math.sqrt(abar[t]))
            eps = model(state, t)
            clean = ((state - math.sqrt(1 - abar[t]) * eps) / math.sqrt(abar[t])).clamp(-1, 1)
            beta = 1 - abar[t] / abar[s]
            mean = math.sqrt(abar[s]) * beta / (1 - abar[t]) * clean
            mean = mean + (1 - abar[s]) * math.sqrt(abar[t] / abar[s]) / (1 - abar[t]) * state
            variance = beta
            if s == 0:  # their "fixedlarge" begins with the posterior variance of the second step
                before, after = levels[i - 1], t
                variance = (1 - abar[before] / abar[after]) * (1 - abar[after]) / (1 - abar[before])
            mean = mean + variance * slope
            state = mean + (math.sqrt(variance) * KEYS.normal("reverse", key, x) if s else 0)
    torch.testing.assert_close(found, (state + 1) / 2, rtol=0, atol=1e-9)


def test_the_last_gain_of_gdmp_on_all_levels_is_a_number_of_the_authors_table() -> None:
    eps = torch.zeros(1)
    sampler = config(GDMPConfig, t_star=36).sampler()
    posterior = BETAS[1] * (1 - ALPHAS_CUMPROD[0]) / (1 - ALPHAS_CUMPROD[1])
    last, before = sampler.transition(35, eps, eps), sampler.transition(34, eps, eps)
    assert last.gain == pytest.approx(posterior, rel=1e-9) and last.std == 0
    assert before.gain == pytest.approx(BETAS[1], rel=1e-9)
    own = config(GDMPConfig, t_star=36, last_gain="own").sampler().transition(35, eps, eps)
    assert own.gain == pytest.approx(BETAS[0], rel=1e-9)
    assert own.gain / last.gain == pytest.approx(1.83, abs=0.01)


def authors_euler(model: GaussianMixtureDenoiser, x: Tensor, t_star: int, flow: bool, above: int) -> Tensor:
    """The authors' integration with steps of 1e-3, in their time, which runs from 1 - t* to 1 - 1e-5."""
    a = ALPHAS_CUMPROD[t_star - 1]
    state = math.sqrt(a) * (2 * x - 1) + math.sqrt(1 - a) * KEYS.normal("forward", 0, x)
    for i in range(t_star):
        now, then = 1 - t_star / 1000 + i / 1000, min(1 - t_star / 1000 + (i + 1) / 1000, 1 - 1e-5)
        t, dt = 1 - now, then - now
        beta = 0.1 + t * (20 - 0.1)
        level = t_star - i
        score = -model(state, level + above) / math.sqrt(1 - math.exp(-0.5 * 19.9 * t * t - 0.1 * t))
        share = 0.5 if flow else 1.0
        state = state + (0.5 * beta * state + share * beta * score) * dt
        if not flow:
            state = state + math.sqrt(beta) * math.sqrt(dt) * KEYS.normal("reverse", level, x)
    return (state + 1) / 2


@pytest.mark.parametrize(("denoiser", "above"), [(LINEAR, 1), (CONTINUOUS, 0)])
@pytest.mark.parametrize("form", ["sde", "ode"])
def test_diffpure_in_continuous_time_is_the_authors_loop(denoiser: DiffusersConfig, above: int, form: str) -> None:
    purifier = config(DiffPureConfig, denoiser, t_star=40, form=form)
    assert purifier.time == "continuous"
    model, x = oracle(denoiser.schedule), images()
    found = Diffusion(model, [purifier.sampler()])(x, KEYS)
    torch.testing.assert_close(found, authors_euler(model, x, 40, form == "ode", above), rtol=0, atol=1e-10)
    own = config(DiffPureConfig, denoiser, t_star=40, form=form, time="schedule")
    apart = (Diffusion(model, [own.sampler()])(x, KEYS) - found).abs().max()
    assert 1e-4 < apart < 0.05, "the two times are near each other, and not the same"


@pytest.mark.parametrize("steps", [100, 10])
@pytest.mark.parametrize("form", ["sde", "ode"])
def test_autograd_through_continuous_time_is_the_product_of_the_step_coefficients(steps: int, form: str) -> None:
    sampler = config(DiffPureConfig, CONTINUOUS, t_star=100, steps=steps, form=form).sampler()
    model = GaussianMixtureDenoiser.gaussian(get_schedule("vp-continuous"), 0.25)
    x = images().requires_grad_()
    (slope,) = torch.autograd.grad(Diffusion(model, [sampler])(x, KEYS).sum(), x)
    product, share = math.sqrt(ALPHAS_CUMPROD[99]), 1.0 if form == "sde" else 0.5
    for t, s in pairwise(sampler.grid):
        abar = math.exp(-0.1 * t / 1000 - 9.95 * (t / 1000) ** 2)
        delta = (0.1 + 19.9 * t / 1000) * (t / 1000 - max(s / 1000, 1e-5))
        product *= 1 + delta / 2 - share * delta / (abar * 0.25 + 1 - abar)
    torch.testing.assert_close(slope, torch.full_like(slope, product), rtol=0, atol=1e-12)
    if (steps, form) == (100, "sde"):
        assert product == pytest.approx(gaussian_slope(float(ALPHAS_CUMPROD[99]), 0.25), abs=0.005)


def test_fewer_steps_keep_the_level_to_which_is_noised() -> None:
    chains: list[Sampler] = [
        config(GDMPConfig, t_star=36).sampler(),
        config(DiffPureConfig, CONTINUOUS, t_star=100, form="sde").sampler(),
    ]
    for sampler in chains:
        short = sampler.respaced(4)
        assert len(short) == 4 and short.forward_abar == sampler.forward_abar != short.abar(0)
        assert type(short) is type(sampler) and short.abar(0) == sampler.abar(0)


def test_other_forms_and_schedules_have_no_continuous_time_by_default() -> None:
    assert config(DiffPureConfig, COSINE, t_star=100, form="sde").time == "schedule"
    assert {config(DiffPureConfig, t_star=100, form=form).time for form in ("ddpm", "ddim", "ldsde")} == {"schedule"}


@pytest.mark.parametrize(
    ("kind", "fields", "new"),
    [
        (DiffPureConfig, {"t_star": 100, "form": "sde", "time": "schedule", "clip_denoised": True}, {"time"}),
        (GDMPConfig, {"t_star": 36, "forward_offset": 0, "last_gain": "own"}, {"forward_offset", "last_gain"}),
    ],
)
def test_settings_of_before_have_the_ids_of_before(
    kind: type[PurifierConfig], fields: dict[str, Any], new: set[str]
) -> None:
    old = config(kind, **fields)
    assert not new & set(old.identity()) and old.identity()["clip_denoised"] is True
    published = config(kind, **{k: v for k, v in fields.items() if k not in (*new, "clip_denoised")})
    assert new <= set(published.identity()) and published.id != old.id
    assert kind.model_validate({**old.as_entry(), "denoiser": LINEAR}).id == old.id
    said = {**old.identity(), "denoiser": LINEAR}
    assert kind.model_validate(said, context=Reading(identity=True)) == old
    inside = SequenceConfig(stages=(old,))
    again = SequenceConfig.model_validate({**inside.identity(), "stages": [said]}, context=Reading(identity=True))
    assert again == inside, "specs inside are read alike"


@pytest.mark.parametrize(
    ("kind", "denoiser", "fields", "message"),
    [
        (DiffPureConfig, LINEAR, {"t_star": 9, "time": "continuous"}, "belongs to the forms sde and ode; form ddpm"),
        (
            DiffPureConfig,
            COSINE,
            {"t_star": 9, "form": "ode", "time": "continuous"},
            "'cosine-4000' does not discret",
        ),
        (DiffPureConfig, LINEAR, {"t_star": 1000, "form": "sde"}, "asks the network at level 1001 of 'linear-1000'"),
        (GDMPConfig, LINEAR, {"t_star": 1000}, "forward_offset = 1 noise beyond the 1000 steps"),
        (GDMPConfig, LINEAR, {"t_star": 9, "variance": "small", "last_gain": "posterior"}, "with variance large"),
        (GDMPConfig, LINEAR, {"t_star": 9, "form": "sde", "last_gain": "posterior"}, "belongs to form ddpm"),
        (GDMPConfig, LINEAR, {"t_star": 9, "forward_offset": -1}, "forward_offset"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    kind: type[PurifierConfig], denoiser: DiffusersConfig, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        config(kind, denoiser, **fields)
