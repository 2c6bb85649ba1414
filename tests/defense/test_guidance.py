"""Guidance: potentials by hand, one value per image, and what a guided step does with them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import CLASSIFIER, DENOISER, GUIDED, LINEAR, SEQUENCES, ancestral, gradient, guided, images, loss, omega

from defense import InvalidInput, purify
from defense.guidance import Guidance, Moment, distance, logits
from defense.purifiers import (
    Diffusion,
    DistanceGuidance,
    RobustGuidance,
    SimilarityGuidance,
    TransferGuidance,
)
from defense.samplers import DDIM, ProbabilityFlow, ReverseSDE, forward_noise, time_grid

OMEGA = omega(4, 9, 2)
MSE = distance("mse")


class Linear(nn.Module):
    """Logits W x + b on a latent V x."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.v, self.w, self.b = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 64), (4, 6), (4,))
        )

    def latent(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.v.T

    def forward(self, x: Tensor) -> Tensor:
        return self.latent(x) @ self.w.T + self.b


NET = Linear()
SLOPE = NET.w @ NET.v  # of the logits, (4, 64)


def moment(t: int = 100, **changes: Any) -> Moment:
    z = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(8), dtype=torch.float64) / 4
    z = z.requires_grad_()
    fields: dict[str, Any] = {"x": images(), "omega": OMEGA, "key": 100, "schedule": LINEAR}
    return Moment(z, t, predict=lambda: 0.7 * z + 0.1, **{**fields, **changes})


def slope(guidance: Guidance, at: Moment) -> tuple[Tensor, Tensor]:
    """The potentials, shape (B,), and their gradients, flattened to (B, pixels)."""
    value = guidance(at)
    assert value.shape == (3,)
    (found,) = torch.autograd.grad(value.sum(), at.z)
    return value, found.flatten(1)


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class TestMoment:
    def test_the_target_is_the_input_noised_to_the_level_of_the_state_by_the_key_of_the_step(self) -> None:
        at = moment()
        noise = OMEGA.normal("guidance", 100, at.z)
        equal(at.diffused_input(), forward_noise(2 * at.x - 1, LINEAR.level(100).abar, noise))
        other = moment(key=99).diffused_input()
        assert (other - at.diffused_input()).abs().max() > 0.1

    def test_the_denoised_image_is_the_prediction_in_pixels_made_once(self) -> None:
        calls = []
        at = moment()
        at.predict = lambda: calls.append(1) or 0.5 * at.z  # type: ignore[func-returns-value]
        equal(at.denoised, (0.5 * at.z + 1) / 2)
        assert at.denoised is at.denoised and calls == [1]

    def test_it_does_not_know_the_label(self) -> None:
        known = {field.name for field in dataclasses.fields(Moment)} - {"_denoised"}
        assert known == {"z", "t", "x", "omega", "key", "schedule", "predict"}


