"""Purification by optimisation: closed forms on a Gaussian, Adam by another hand, and what the optimiser hides."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import DENOISER, LINEAR, OPTIMISED, gradient, images, omega

from defense import GaussianMixtureDenoiser, InvalidInput, purify
from defense.denoisers.levels import denoised_at, drawn_levels, noise_at, sigma_of
from defense.denoisers.oracle import OracleConfig
from defense.purifiers import AAOpt, AAOptConfig, LikelihoodMaximizationConfig, ScoreOptConfig, ScoreOptN, ScoreOptO
from defense.purifiers.optimised import adam

OMEGA = omega(4, 9, 2)
S2 = 0.3
GAUSS = GaussianMixtureDenoiser.gaussian(LINEAR, S2)
T = 100
SIGMA = 2 * LINEAR.level(T).sigma_eq
K = S2 / (S2 + SIGMA**2)  # D(u; sigma) = K u
LR, STEPS = 0.2, 5


def slope(purifier: Any) -> Tensor:
    x = (0.4 + 0.2 * images()).requires_grad_()  # far from the clamp
    (found,) = torch.autograd.grad(purifier(x, OMEGA).sum(), x)
    return found


class TestGaussian:
    """With descent every loss is quadratic, and every step linear in u."""

    LEVEL = SIGMA / 2

    def test_form_o(self) -> None:
        chain, x = ScoreOptO(GAUSS, self.LEVEL, self.LEVEL, STEPS, LR, "sgd"), 0.4 + 0.2 * images()
        u = 2 * x - 1
        for i in range(STEPS):
            u = u - LR * 2 * (K - 1) * ((K - 1) * u + K * SIGMA * OMEGA.normal("score", i, x))
        torch.testing.assert_close(chain(x, OMEGA), (u + 1) / 2, rtol=0, atol=1e-12)
        expected = (1 - 2 * LR * (1 - K) ** 2) ** STEPS
        torch.testing.assert_close(slope(chain), torch.full_like(x, expected), rtol=0, atol=1e-12)

    def test_form_n(self) -> None:
        chain, x = ScoreOptN(GAUSS, T, STEPS, LR, "sgd"), 0.4 + 0.2 * images()
        e, c = OMEGA.normal("forward", 0, x), (1 - K) / SIGMA
        v = 2 * x - 1 + SIGMA * e
        for _ in range(STEPS):
            v = v - LR * 2 * c * (c * v - e)
        torch.testing.assert_close(chain(x, OMEGA), (K * v + 1) / 2, rtol=0, atol=1e-12)
        expected = K * (1 - 2 * LR * c**2) ** STEPS
        torch.testing.assert_close(slope(chain), torch.full_like(x, expected), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("lam", [0.0, 0.25, -0.25])
    def test_aaopt(self, lam: float) -> None:
        small = 0.01
        other = GaussianMixtureDenoiser.gaussian(LINEAR, small) if lam else None
        chain = AAOpt(GAUSS, self.LEVEL, self.LEVEL, STEPS, LR, "sgd", lam=lam, perturbation=other)
        abar = LINEAR.level(int(1000 * SIGMA) + 1).abar
        own = (1 - K) / SIGMA
        theirs = lam * math.sqrt(abar * (1 - abar)) / (abar * small + 1 - abar)
        expected = 1.0
        for _ in range(STEPS):  # the perturbation model sees u less u_0
            expected = expected - LR * (own * expected + theirs * (expected - 1))
        torch.testing.assert_close(slope(chain), torch.full_like(images(), expected), rtol=0, atol=1e-12)


class TestAdam:
    def test_it_is_torch_s(self) -> None:
        generator = torch.Generator().manual_seed(3)
        slopes = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
        theirs = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([theirs], lr=0.1)
        u = m = v = torch.zeros(2, 5, dtype=torch.float64)
        for i, g in enumerate(slopes):
            theirs.grad = g.clone()
            optimizer.step()
            u, m, v = adam(u, m, v, g, i, 0.1)
            torch.testing.assert_close(u, theirs.detach(), rtol=0, atol=1e-12)

    def test_the_first_step_hides_the_derivative_of_the_gradient(self) -> None:
        g = torch.tensor([1e-3, 1e-8, 0.0], dtype=torch.float64, requires_grad=True)
        zero = torch.zeros_like(g)
        (found,) = torch.autograd.grad(adam(zero, zero, zero, g, 0, 0.1)[0].sum(), g)
        expected = torch.tensor([-0.1 * 1e-8 / (1e-3 + 1e-8) ** 2, -0.1 * 1e-8 / (2e-8) ** 2, -0.1 / 1e-8]).double()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)

    def test_one_step_of_it_has_nearly_the_gradient_of_the_identity_and_descent_has_not(self) -> None:
        """In most pixels: the derivative of a step is large where the gradient is near Adam's 1e-8."""
        x = 0.4 + 0.2 * images()  # away from the clamp
        one = {how: ScoreOptO(DENOISER, 0.1, 0.2, 1, 0.01, how) for how in ("adam", "sgd")}  # type: ignore[arg-type]
        apart = {
            how: gradient(lambda x, how=how: purify(one[how], x, OMEGA), x)
            - gradient(lambda x, how=how: purify(one[how], x, OMEGA, "bpda"), x)
            for how in one
        }
        assert 0 < apart["adam"].abs().median() < 0.05 * apart["sgd"].abs().median()

    @pytest.mark.slow
    def test_without_the_second_moment_it_is_another_gradient_of_the_same_values(self) -> None:
        x = images()
        for name in ("score-opt O adam", "score-opt N adam", "aaopt"):
            purifier = OPTIMISED[name]
            assert torch.equal(purify(purifier, x, OMEGA, "exact-no-second-moment"), purifier(x, OMEGA))
            other = gradient(lambda x, p=purifier: purify(p, x, OMEGA, "exact-no-second-moment"), x)
            assert (other - gradient(lambda x, p=purifier: purify(p, x, OMEGA), x)).norm() > 1e-3 * other.norm()
        plain = OPTIMISED["score-opt O sgd"]
        same = gradient(lambda x: purify(plain, x, OMEGA, "exact-no-second-moment"), x)
        torch.testing.assert_close(same, gradient(lambda x: purify(plain, x, OMEGA), x), rtol=0, atol=0)


