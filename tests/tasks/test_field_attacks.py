"""Attacks in a band of frequencies, with a proxy denoiser, and by answers alone, against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defense.denoisers.oracle import OracleConfig
from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks import ATTACKS, AttackConfig, Target
from tasks.attacks.band import in_band
from tasks.attacks.hop_skip_jump import HopSkipJumpConfig, _Search
from tasks.attacks.one_step_preview import OneStepPreviewConfig
from tasks.datasets import ImageSet


class Linear(nn.Module):
    """Two classes of grey 8 x 8 images: the sign of ``w (x - middle)``."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.offset = offset
        self.w = torch.randn(64, generator=torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Tensor:
        side = (x.flatten(1) - 0.5) @ self.w + self.offset
        return torch.stack([-side, side], 1)


def images(n: int = 3) -> Tensor:
    return 0.4 + 0.2 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))


OMEGA = Omega.of("attack", 0, "attack", [3, 5, 8])


def target(classifier: nn.Module, x: Tensor) -> Target:
    labels = classifier(x).argmax(1)
    return Target(classifier, labels, OMEGA.within("defence"))


def attack(**fields: Any) -> AttackConfig:
    return ATTACKS.get(fields["attack"]).model_validate(fields)


class TestBand:
    @pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
    def test_the_perturbation_is_of_the_band_and_in_the_ball(self, norm: str, eps: float) -> None:
        x = images()
        config = attack(attack="pgd", norm=norm, eps=eps, steps=5, band=2.0, keep="last")
        w = (config.run(target(Linear(), x), x, OMEGA).images - x).double()
        torch.testing.assert_close(in_band(w, 2.0), w, rtol=0, atol=1e-6)
        size = w.flatten(1).abs().amax(1) if norm == "linf" else w.flatten(1).norm(dim=1)
        torch.testing.assert_close(size, torch.full_like(size, eps), rtol=1e-5, atol=0)

    def test_in_l2_it_ends_at_the_best_point_of_the_band(self) -> None:
        x, net = images(), Linear()
        config = attack(attack="pgd", norm="l2", eps=0.3, steps=10, band=2.0, random_start=False, keep="last")
        w = config.run(target(net, x), x, OMEGA).images - x
        side = torch.where(net(x).argmax(1) == 1, -1.0, 1.0).view(-1, 1, 1, 1)
        best = in_band(side * net.w.view(1, 1, 8, 8), 2.0)
        best = 0.3 * best / best.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        torch.testing.assert_close(w, best, rtol=0, atol=1e-4)

    @pytest.mark.slow
    def test_it_has_nearly_all_of_cifar10s_images_and_a_third_of_random_signs(self, cifar10_test: ImageSet) -> None:
        """Of the energy beside the mean, 500 images: why a defence that gives the disc away gives nearly all away."""
        images = torch.from_numpy(cifar10_test.images[:500])
        signs = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign()

        def share(x: Tensor, radius: float) -> float:
            x = x - x.mean((2, 3), keepdim=True)
            return 100 * float(in_band(x, radius).square().sum() / x.square().sum())

        assert [share(images, radius) for radius in (10, 8)] == pytest.approx([96.2, 93.1], abs=0.05)
        assert share(signs, 10) == pytest.approx(30.9, abs=0.1)

    def test_without_a_band_the_id_is_as_before(self) -> None:
        plain = attack(attack="pgd", norm="linf", eps=0.1)
        assert "band" not in plain.identity()
        banded = attack(attack="pgd", norm="linf", eps=0.1, band=10)
        assert banded.id != plain.id and banded.label() == "pgd-20 linf band 10"

    @pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.3)])
    def test_apgd_stays_in_the_band_and_ends_at_its_best_point(self, norm: str, eps: float) -> None:
        x, net = images(), Linear()
        config = attack(attack="apgd", norm=norm, eps=eps, steps=20, band=2.0)
        result = config.run(target(net, x), x, OMEGA)
        w = (result.images - x).double()
        torch.testing.assert_close(in_band(w, 2.0), w, rtol=0, atol=1e-6)
        size = w.flatten(1).abs().amax(1) if norm == "linf" else w.flatten(1).norm(dim=1)
        assert ((size <= eps + 1e-7) & (size > 0.99 * eps)).all()
        if norm == "l2":
            side = torch.where(net(x).argmax(1) == 1, -1.0, 1.0).view(-1, 1, 1, 1)
            best = in_band(side * net.w.view(1, 1, 8, 8), 2.0)
            best = (eps * best / best.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).double()
            torch.testing.assert_close(w, best, rtol=0, atol=1e-3)
        clean = nn.functional.cross_entropy(net(x), net(x).argmax(1), reduction="none")
        assert (result.loss > clean).all()

    def test_apgd_without_a_band_is_as_before(self) -> None:
        plain = attack(attack="apgd", norm="linf", eps=0.1)
        assert "band" not in plain.identity()
        banded = attack(attack="apgd", norm="linf", eps=0.1, band=10)
        assert banded.id != plain.id and banded.label() == "apgd-100 linf band 10"
        with pytest.raises(InvalidInput, match="no sparse perturbation is in a band"):
            attack(attack="apgd", norm="l1", eps=1.0, band=2)