class TestDistances:
    def test_mse_is_the_squared_norm_and_its_slope_is_twice_the_difference(self) -> None:
        at = moment()
        value, found = slope(DistanceGuidance(MSE, 10.0), at)
        apart = (at.z - at.diffused_input()).flatten(1)
        equal(value, apart.square().sum(1))
        equal(found, 2 * apart)
        assert DistanceGuidance(MSE, 10.0).scale(5, LINEAR) == 10.0

    @pytest.mark.parametrize("side", [8, 32])
    def test_ssim_is_that_of_wang_et_al_per_image(self, side: int) -> None:
        generator = torch.Generator().manual_seed(side)
        a, b = (2 * torch.rand(2, 1, side, side, generator=generator, dtype=torch.float64) - 1 for _ in range(2))
        found = distance("ssim")(a, b)
        size, sigma = (11, 1.5) if side == 32 else (5, 0.5)
        taps = torch.exp(-((torch.arange(size, dtype=torch.float64) - size // 2) ** 2) / (2 * sigma**2))
        window = torch.outer(taps, taps) / taps.sum() ** 2

        def mean(image: Tensor) -> Tensor:
            pad = size // 2
            continued = nn.functional.pad(image, (pad,) * 4, mode="reflect")
            return nn.functional.conv2d(continued, window[None, None])

        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        ma, mb = mean(a), mean(b)
        va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
        ssim = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
        torch.testing.assert_close(found, 1 - ssim.mean((1, 2, 3)), rtol=0, atol=1e-9)
        torch.testing.assert_close(distance("ssim")(a, a), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)

    def test_ssim_of_too_small_images_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match=r"at least 5x5 pixels, not \(4, 8\)"):
            distance("ssim")(torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8))

    def test_lpips_needs_its_network(self) -> None:
        with pytest.raises(InvalidInput, match="give `lpips`"):
            distance("lpips")

    def test_nothing_is_measured_in_reduced_precision(self) -> None:
        a, b = images().float(), images(4)[:3].float()
        net = nn.Conv2d(1, 1, 3).requires_grad_(False)

        def lpips(a: Tensor, b: Tensor) -> Tensor:
            return (net(a) - net(b)).square().mean((1, 2, 3))

        plain = distance("ssim")(a, b), distance("lpips", lpips)(a, b), logits(net, a)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            same = distance("ssim")(a, b), distance("lpips", lpips)(a, b), logits(net, a)  # type: ignore[arg-type]
            assert net(a).dtype == torch.bfloat16
        for found, expected in zip(same, plain, strict=True):
            assert torch.equal(found, expected)


class TestTransfer:
    """Distribution transfer on a linear classifier."""

    @pytest.mark.parametrize("sees", ["noisy", "denoised"])
    @pytest.mark.parametrize("form", ["soft-label", "logit", "confidence", "none"])
    def test_the_potential_and_its_slope_by_hand(self, form: Any, sees: Any) -> None:
        at, lam = moment(), 3.0
        seen = (at.z + 1) / 2 if sees == "noisy" else (0.7 * at.z + 0.1 + 1) / 2
        chain = 0.5 if sees == "noisy" else 0.35
        here, there = NET(seen.detach()), NET(at.x)
        p, q = here.softmax(1), there.softmax(1)
        if form == "soft-label":
            term, by_logit = (q * (q.log() - p.log())).sum(1), p - q
        elif form == "logit":
            term, by_logit = (there - here).square().sum(1), 2 * (here - there)
        elif form == "confidence":
            best = nn.functional.one_hot(p.argmax(1), 4).double()
            term, by_logit = -p.max(1).values.log(), p - best
        else:
            term, by_logit = torch.zeros(3, dtype=torch.float64), torch.zeros_like(p)
        apart = (at.z - at.diffused_input()).flatten(1)
        value, found = slope(TransferGuidance(MSE, NET, form=form, lam=lam, s=7.0, classifier_sees=sees), at)
        equal(value, apart.square().sum(1) + lam * term)
        equal(found, 2 * apart + lam * chain * by_logit @ SLOPE)

    def test_the_soft_label_follows_the_input_s_own_answer(self) -> None:
        """Where state and input are answered alike the term and its slope vanish."""
        at = moment()
        at.x = ((at.z + 1) / 2).detach()
        guidance = TransferGuidance(lambda a, b: 0 * a.flatten(1).sum(1), NET, classifier_sees="noisy")
        value, found = slope(guidance, at)
        equal(value, torch.zeros_like(value))
        equal(found, torch.zeros_like(found))

    def test_the_reference_answer_is_part_of_the_gradient(self) -> None:
        for form, follows in (("soft-label", True), ("logit", True), ("confidence", False)):
            at = moment()
            at.x = at.x.clone().requires_grad_()
            flat = TransferGuidance(lambda a, b: 0 * a.flatten(1).sum(1), NET, form=form)  # type: ignore[arg-type]
            (found,) = torch.autograd.grad(flat(at).sum(), at.x, allow_unused=True)
            assert (found is not None and found.abs().max() > 1e-3) == follows


class TestGDMP:
    def test_the_scale_is_that_of_the_paper(self) -> None:
        for t in (1, 20, 36):
            abar = LINEAR.level(t).abar
            m0 = (2 * 8 / 255) / (3 * 60000)
            expected = math.sqrt(1 - abar) / (m0 * math.sqrt(abar))
            assert SimilarityGuidance("mse", 60000, 100, 8.0).scale(t, LINEAR) == pytest.approx(expected, rel=1e-12)
        assert SimilarityGuidance("mse", 900, 100, None).scale(36, LINEAR) == 900

    @pytest.mark.parametrize("b_ref", [1, 100])
    def test_the_potential_is_the_mean_square_over_the_pixels_divided_by_the_declared_batch(self, b_ref: int) -> None:
        at = moment()
        apart = (at.z - at.diffused_input()).flatten(1)
        value, found = slope(SimilarityGuidance("mse", 60000, b_ref, 8.0), at)
        equal(value, apart.square().mean(1) / b_ref)
        equal(found, 2 * apart / (64 * b_ref))
        value, _ = slope(SimilarityGuidance("ssim", 60000, b_ref, 8.0), at)
        equal(value, distance("ssim")(at.z, at.diffused_input()) / b_ref)

    @pytest.mark.parametrize(("b_ref", "listed"), [(100, 0.026), (1, 2.61)])
    def test_the_pull_of_the_published_setting(self, b_ref: int, listed: float) -> None:
        """methods.md 4.1: the sum over 36 steps of Sigma_t S_t 2 / (B D), D = 3072, as the steps apply it."""
        guidance, sampler = SimilarityGuidance("mse", 60000, b_ref, 8.0), ancestral(36, 36)
        at = Moment(
            z := torch.randn(1, 3, 32, 32, dtype=torch.float64).requires_grad_(),
            36,
            torch.rand(1, 3, 32, 32, dtype=torch.float64),
            omega(0),
            36,
            LINEAR,
            lambda: z,
        )
        (found,) = torch.autograd.grad(guidance(at).sum(), z)
        per_pixel = (found / (z - at.diffused_input())).mean().item()
        zero = torch.zeros(1, dtype=torch.float64)
        steps = enumerate(sampler.grid[:-1])
        pull = sum(float(sampler.transition(i, zero, zero).gain) * guidance.scale(t, LINEAR) for i, t in steps)
        assert pull * per_pixel == pytest.approx(listed, rel=0.01)


class TestRobust:
    """AGDM on a linear network."""

    @pytest.mark.parametrize(("target", "sees"), [("diffused", "noisy"), ("input", "noisy"), ("input", "denoised")])
    @pytest.mark.parametrize("label", ["prediction", "entropy"])
    @pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.0), (0.0, 3.0), (0.0, 0.0)])
    def test_the_potential_and_its_slope_by_hand(
        self, target: Any, sees: Any, label: Any, weights: tuple[float, float]
    ) -> None:
        at, (w_y, w_c) = moment(), weights
        guidance = RobustGuidance(
            NET, 5.0, class_weight=w_y, latent_weight=w_c, target=target, label=label, auxiliary_sees=sees
        )
        seen = (at.z + 1) / 2 if sees == "noisy" else (0.7 * at.z + 0.1 + 1) / 2
        chain = 0.5 if sees == "noisy" else 0.35
        p = NET(seen.detach()).softmax(1)
        if label == "prediction":
            wanted = NET(at.x).argmax(1)  # of the input, not of the state
            term = -p[torch.arange(3), wanted].log()
            by_logit = p - nn.functional.one_hot(wanted, 4)
        else:
            term = -(p * p.log()).sum(1)
            by_logit = -p * (p.log() + term[:, None])
        there = (at.diffused_input() + 1) / 2 if target == "diffused" else at.x
        apart = (NET.latent(seen) - NET.latent(there)).detach()
        expected = w_y * chain * by_logit @ SLOPE + w_c * chain * 2 / 6 * apart @ NET.v
        value = guidance(at)
        equal(value, w_y * term + w_c * apart.square().mean(1))
        if weights == (0.0, 0.0):
            return
        (found,) = torch.autograd.grad(value.sum(), at.z)
        equal(found.flatten(1), expected)
        assert guidance.scale(36, LINEAR) == 5.0

    def test_prediction_and_state_disagree_somewhere(self) -> None:
        """Otherwise the test above could not tell the label of the input from that of the state."""
        at = moment()
        assert (NET(at.x).argmax(1) != NET((at.z.detach() + 1) / 2).argmax(1)).any()