class TestLevels:
    def test_images_of_several_levels_are_asked_about_as_alone(self) -> None:
        z, t = images(5), [40, 7, 40, 300, 7]
        alone = torch.cat([DENOISER(z[i : i + 1], level) for i, level in enumerate(t)])
        torch.testing.assert_close(noise_at(DENOISER, z, t), alone, rtol=0, atol=1e-12)
        assert torch.equal(noise_at(DENOISER, z, [7] * 5), DENOISER(z, 7))

    def test_the_estimate_is_that_of_the_schedule(self) -> None:
        noised, t = 3 * images(2), [100, 100]
        abar = LINEAR.level(100).abar
        z = math.sqrt(abar) * noised
        expected = (z - math.sqrt(1 - abar) * DENOISER(z, 100)) / math.sqrt(abar)
        torch.testing.assert_close(denoised_at(DENOISER, noised, t), expected, rtol=0, atol=1e-12)
        assert denoised_at(DENOISER, noised, t, clip=True).abs().max() <= 1
        assert float(sigma_of(LINEAR, [100], noised)) == pytest.approx(2 * LINEAR.level(100).sigma_eq, rel=1e-12)

    def test_levels_are_uniform_between_the_ends_and_each_image_s_own(self) -> None:
        keys, like = omega(*range(2000)), torch.zeros(2000, 1, dtype=torch.float64)
        t = drawn_levels(LINEAR, 0.075, 0.175, keys, 3, like)
        sigma = [LINEAR.level(level).sigma_eq for level in t]
        assert min(sigma) >= 0.075 and max(sigma) < 0.178
        assert sum(sigma) / 2000 == pytest.approx(0.125, abs=0.003)
        assert drawn_levels(LINEAR, 0.075, 0.175, keys.part(7, 9), 3, like[:2]) == t[7:9]
        assert len(set(drawn_levels(LINEAR, 0.125, 0.125, keys, 3, like))) == 1