class TestHopSkipJump:
    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_it_finds_the_distance_of_a_linear_classifier(self, norm: str) -> None:
        x, net = images(), Linear(0.5)
        config = attack(attack="hop-skip-jump", norm=norm, eps=0.5, queries=3000)
        result = config.run(target(net, x), x, OMEGA)
        away = (result.images - x).flatten(1)
        found = away.norm(dim=1) if norm == "l2" else away.abs().amax(1)
        side = ((x.flatten(1) - 0.5) @ net.w + 0.5).abs()
        margin = side / (net.w.norm() if norm == "l2" else net.w.abs().sum())
        assert ((found >= margin - 1e-6) & (found <= (1.05 if norm == "l2" else 1.2) * margin + 2e-3)).all(), (
            found / margin
        )
        assert (net(result.images).argmax(1) != net(x).argmax(1)).all()

    def test_an_image_costs_its_queries_and_no_more_whatever_the_others_of_its_batch(self) -> None:
        x, net = images(), Linear()
        config = attack(attack="hop-skip-jump", norm="l2", eps=0.5, queries=333)
        aim = target(net, x)
        together = config.run(aim, x, OMEGA).images
        assert all(0 < asked <= config.evaluations for asked in aim.tally.evaluations.values())
        for k in range(3):
            part, omega = x[k : k + 1], OMEGA.select([k])
            alone = config.run(Target(net, net(part).argmax(1), omega.within("defence")), part, omega).images
            torch.testing.assert_close(alone, together[k : k + 1], rtol=0, atol=1e-6)

    def test_what_is_further_away_than_eps_stays_in_the_ball_and_what_is_wrong_stays(self) -> None:
        x, net = images(), Linear(0.5)
        result = attack(attack="hop-skip-jump", norm="linf", eps=0.001, queries=200).run(target(net, x), x, OMEGA)
        assert (result.images - x).abs().max() <= 0.001 + 1e-8
        wrong = Target(net, 1 - net(x).argmax(1), OMEGA.within("defence"))
        result = attack(attack="hop-skip-jump", norm="l2", eps=1.0, queries=200).run(wrong, x, OMEGA)
        assert torch.equal(result.images, x) and max(wrong.tally.evaluations.values()) == 3

    def test_the_majority_of_the_draws_decides(self) -> None:
        """Of three draws with offsets -0.4, 0.1 and 0.2 the boundary is that of the middle one."""
        x, net = images(), Linear()

        class Offset(Target):
            def logits(self, at: Tensor) -> Tensor:
                self._count(3)
                side = (at.flatten(1) - 0.5) @ net.w
                return torch.stack([torch.stack([-side - o, side + o], 1) for o in (-0.4, 0.1, 0.2)], 1)

        labels = ((x.flatten(1) - 0.5) @ net.w + 0.1 > 0).long()
        config = attack(attack="hop-skip-jump", norm="l2", eps=1e-9, queries=2000, unbounded=["eps"])
        assert isinstance(config, HopSkipJumpConfig)
        search = _Search(Offset(net, labels, OMEGA, draws=3), x, OMEGA, config)
        search.start()
        for t in (1, 2, 3):
            search.iterate(t)
        reached = (search.best.flatten(1) - 0.5) @ net.w + 0.1
        assert reached.abs().max() < 1e-2