SAMPLERS = {
    "ancestral": ancestral(100, 10),
    "ddim": DDIM(LINEAR, time_grid(100, 10)),
    "sde": ReverseSDE(LINEAR, time_grid(100, 10)),
    "ode": ProbabilityFlow(LINEAR, time_grid(100, 10)),
}


class TestSteps:
    @pytest.mark.parametrize("name", SAMPLERS)
    @pytest.mark.parametrize("i", [0, 4, 9])
    def test_a_guided_step_is_the_unguided_one_less_gain_times_scale_times_slope(self, name: str, i: int) -> None:
        sampler, z, x = SAMPLERS[name], moment().z.detach(), images()
        guidance = TransferGuidance(MSE, NET, s=5.0, classifier_sees="noisy", form="logit")
        t = sampler.grid[i]
        at = Moment(z.clone().requires_grad_(), t, x, OMEGA, t, LINEAR, lambda: z)
        _, shift = slope(guidance, at)
        gain = sampler.transition(i, z, DENOISER(z, t)).gain
        bare = Diffusion(DENOISER, [sampler]).step(i, z, x, OMEGA)
        found = guided(guidance, sampler).step(i, z, x, OMEGA)
        equal(found, bare - gain * 5.0 * shift.view_as(z))

    @pytest.mark.parametrize(
        "guidance",
        [
            SimilarityGuidance("mse", 0.0, 100, 8.0),
            DistanceGuidance(MSE, 0.0),
            TransferGuidance(MSE, CLASSIFIER, s=0.0),
            RobustGuidance(CLASSIFIER, 0.0),
        ],
        ids=lambda guidance: type(guidance).__name__,
    )
    def test_with_scale_zero_it_is_the_unguided_purifier(self, guidance: Guidance) -> None:
        bare, x = Diffusion(DENOISER, [ancestral(100, 10)]), images()
        assert torch.equal(guided(guidance)(x, OMEGA), bare(x, OMEGA))
        equal(gradient(lambda x: purify(guided(guidance), x, OMEGA), x), gradient(lambda x: bare(x, OMEGA), x))

    def test_guidance_with_weights_of_zero_is_none(self) -> None:
        nothing = RobustGuidance(CLASSIFIER, 5.0, class_weight=0.0, latent_weight=0.0)
        bare, x = Diffusion(DENOISER, [ancestral(100, 10)]), images()
        assert torch.equal(guided(nothing)(x, OMEGA), bare(x, OMEGA))
        leaf = x.clone().requires_grad_()
        assert torch.equal(purify(guided(nothing), leaf, OMEGA), bare(x, OMEGA))

    def test_a_potential_that_mixes_the_batch_is_refused(self) -> None:
        class Mixed(DistanceGuidance):
            def forward(self, moment: Moment) -> Tensor:
                return super().forward(moment).mean()

        with pytest.raises(ValueError, match=r"one value per image, not shape \(\)"):
            guided(Mixed(MSE, 1.0))(images(), OMEGA)

    def test_the_prediction_that_guidance_asks_for_serves_the_step_too(self) -> None:
        purifier = guided(TransferGuidance(MSE, CLASSIFIER, s=5.0))
        for x in (images(), images().requires_grad_()):
            before = DENOISER.calls
            purifier(x, OMEGA)
            assert DENOISER.calls - before == 10