ORACLE = OracleConfig(schedule="linear-1000", shape=(1, 8, 8))


class ToldConfig(OracleConfig):
    """A network that must be told the class."""

    @property
    def classes(self) -> int:
        return 3

    @property
    def unconditional(self) -> bool:
        return False


class TestConfigs:
    def test_the_published_settings_are_defaults(self) -> None:
        o, n = (ScoreOptConfig(denoiser=ORACLE, form=form) for form in "ON")  # type: ignore[call-arg, arg-type]
        assert (o.iterations, o.lr, o.spread, o.evaluations) == (5, 0.1, 0.05, 5)
        assert (n.iterations, n.lr, n.spread, n.evaluations) == (20, 0.1, 0.0, 21)
        lm = LikelihoodMaximizationConfig(denoiser=ORACLE)  # type: ignore[call-arg]
        assert [2 * level for level in lm.interval()] == pytest.approx([0.4, 0.6], abs=0.01)
        aaopt = AAOptConfig(denoiser=ORACLE)  # type: ignore[call-arg]
        assert (aaopt.iterations, aaopt.lam, aaopt.evaluations) == (20, 0.0, 20)
        assert [2 * level for level in aaopt.interval()] == pytest.approx([0.15, 0.35], abs=0.01)
        with_model = AAOptConfig(denoiser=ORACLE, perturbation=ORACLE)  # type: ignore[call-arg]
        assert (with_model.lam, with_model.evaluations) == (0.25, 40)
        assert with_model.build().lam == 0.25 and "direction" not in with_model.identity()
        away = AAOptConfig(denoiser=ORACLE, perturbation=ORACLE, direction="away")  # type: ignore[call-arg]
        assert away.build().lam == -0.25 and away.label().endswith("lam=0.25 away t*=74 20 x 0.1")
        assert not o.diffuses and o.guided and o.noise_level is not None

    def test_lm_is_score_opt_o(self) -> None:
        x = images()
        lm = LikelihoodMaximizationConfig(denoiser=ORACLE).build()  # type: ignore[call-arg]
        o = ScoreOptConfig(denoiser=ORACLE).build()  # type: ignore[call-arg]
        assert torch.equal(lm(x, OMEGA), o(x, OMEGA))

    @pytest.mark.parametrize(
        ("kind", "fields", "message"),
        [
            (ScoreOptConfig, {"sigma_eq": 0.04}, "spread = 0.05 reaches below no noise"),
            (ScoreOptConfig, {"form": "N", "spread": 0.05}, "spread belongs to form O"),
            (AAOptConfig, {"lam": 0.25}, "give both, or neither"),
            (AAOptConfig, {"lam": 0.0, "perturbation": ORACLE}, "give both, or neither"),
            (AAOptConfig, {"direction": "away"}, "name one as `perturbation`, or leave it out"),
            (AAOptConfig, {"perturbation": ToldConfig(schedule="linear-1000")}, "told one of 3 classes"),
            (LikelihoodMaximizationConfig, {"iterations": 0}, "iterations"),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, kind: Any, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            kind(denoiser=ORACLE, **fields)

    def test_a_model_of_perturbations_of_other_images_is_refused(self) -> None:
        wide = OracleConfig(schedule="linear-1000", shape=(3, 8, 8))
        config = AAOptConfig(denoiser=ORACLE, perturbation=wide)  # type: ignore[call-arg]
        with pytest.raises(InvalidInput, match=r"takes images of shape \(3, 8, 8\), not \(1, 8, 8\)"):
            config.check_images((1, 8, 8))
        AAOptConfig(denoiser=ORACLE, perturbation=ORACLE).check_images((1, 8, 8))  # type: ignore[call-arg]
