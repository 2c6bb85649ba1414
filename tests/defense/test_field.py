"""Defences of 2023 to 2026: golden numbers, and the authors' loops written out with the same noise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from test_guidance import NET, SLOPE, moment, slope
from torch import Tensor, nn
from toys import CLASSIFIER, CORRECTED, DENOISER, GUIDED, LINEAR, OTHERS, gradient, images, loss, omega, relative

from defense import InvalidInput, purify
from defense.corrections import Estimate
from defense.denoisers.oracle import OracleConfig
from defense.purifiers import (
    ConfidenceGuidance,
    ContrastiveGuidance,
    CoupConfig,
    DiffAPConfig,
    DiffPureConfig,
    Diffusion,
    FreqPureConfig,
    FreshNoise,
    Heterogeneous,
    HeterogeneousConfig,
    MediatorPull,
    MimicDiffusionConfig,
    OSGDConfig,
    SignPull,
)
from defense.purifiers.freqpure import disc, exchange
from defense.purifiers.heterogeneous import attention
from defense.samplers import DDIM, time_grid

OMEGA = omega(4, 9, 2)
ORACLE = OracleConfig(schedule="linear-1000")
ABAR = LINEAR.abar


def at(t: int) -> float:
    return float(ABAR[t])


def noise(kind: str, key: int) -> Tensor:
    return OMEGA.normal(kind, key, images())


def ddpm(z0: Tensor, eps: Tensor, t: int, s: int, key: int) -> Tensor:
    """Their update: the noise of DDPM, and the predicted noise for the rest."""
    c1 = math.sqrt((1 - at(t) / at(s)) * (1 - at(s)) / (1 - at(t)))
    c2 = math.sqrt(max(1 - at(s) - c1**2, 0))
    return math.sqrt(at(s)) * z0 + c1 * noise("reverse", key) + c2 * eps


class TestFreqPure:
    @pytest.mark.parametrize(("radius", "count"), [(10, 317), (8, 197)])
    def test_the_disc_holds_as_many_frequencies_as_theirs(self, radius: int, count: int) -> None:
        assert int(disc(32, 32, radius).sum()) == count
        u = np.arange(-16, 16)
        theirs = np.sqrt(u[:, None] ** 2 + u[None] ** 2) <= radius
        assert np.array_equal(np.fft.fftshift(disc(32, 32, radius).numpy()), theirs)

    @pytest.mark.parametrize("name", ["freqpure replace", "freqpure radii", "freqpure phase"])
    def test_it_is_the_authors_loop(self, name: str) -> None:
        purifier, x = CORRECTED[name], images()
        assert isinstance(purifier, Diffusion)
        radii = (2, 3) if name.endswith("radii") else (2, 2)
        masks = [np.fft.fftshift(disc(8, 8, radius).numpy()) for radius in radii]
        z = math.sqrt(at(400)) * (2 * x - 1) + math.sqrt(1 - at(400)) * noise("forward", 0)
        for t, s in pairwise(time_grid(400, 6)):
            eps = DENOISER(z, t)
            clean = (z - math.sqrt(1 - at(t)) * eps) / math.sqrt(at(t))
            noised = math.sqrt(at(50)) * (2 * x - 1) + math.sqrt(1 - at(50)) * noise("frequency", t)
            shot = (noised - math.sqrt(1 - at(50)) * DENOISER(noised, 50)) / math.sqrt(at(50))
            spectra = [
                np.fft.fftshift(np.fft.fft2(np.clip((image.numpy() + 1) / 2 * 255, 0, 255)), axes=(-2, -1))
                for image in (clean, shot)
            ]
            size = np.where(masks[0], np.abs(spectra[1]), np.abs(spectra[0]))
            own, theirs = np.angle(spectra[0]), np.angle(spectra[1])
            if name.endswith("phase"):
                apart = (own - theirs + np.pi) % (2 * np.pi) - np.pi
                theirs = theirs + np.clip(apart, -0.3, 0.3)
            mixed = size * np.exp(1j * np.where(masks[1], theirs, own))
            back = np.clip(np.abs(np.fft.ifft2(np.fft.ifftshift(mixed, axes=(-2, -1)))), 0, 255) / 255
            z = ddpm(torch.from_numpy(2 * back - 1), eps, t, s, t)
        torch.testing.assert_close(purifier(x, OMEGA), (z + 1) / 2, rtol=0, atol=1e-8)

    def test_a_phase_that_may_be_any_keeps_its_own(self) -> None:
        a, b = images(2), images(3)[:2]
        all_of_them, none = disc(8, 8, 99), disc(8, 8, 0) & ~disc(8, 8, 99)
        torch.testing.assert_close(exchange(a, b, none, all_of_them, math.pi + 0.1), a, rtol=0, atol=1e-12)
        torch.testing.assert_close(exchange(a, b, all_of_them, all_of_them, 0.0), b, rtol=0, atol=1e-12)

    def test_black_images_have_a_gradient(self) -> None:
        x = torch.zeros(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
        out = exchange(x, images(1), disc(8, 8, 2), disc(8, 8, 3), 0.3)
        (found,) = torch.autograd.grad(out.sum(), x)
        assert found.isfinite().all()

    def test_a_disc_that_holds_everything_is_refused_with_the_images(self) -> None:
        config = FreqPureConfig(denoiser=ORACLE)  # type: ignore[call-arg]
        assert (config.t_star, config.steps, config.evaluations, config.guided) == (1000, 100, 200, True)
        config.check_images((3, 32, 32))
        with pytest.raises(InvalidInput, match="radius 10 holds every frequency of images of"):
            config.check_images((1, 8, 8))


class TestDiffAP:
    @pytest.mark.parametrize(("b_ref", "factor"), [(1, 19.5), (16, 1.22)])
    def test_the_pull_of_the_published_setting(self, b_ref: int, factor: float) -> None:
        z0 = torch.rand(1, 3, 32, 32, dtype=torch.float64)
        estimate = Estimate(z0, 1, 1.0, 1.0, torch.full_like(z0, 0.5), OMEGA, 0, DENOISER)
        torch.testing.assert_close(
            MediatorPull(30000, b_ref)(estimate), z0 - factor * z0, rtol=0, atol=0.04 * factor / 10
        )

    def test_the_variances_of_the_published_noise_are_less_than_those_of_the_levels(self) -> None:
        grid, one = time_grid(1000, 5), torch.zeros(1)
        of = {
            how: [float(FreshNoise(LINEAR, grid, renoise=how).from_denoised(i, one, one).std) ** 2 for i in range(4)]  # type: ignore[arg-type]
            for how in ("published", "exact")
        }
        assert of["published"] == pytest.approx([0.972, 0.918, 0.717, 0.298], abs=6e-4)
        assert of["exact"] == pytest.approx([0.998, 0.974, 0.805, 0.341], abs=6e-4)

    @pytest.mark.parametrize("renoise", ["published", "exact"])
    def test_it_is_the_authors_loop(self, renoise: str) -> None:
        x = images()
        z = math.sqrt(at(400)) * (2 * x - 1) + math.sqrt(1 - at(400)) * noise("forward", 0)
        for t, s in pairwise(time_grid(400, 5)):
            clean = (z - math.sqrt(1 - at(t)) * DENOISER(z, t)) / math.sqrt(at(t))
            clean = clean.requires_grad_()
            error = nn.functional.mse_loss(clean, 2 * x - 1)  # over the batch of 3, which b_ref = 2000 scales to
            (pull,) = torch.autograd.grad(error, clean)
            clean = (clean - 30000 * math.sqrt(at(t)) * pull * 3 / 2000).detach()
            std = math.sqrt((1 - at(t) / at(s)) * (1 - at(s)) / (1 - at(t)))
            std = std if renoise == "published" else math.sqrt(1 - at(s))
            z = math.sqrt(at(s)) * clean + std * noise("reverse", t)
        torch.testing.assert_close(CORRECTED[f"diff-ap {renoise}"](x, OMEGA), (z + 1) / 2, rtol=0, atol=1e-10)

    def test_its_settings(self) -> None:
        config = DiffAPConfig(denoiser=ORACLE)  # type: ignore[call-arg]
        assert (config.t_star, config.steps, config.b_ref, config.renoise) == (1000, 5, 16, "published")
        assert config.guided and not config.model_copy(update={"scale": 0.0}).guided


class TestMimicDiffusion:
    def chain(self, soft: bool = False) -> Diffusion:
        sampler = DDIM(LINEAR, time_grid(1000, 20), eta=1.0, clip=True)
        return Diffusion(
            DENOISER, [sampler], correction=SignPull(3000.0, 700, (110, 790), soft=soft), from_noise=True
        )

    def test_it_is_the_authors_loop_with_both_their_guidances(self) -> None:
        x = images()
        z = noise("forward", 0)
        up = nn.Upsample(scale_factor=4)
        for t, s in pairwise(time_grid(1000, 20)):
            eps = DENOISER(z, t)
            z = z.requires_grad_()
            free = (z - math.sqrt(1 - at(t)) * eps) / math.sqrt(at(t))
            clean, shift = free.detach().clamp(-1, 1), torch.zeros_like(z)
            if 110 <= t <= 790:
                # Their gradient at the clamped image, which their code does not have: sign at it, slope without it.
                held = free + (clean - free).detach()
                one = torch.norm(held - (2 * x - 1), 1, 1).mean()
                enlarged = torch.norm(up(held) - up(2 * x - 1), 1, 1).mean()
                both = [torch.autograd.grad(term, z, retain_graph=True)[0] for term in (one, enlarged)]
                torch.testing.assert_close(both[0], both[1], rtol=1e-9, atol=1e-15)
                shift = 3000 * math.sqrt(at(t)) * (both[0] + both[1]) * 3 / 700
            eps = eps.detach()
            z = (ddpm(clean, eps, t, s, t) - shift).detach()
        torch.testing.assert_close(self.chain()(x, OMEGA), (z + 1) / 2, rtol=0, atol=1e-9)

    def test_it_has_no_derivative_and_what_stands_for_it_is_straight_through(self) -> None:
        chain, x = self.chain(), images()
        with torch.no_grad():
            apart = chain(x + 1e-9, OMEGA) - chain(x, OMEGA)
        assert apart.abs().max() < 1e-12, "the signs have not changed"
        straight = gradient(lambda x: purify(chain, x, OMEGA), x)
        soft = gradient(lambda x: purify(chain, x, OMEGA, "soft"), x)
        assert straight.norm() > 1e-3 and relative(soft, straight) > 1e-3
        assert relative(gradient(lambda x: chain(x, OMEGA), x), straight) < 1e-10
        assert gradient(lambda x: purify(chain, x, OMEGA, "exact-no-guidance-path"), x).abs().max() == 0
        for mode in ("exact", "soft", "exact-no-guidance-path"):
            assert torch.equal(purify(chain, x.clone().requires_grad_(), OMEGA, mode), chain(x, OMEGA))

    def test_levels_without_a_step_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="hold no step of t"):
            MimicDiffusionConfig(denoiser=ORACLE, steps=1)  # type: ignore[call-arg]
        config = MimicDiffusionConfig(denoiser=ORACLE)  # type: ignore[call-arg]
        assert not config.differentiable and config.softens and (config.t_star, config.b_ref) == (1000, 16)


class TestCoup:
    def test_it_is_the_reverse_sde_with_another_score(self) -> None:
        """Their Euler steps from the image itself."""
        x, z = images(), 2 * images() - 1
        for t, s in pairwise(time_grid(100, 10)):
            z = z.detach().requires_grad_()
            confidence = torch.log_softmax(CLASSIFIER((z + 1) / 2), 1).amax(1).sum()
            (up,) = torch.autograd.grad(confidence, z)
            score = -DENOISER(z, t) / math.sqrt(1 - at(t)) + 5 * up
            delta = math.log(at(s) / at(t))
            z = z + delta * (z / 2 + score) + math.sqrt(delta) * noise("reverse", t)
        torch.testing.assert_close(GUIDED["coup"](x, OMEGA), (z.detach() + 1) / 2, rtol=0, atol=1e-10)

    def test_the_potential_is_the_distribution_transfer_s_without_a_distance(self) -> None:
        here = moment()
        value, found = slope(ConfidenceGuidance(NET, 1.0), here)  # type: ignore[arg-type]
        p = NET((here.z.detach() + 1) / 2).softmax(1)
        torch.testing.assert_close(value.detach(), -p.max(1).values.log(), rtol=0, atol=1e-12)
        best = nn.functional.one_hot(p.argmax(1), 4).double()
        torch.testing.assert_close(found, 0.5 * (p - best) @ SLOPE, rtol=0, atol=1e-12)

    def test_its_settings_and_the_field_that_it_shares(self) -> None:
        config = CoupConfig(denoiser=ORACLE, schedule="linear-1000", t_star=100)  # type: ignore[call-arg]
        assert (config.form, config.time, config.forward, config.lam) == ("sde", "continuous", "none", 1.0)
        assert config.noise_level is None and not config.diffuses and config.sampler().forward_abar == 1
        assert config.label() == "coup t*=100 sde from the image"
        old = DiffPureConfig(denoiser=ORACLE, schedule="linear-1000", t_star=100)  # type: ignore[call-arg]
        assert "forward" not in old.identity()
        bare = old.model_copy(update={"forward": "none"})
        assert bare.id != old.id and bare.sampler().forward_abar == 1
        with pytest.raises(InvalidInput, match="ldsde adds no forward noise anyway"):
            DiffPureConfig(denoiser=ORACLE, schedule="linear-1000", t_star=10, form="ldsde", forward="none")  # type: ignore[call-arg]


class TestOSGD:
    def test_it_is_the_authors_three_calls(self) -> None:
        x, abar = images(), at(50)
        z0 = 2 * x - 1

        def noised(image: Tensor, number: int) -> Tensor:
            return math.sqrt(abar) * image + math.sqrt(1 - abar) * noise("forward", number)

        def shot(z: Tensor) -> Tensor:
            return ((z - math.sqrt(1 - abar) * DENOISER(z, 50)) / math.sqrt(abar)).clamp(-1, 1)

        z, other = noised(z0, 1), noised(shot(noised(z0, 0)), 1)
        beta = 1 - abar / at(49)
        mean = math.sqrt(at(49)) * beta / (1 - abar) * shot(z)
        mean = mean + (1 - at(49)) * math.sqrt(abar / at(49)) / (1 - abar) * z
        pulled = mean - 5000 * math.sqrt((1 - abar) / abar) * beta * 2 * (z - other)
        expected = shot(pulled + math.sqrt(beta) * noise("reverse", 50))
        torch.testing.assert_close(OTHERS["osgd"](x, OMEGA), (expected + 1) / 2, rtol=0, atol=1e-10)

    def test_its_level_is_that_of_the_published_schedule(self) -> None:
        config = OSGDConfig(denoiser=OracleConfig(schedule="cosine-4000"))  # type: ignore[call-arg]
        assert config.t_star == 350 and config.evaluations == 3


class TestHeterogeneous:
    def test_it_is_the_loop_with_a_mask(self) -> None:
        chain, x = OTHERS["heterogeneous"], images()
        assert isinstance(chain, Heterogeneous)
        mask = chain.mask(x)
        assert 0 < float(mask.mean()) < 1 and set(mask.unique().tolist()) == {0.0, 1.0}
        z = math.sqrt(at(100)) * (2 * x - 1) + math.sqrt(1 - at(100)) * noise("forward", 0)
        for t, s in pairwise(time_grid(100, 10)):
            if s >= 50:
                outside = math.sqrt(at(t)) * (2 * x - 1) + math.sqrt(1 - at(t)) * noise("outside", t)
                z = mask * z + (1 - mask) * outside
                kept = at(t + 3) / at(t)
                z, t = math.sqrt(kept) * z + math.sqrt(1 - kept) * noise("again", t), t + 3
            eps = DENOISER(z, t)
            z = math.sqrt(at(s)) * (z - math.sqrt(1 - at(t)) * eps) / math.sqrt(at(t)) + math.sqrt(1 - at(s)) * eps
        torch.testing.assert_close(chain(x, OMEGA), (z + 1) / 2, rtol=0, atol=1e-10)

    def test_three_single_steps_are_one(self) -> None:
        product = math.prod(at(t + 1) / at(t) for t in (70, 71, 72))
        assert product == pytest.approx(at(73) / at(70), rel=1e-12)

    def test_attention_is_the_largest_of_the_blocks_scaled_to_one(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).double()
        x = images()
        found = attention(net, x)
        maps = []
        with torch.no_grad():
            for out in (net[:2](x), net[:3](x)):
                energy = out.square().sum(1, keepdim=True)
                low, high = energy.amin((2, 3), keepdim=True), energy.amax((2, 3), keepdim=True)
                scaled = (energy - low) / (high - low)
                maps.append(nn.functional.interpolate(scaled, size=(8, 8), mode="bilinear"))
        torch.testing.assert_close(found.detach(), torch.maximum(*maps), rtol=0, atol=1e-12)
        assert not net[0]._forward_hooks
        with pytest.raises(InvalidInput, match="takes a classifier with feature maps"):
            attention(nn.Sequential(nn.Flatten(), nn.Linear(64, 3).double()), x)

    def test_a_share_of_the_pixels_can_be_asked_for(self) -> None:
        chain = Heterogeneous(DENOISER, CLASSIFIER, 100, 50, 4, top=0.25)
        assert chain.mask(images()).mean((1, 2, 3)).tolist() == pytest.approx([0.25] * 3, abs=0.02)

    def test_the_soft_mask_moves_with_the_image_and_has_the_same_values(self) -> None:
        chain, x = OTHERS["heterogeneous"], images()
        assert torch.equal(purify(chain, x.clone().requires_grad_(), OMEGA, "soft"), chain(x, OMEGA))
        hard, soft = (gradient(lambda x, mode=mode: purify(chain, x, OMEGA, mode), x) for mode in ("exact", "soft"))
        assert relative(soft, hard) > 1e-3

    def test_its_settings(self) -> None:
        config = HeterogeneousConfig(denoiser=ORACLE, schedule="linear-1000", t_star=200)  # type: ignore[call-arg]
        assert (config.t_weak, config.steps, config.again, config.threshold) == (100, 100, 3, 0.9)
        with pytest.raises(InvalidInput, match="nothing would be re-set"):
            HeterogeneousConfig(denoiser=ORACLE, schedule="linear-1000", t_star=200, t_weak=200)  # type: ignore[call-arg]


class TestContrastive:
    def test_the_potential_is_that_of_the_formula(self) -> None:
        here = moment()
        value = ContrastiveGuidance(NET, 3.0, temperature=0.5, negatives=2)(here)  # type: ignore[arg-type]

        def direction(z: Tensor) -> Tensor:
            answer = NET((z + 1) / 2)
            answer = answer - answer.mean(1, keepdim=True)
            return answer / answer.norm(dim=1, keepdim=True)

        own, positive = direction(here.z.detach()), direction(here.diffused_input())
        grey = math.sqrt(1 - at(100)) * here.omega.normal("negative", 100, here.z.detach(), (2, 1, 8, 8))
        cosines = [(own * positive).sum(1), *((own * direction(grey[:, k])).sum(1) for k in range(2))]
        shares = torch.stack([(2 * cosine).exp() for cosine in cosines])
        torch.testing.assert_close(value.detach(), -(shares[0] / shares.sum(0)).log(), rtol=0, atol=1e-12)


def test_a_correction_is_of_ddim_steps_alone() -> None:
    with pytest.raises(ValueError, match="a correction is of DDIM steps without guidance"):
        Diffusion(DENOISER, GUIDED["coup"].rounds, correction=MediatorPull(1.0, 1))  # type: ignore[attr-defined]


def test_ddim_from_its_own_prediction_is_ddim() -> None:
    sampler, z = DDIM(LINEAR, time_grid(100, 10), eta=0.7), images()
    for i in (0, 5, 9):
        eps: Any = DENOISER(z, sampler.grid[i])
        clean = (z - math.sqrt(1 - sampler.abar(i)) * eps) / math.sqrt(sampler.abar(i))
        own, same = sampler.from_denoised(i, clean, eps), sampler.transition(i, z, eps)
        torch.testing.assert_close(own.mean, same.mean, rtol=0, atol=1e-12)
        assert own.std == same.std
    assert loss(z) > 0
