"""Deviated reconstruction: Auto-PGD as its special case, its gradient, and the shipped denoiser led astray."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defense import DiffusersConfig, GradientMode, Purifier, PurifierConfig, get_schedule
from defense.errors import InvalidInput
from defense.gradients import purify_and_deviate
from defense.oracles import GaussianMixtureDenoiser
from defense.purifiers import PURIFIERS, DiffPure, Diffusion
from defense.purifiers.gaussian_noise import GaussianNoise
from defense.randomness import Omega
from defense.samplers import Ancestral, time_grid
from tasks.attacks import ATTACKS, AttackConfig, perturbation_norms
from tasks.attacks.deviated_reconstruction import DeviatedReconstructionConfig, Deviating
from tasks.attacks.losses import point_loss
from tasks.attacks.target import Attacked, Target
from tasks.datasets import ImageSet

COUNT = 6
SCHEDULE = get_schedule("linear-1000")
ORACLE = GaussianMixtureDenoiser(SCHEDULE, [0.5, 0.5], [-0.6, 0.6], [0.2, 0.2])


def rounds(*depths: int) -> Diffusion:
    return Diffusion(ORACLE, [Ancestral(SCHEDULE, time_grid(t, 4)) for t in depths])


def omega(role: str = "eot", count: int = COUNT) -> Omega:
    return Omega.of("spec", 0, role, range(count))


def attack(name: str = "deviated-reconstruction", **more: Any) -> AttackConfig:
    return ATTACKS.get(name).model_validate({"attack": name, "norm": "linf", "eps": 0.1, "gradient": "exact", **more})


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    return net.requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(COUNT) % 4


@pytest.mark.slow
@pytest.mark.parametrize("attacked", ["mean-loss", "mean-logits"])
@pytest.mark.parametrize("mode", ["exact", "surrogate(2)"])
def test_the_loss_is_the_classifier_s_plus_lambda_times_the_mean_deviation(
    net: nn.Module, x: Tensor, y: Tensor, mode: str, attacked: Attacked
) -> None:
    purifier, loss, lam = rounds(40, 80), point_loss("ce"), 2.5
    plain, target = (
        Target(net, y, omega(), purifier, GradientMode.parse(mode), draws=3, attacked=attacked, batch=5)
        for _ in range(2)
    )
    for call in range(2):  # draws go on alike
        expected = plain.differentiate(x, loss)
        at = x.clone().requires_grad_()
        deviation = sum(
            purify_and_deviate(
                purifier, at, Omega.of("spec", 0, "eot", range(COUNT), draw), GradientMode.parse(mode)
            )[1]
            for draw in range(3 * call, 3 * call + 3)
        )
        assert isinstance(deviation, Tensor) and expected.gradient is not None
        (slope,) = torch.autograd.grad(deviation.sum() / 3, at)
        found = Deviating(target, lam).differentiate(x, loss)
        assert found.gradient is not None and torch.equal(found.logits, expected.logits)
        torch.testing.assert_close(found.loss, expected.loss + lam * deviation.detach() / 3, rtol=1e-6, atol=0)
        torch.testing.assert_close(found.gradient, expected.gradient + lam * slope, rtol=1e-4, atol=1e-6)
        assert slope.norm() > 0.01 * expected.gradient.norm()
    evaluated = Deviating(Target(net, y, omega(), purifier, GradientMode.parse(mode), draws=3), lam).evaluate(x, loss)
    again = Deviating(Target(net, y, omega(), purifier, GradientMode.parse(mode), draws=3), lam)
    torch.testing.assert_close(evaluated.loss, again.differentiate(x, loss).loss, rtol=1e-6, atol=0)
    assert evaluated.gradient is None and target.evaluations == plain.evaluations


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "fixed"), [("linf", False), ("l2", True)])
def test_with_lambda_0_it_is_apgd_to_the_bit(net: nn.Module, x: Tensor, y: Tensor, norm: str, fixed: bool) -> None:
    def run(config: AttackConfig) -> tuple[Tensor, Tensor]:
        target = Target(net, y, omega(), rounds(60, 30), draws=3, fixed=fixed, batch=7)
        found = config.run(target, x, omega("attack"))
        assert target.evaluations == COUNT * 3 * config.evaluations
        return found.images, found.loss

    more = {"norm": norm, "eps": 0.2, "steps": 6, "eot": 3}
    plain = run(attack("apgd", loss="margin", **more))
    same = run(attack(losses=("margin",), lam=0.0, **more))
    assert torch.equal(same[0], plain[0]) and torch.equal(same[1], plain[1])
    assert not torch.equal(run(attack(losses=("margin",), lam=1.0, **more))[0], plain[0])
    assert run(attack(losses=("margin", "ce"), lam=1.0, **more))[0].shape == x.shape


def test_on_the_bare_classifier_it_is_apgd(net: nn.Module, x: Tensor, y: Tensor) -> None:
    config = attack(steps=8, losses=("ce",)).on_bare_classifier()
    found = config.run(Target(net, y, omega()), x, omega("attack"))
    plain = attack("apgd", steps=8).on_bare_classifier().run(Target(net, y, omega()), x, omega("attack"))
    assert torch.equal(found.images, plain.images) and config.static


@pytest.mark.slow
def test_a_large_lambda_leads_the_reverse_process_further_astray(net: nn.Module, x: Tensor, y: Tensor) -> None:
    purifier = rounds(100)

    def deviation(images: Tensor) -> float:
        judges = [Omega.of("spec", 0, "judge", range(COUNT), draw) for draw in range(20)]
        return float(torch.stack([purify_and_deviate(purifier, images, keys)[1] for keys in judges]).mean())

    def after(lam: float) -> float:
        config = attack(steps=10, losses=("ce",), lam=lam, eot=4, eps=0.15)
        return deviation(config.run(Target(net, y, omega(), purifier, draws=4), x, omega("attack")).images)

    assert after(1000.0) > after(0.0) > 0 and after(1000.0) > 1.1 * deviation(x)


@pytest.mark.slow
def test_the_shipped_denoiser_is_led_astray(
    denoiser: DiffusersConfig, network: nn.Module, digits_test: ImageSet
) -> None:
    count = 10
    x, y = torch.from_numpy(digits_test.images[:count]), torch.from_numpy(digits_test.labels[:count])
    purifier = DiffPure(denoiser.build(), 100, steps=10)

    def judged(images: Tensor) -> tuple[float, float]:
        target = Target(network, y, omega("judge", count), purifier, draws=8)
        with torch.no_grad():
            logits, deviation = target.deviating_logits(images)
        return float(deviation.mean()), float(target.over_draws(logits, point_loss("ce")).mean())

    def run(lam: float) -> tuple[float, float]:
        config = attack(eps=0.15, steps=5, losses=("ce",), lam=lam, eot=2)
        target = Target(network, y, omega(count=count), purifier, draws=2)
        found = config.run(target, x, omega("attack", count))
        assert float(perturbation_norms(found.images, x)["linf"].max()) <= 0.15
        return judged(found.images)

    clean, attacked, devoted = judged(x), run(1.0), run(100.0)
    assert attacked[0] > clean[0] and attacked[1] > clean[1]
    assert devoted[0] > 1.05 * clean[0]


class TestRefusals:
    @pytest.mark.parametrize("purifier", [GaussianNoise(0.1)])
    def test_a_purifier_without_a_forward_process_is_refused_at_once(
        self, net: nn.Module, x: Tensor, y: Tensor, purifier: Purifier
    ) -> None:
        with pytest.raises(InvalidInput, match="GaussianNoise does not noise its input and reverse that"):
            attack(steps=2, eot=2).run(Target(net, y, omega(), purifier, draws=2), x, omega("attack"))

    def test_so_is_its_config(self, denoiser: DiffusersConfig) -> None:
        def config(name: str, **more: Any) -> PurifierConfig:
            found = PurifierConfig.from_entry({"purifier": name, **more})
            assert isinstance(found, PurifierConfig)
            return found

        depth = {"denoiser": denoiser, "schedule": "linear-1000"}
        ok = config("diffpure", t_star=100, **depth)
        langevin = config("diffpure", t_star=10, form="ldsde", **depth)
        jpeg = PURIFIERS.get("jpeg").model_validate({"purifier": "jpeg"})
        for refused in (jpeg, langevin, config("chain", stages=[jpeg, langevin])):
            assert not refused.diffuses
            with pytest.raises(InvalidInput, match="compares the reverse process with the forward one; purifier"):
                attack().check(refused)
            attack().on_bare_classifier().check(refused)
            attack("apgd").check(refused)
        for fits in (
            ok,
            config("gdmp", t_star=36, **depth),
            config("gradual-noise", **depth),
            config("one-shot", t_star=100, **depth),
            config("chain", stages=[jpeg, ok]),
        ):
            assert fits.diffuses
            attack().check(fits)

    def test_bpda_has_no_states_to_differentiate(self) -> None:
        with pytest.raises(InvalidInput, match="which bpda leaves out"):
            attack(gradient="bpda")

    @pytest.mark.parametrize("wrong", [{"losses": ()}, {"losses": ("dlr-targeted",)}, {"lam": -1.0}, {"rho": 0.0}])
    def test_nonsense_parameters_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidInput):
            attack(**wrong)

    def test_defaults_are_the_paper_s(self) -> None:
        config = attack()
        assert isinstance(config, DeviatedReconstructionConfig)
        assert (config.steps, config.losses, config.lam, config.eot) == (100, ("ce", "dlr"), 1.0, 20)
        assert config.label() == "deviated-reconstruction-100 linf ce,dlr exact eot 20"
        assert config.evaluations == 2 * 101 + 2
        assert "lambda 0.5" in attack(lam=0.5).label()