class TestRayS:
    @pytest.mark.slow
    def test_it_finds_the_smallest_radius_of_a_linear_classifier(self) -> None:
        x, net = images(), Linear(0.5)
        config = attack(attack="rays", norm="linf", eps=0.5, queries=3000)
        found = (config.run(target(net, x), x, OMEGA).images - x).flatten(1).abs().amax(1)
        margin = ((x.flatten(1) - 0.5) @ net.w + 0.5).abs() / net.w.abs().sum()
        assert ((found >= margin - 1e-6) & (found <= 1.15 * margin + 2e-3)).all(), (found, margin)

    def test_an_image_costs_its_queries_and_no_more(self) -> None:
        x = images()
        aim = target(Linear(), x)
        config = attack(attack="rays", norm="linf", eps=0.5, queries=50)
        config.run(aim, x, OMEGA)
        assert max(aim.tally.evaluations.values()) <= config.evaluations

    def test_what_is_further_away_than_eps_stays_in_the_ball(self) -> None:
        x = images()
        result = attack(attack="rays", norm="linf", eps=0.01, queries=40).run(target(Linear(40.0), x), x, OMEGA)
        assert (result.images - x).abs().max() <= 0.01 + 1e-7 and (result.loss < 0).all()


class TestOneStepPreview:
    ORACLE = OracleConfig(schedule="linear-1000", stds=(0.4,))

    def test_one_step_is_along_the_gradient_of_the_formula(self) -> None:
        x, net = images(), Linear()
        config = attack(
            attack="one-step-preview",
            norm="l2",
            eps=10.0,
            step_size=0.25,
            steps=1,
            previews=2,
            denoiser=self.ORACLE,
            deviation=0.0,
        )
        labels = net(x).argmax(1)
        leaf = x.clone().requires_grad_()
        schedule, total = self.ORACLE.noise_schedule, torch.zeros(())
        for n in range(2):
            share = OMEGA.uniform("level", n, x, (1,)).flatten()
            t = [1 + int(150 * float(s)) for s in share]
            abar = torch.tensor([float(schedule.abar[level]) for level in t]).view(-1, 1, 1, 1)
            slope = abar * 0.16 / (abar * 0.16 + 1 - abar) / abar.sqrt()  # of a Gaussian's clean image
            shown = slope * (abar.sqrt() * (2 * leaf - 1) + (1 - abar).sqrt() * OMEGA.normal("preview", n, x))
            again = OMEGA.normal("renoise", n, x, (3, 1, 8, 8))
            seen = [shown, *(abar.sqrt() * shown + (1 - abar).sqrt() * again[:, k] for k in range(3))]
            for weight, state in zip([0.3, *[0.7 / 3] * 3], seen, strict=True):
                loss = nn.functional.cross_entropy(net((state + 1) / 2), labels, reduction="sum")
                total = total + weight * loss
        (gradient,) = torch.autograd.grad(total, leaf)
        found = config.run(target(net, x), x, OMEGA).images - x
        expected = 0.25 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)

    def test_the_deviation_is_the_mean_square_of_previews_apart(self) -> None:
        x, delta = images(), 0.05 * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
        shared: dict[str, Any] = {"attack": "one-step-preview", "norm": "linf", "eps": 0.2, "denoiser": self.ORACLE}
        gradients = []
        for w in (0.0, 7.0):
            config = attack(**shared, deviation=w)
            assert isinstance(config, OneStepPreviewConfig)
            gradients.append(config._gradient(target(Linear(), x), self.ORACLE.build(), x + delta, x, OMEGA, 4))
        t = [1 + int(150 * float(share)) for share in OMEGA.uniform("level", 4, x, (1,))]
        abar = torch.tensor([float(self.ORACLE.noise_schedule.abar[level]) for level in t]).view(-1, 1, 1, 1)
        slope = 2 * abar * 0.16 / (abar * 0.16 + 1 - abar)  # of a preview with respect to pixels
        fresh = torch.tensor([1 - level / 150 for level in t]).view(-1, 1, 1, 1)
        expected = 7 * fresh * 2 * slope.square() * delta / 64
        torch.testing.assert_close(gradients[1] - gradients[0], expected, rtol=1e-3, atol=1e-5)

    def test_it_has_a_proxy_and_knows_no_purifier(self) -> None:
        config = attack(attack="one-step-preview", norm="linf", eps=0.05, denoiser=self.ORACLE)
        assert config.static and config.label() == "one-step-preview-100 linf, has a proxy"
        with pytest.raises(InvalidInput, match="does not know the purifier"):
            attack(attack="one-step-preview", norm="linf", eps=0.05, denoiser=self.ORACLE, gradient="exact")
        with pytest.raises(InvalidInput, match="takes images of shape"):
            shaped = OracleConfig(schedule="linear-1000", shape=(3, 32, 32))
            attack(attack="one-step-preview", norm="linf", eps=0.05, denoiser=shaped).check_task(10, (1, 8, 8))