class TestPerSample:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", [*GUIDED, *SEQUENCES])
    def test_an_image_and_its_gradient_do_not_depend_on_what_else_is_in_the_batch(self, name: str) -> None:
        purifier, x = {**GUIDED, **SEQUENCES}[name], images(4)
        ids = (7, 3, 11, 0)

        def run(rows: list[int]) -> tuple[Tensor, Tensor]:
            leaf = x[rows].requires_grad_()
            out = purify(purifier, leaf, omega(*(ids[row] for row in rows)))
            # Not the loss of toys, whose label goes by the position in the batch.
            (found,) = torch.autograd.grad(loss(out[:1]) if len(rows) == 1 else CLASSIFIER(out)[:, 0].sum(), leaf)
            return out.detach(), found

        def run_alone(row: int) -> tuple[Tensor, Tensor]:
            leaf = x[[row]].requires_grad_()
            out = purify(purifier, leaf, omega(ids[row]))
            (found,) = torch.autograd.grad(CLASSIFIER(out)[:, 0].sum(), leaf)
            return out.detach(), found

        whole, some = run([0, 1, 2, 3]), run([2, 0])
        size = whole[1].abs().max().clamp(min=1)
        for place, row in enumerate([2, 0]):
            for (found, slope_), k in ((some, place), (run_alone(row), 0)):
                torch.testing.assert_close(found[k], whole[0][row], rtol=0, atol=1e-12)
                torch.testing.assert_close(slope_[k] / size, whole[1][row] / size, rtol=0, atol=1e-12)
