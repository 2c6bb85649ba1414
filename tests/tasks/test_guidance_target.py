"""The attack on the guidance target: its gradient by plain autograd, in closed form, and where it is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defense import GradientMode, get_schedule
from defense.denoisers import OracleConfig
from defense.errors import InvalidInput
from defense.guidance import distance
from defense.oracles import GaussianMixtureDenoiser
from defense.purifiers import PURIFIERS, Diffusion, Purifier
from defense.purifiers.diff_ap import FreshNoise, MediatorPull
from defense.purifiers.guided_from_noise import DistanceGuidance
from defense.purifiers.osgd import OSGD
from defense.purifiers.robust_reverse import RobustGuidance
from defense.randomness import Omega
from defense.samplers import Ancestral, time_grid
from tasks.attacks import ATTACKS, AttackConfig, LadderConfig, StrongestConfig
from tasks.attacks.guidance_target import GuidanceTargetConfig, Pulled
from tasks.attacks.losses import point_loss
from tasks.attacks.region import Region
from tasks.attacks.target import Target

COUNT = 3
SCHEDULE = get_schedule("linear-1000")
MEAN, STD = 0.1, 0.5
ORACLE = GaussianMixtureDenoiser(SCHEDULE, [1.0], [MEAN], [STD])
MARGIN = point_loss("margin")


def omega(role: str = "eot", count: int = COUNT, draw: int = 0) -> Omega:
    return Omega.of("spec", 0, role, range(count), draw)


def attack(**more: Any) -> GuidanceTargetConfig:
    config: AttackConfig = AttackConfig.from_entry({"attack": "guidance-target", "norm": "linf", "eps": 0.1, **more})
    assert isinstance(config, GuidanceTargetConfig)
    return config


def network(seed: int, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, classes))
    return net.double().requires_grad_(False)


NET, AUXILIARY = network(1), network(2)


def ancestral(t: int, steps: int) -> Ancestral:
    return Ancestral(SCHEDULE, time_grid(t, steps), variance="large")


def guided() -> dict[str, Purifier]:
    """One purifier of each kind of target."""
    near = DistanceGuidance(distance("mse"), 0.3)
    robust = RobustGuidance(AUXILIARY, 2.0, latent_weight=0.0, label="entropy")
    return {
        "distance": Diffusion(ORACLE, [ancestral(60, 3)], guidance=near),
        "correction": Diffusion(ORACLE, [FreshNoise(SCHEDULE, time_grid(80, 2))], correction=MediatorPull(4.0, 1)),
        "auxiliary": Diffusion(ORACLE, [ancestral(40, 2)], guidance=robust),
        "first answer": OSGD(ORACLE, 30, 5.0, clip=False),
    }


def answered(name: str, purifier: Purifier, x: Tensor, at: Omega) -> Tensor:
    """Logits at the point that is pulled to, written out."""
    if name != "first answer":
        known: Tensor = (AUXILIARY if name == "auxiliary" else NET)(x)
        return known
    abar = float(SCHEDULE.abar[30])
    z = math.sqrt(abar) * (2 * x - 1) + math.sqrt(1 - abar) * at.normal("forward", 0, x)
    clean = (z - math.sqrt(1 - abar) * ORACLE(z, 30)) / math.sqrt(abar)
    logits: Tensor = NET((clean + 1) / 2)
    return logits


@pytest.fixture
def x() -> Tensor:
    return torch.rand(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def y() -> Tensor:
    return torch.arange(COUNT) % 3


@pytest.mark.parametrize("name", list(guided()))
def test_the_gradient_is_that_of_both_terms_by_plain_autograd(name: str, x: Tensor, y: Tensor) -> None:
    purifier, share, draws = guided()[name], 0.3, 2
    target = Target(NET, y, omega(), purifier, GradientMode("exact"), draws=draws)
    for call in range(2):  # draws go on
        found = Pulled(target, share).differentiate(x, MARGIN)
        at = x.clone().requires_grad_()
        own, guide = x.new_zeros(COUNT), x.new_zeros(COUNT)
        for draw in range(call * draws, (call + 1) * draws):
            randomness = omega(draw=draw)
            own = own + MARGIN(NET(purifier(at, randomness)), y) / draws
            guide = guide + MARGIN(answered(name, purifier, at, randomness), y) / draws
        total = (1 - share) * own + share * guide
        (expected,) = torch.autograd.grad(total.sum(), at)
        assert found.gradient is not None
        # What an attack keeps is chosen by the defence's own loss.
        torch.testing.assert_close(found.loss, own.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.gradient, expected, rtol=1e-8, atol=1e-10)
        assert expected.abs().max() > 1e-3
    assert target.evaluations == 2 * draws * COUNT  # purifications: at the point that is pulled to there are none
    assert set(target.tally.points.values()) == {2 * draws}
    assert set(target.tally.gradients.values()) == {2}


@pytest.mark.parametrize("name", list(guided()))
def test_of_the_point_alone_no_gradient_goes_through_the_chain(name: str, x: Tensor, y: Tensor) -> None:
    """It would be multiplied by 0, and is not finite here."""
    purifier = guided()[name]

    class Cliff(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return torch.full_like(cotangent, torch.nan)

    class Broken(Purifier):
        def forward(self, x: Tensor, omega: Omega) -> Tensor:
            purified: Tensor = Cliff.apply(purifier(x, omega))  # type: ignore[no-untyped-call]
            return purified

        def target_logits(self, classifier: Any, x: Tensor, omega: Omega) -> Tensor:
            return purifier.target_logits(classifier, x, omega)

    found, other = (
        Pulled(Target(NET, y, omega(), Broken(), GradientMode("exact"), draws=2, batch=size), 1.0).differentiate(
            x, MARGIN
        )
        for size in (None, 2)
    )
    at = x.clone().requires_grad_()
    guide = sum(MARGIN(answered(name, purifier, at, omega(draw=k)), y).sum() / 2 for k in range(2))
    (expected,) = torch.autograd.grad(guide, at)  # type: ignore[arg-type]
    own = sum(MARGIN(NET(purifier(x, omega(draw=k))), y) / 2 for k in range(2))
    assert found.gradient is not None and other.gradient is not None
    torch.testing.assert_close(found.gradient, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(other.gradient, expected, rtol=1e-8, atol=1e-10)  # batch by batch
    torch.testing.assert_close(found.loss, own, rtol=1e-9, atol=1e-9)


def test_the_networks_of_the_purifier_are_in_its_precision_and_the_classifier_is_not(x: Tensor, y: Tensor) -> None:
    seen: list[bool] = []
    purifier = guided()["first answer"]

    def classifier(at: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        logits: Tensor = NET(at)
        return logits

    def denoiser(z: Tensor, t: int) -> Tensor:
        asked.append(torch.is_autocast_enabled("cpu"))
        return ORACLE(z, t)

    asked: list[bool] = []
    purifier.denoiser = denoiser  # type: ignore[assignment]
    precision = torch.autocast("cpu", torch.bfloat16)
    Pulled(Target(classifier, y, omega(), purifier, precision=lambda: precision), 0.5).differentiate(x, MARGIN)
    assert seen == [False, False] and asked and all(asked)


def slope(from_noise: bool, t: int, s: float) -> float:
    """dD/dx of one reverse step with the oracle N(MEAN, STD^2) in every pixel, a number.

    From the noised image the state is as far from the noised input as two noises are, whatever x is: only the
    posterior mean has a slope. From noise alone only the pull has one: sigma^2 s 2 sqrt(abar).
    """
    abar = float(SCHEDULE.abar[t])
    if from_noise:
        return (1 - abar) * s * 2 * math.sqrt(abar)
    return abar * STD**2 / (abar * STD**2 + 1 - abar)


@pytest.mark.parametrize("from_noise", [False, True])
def test_a_linear_classifier_and_a_gaussian_denoiser_in_closed_form(x: Tensor, from_noise: bool) -> None:
    t, s, share, eps = 50, 0.7, 0.25, 0.2
    linear = nn.Linear(16, 2).double().requires_grad_(False)
    net = nn.Sequential(nn.Flatten(), linear)
    purifier = Diffusion(
        ORACLE, [ancestral(t, 1)], guidance=DistanceGuidance(distance("mse"), s), from_noise=from_noise
    )
    y = torch.zeros(COUNT, dtype=torch.long)
    target = Target(net, y, omega(), purifier, GradientMode("exact"), draws=2)
    away = (linear.weight[1] - linear.weight[0]).view(1, 1, 4, 4)

    found = Pulled(target, share).differentiate(x, MARGIN)

    expected = ((1 - share) * slope(from_noise, t, s) + share) * away
    assert found.gradient is not None
    torch.testing.assert_close(found.gradient, expected.expand_as(x), rtol=1e-6, atol=1e-8)
    # Of a linear objective the best point of the ball is its corner.
    images = attack(steps=4, eps=eps, share=share, random_start=False, keep="last").run(
        Target(net.float(), y, omega(), purifier, GradientMode("exact")), x.float(), omega("attack")
    )
    corner = Region(x.float(), "linf", eps).project(x.float() + eps * away.sign().float())
    assert torch.equal(images.images, corner)


def test_it_is_a_rung_alone_and_a_warm_one(x: Tensor, y: Tensor) -> None:
    entry = {"attack": "guidance-target", "steps": 2, "eot": 2}
    shared: dict[str, Any] = {"norm": "linf", "eps": 0.1, "steps": 2}
    ladder = AttackConfig.from_entry({"attack": "ladder", **shared, "rungs": ["blind", entry]})
    strongest = AttackConfig.from_entry(
        {"attack": "strongest", **shared, "rungs": ["blind", entry, {**entry, "warm": True, "reselect": 3}]}
    )
    assert isinstance(ladder, LadderConfig) and isinstance(strongest, StrongestConfig)
    assert [rung.label() for rung in strongest.rungs] == [
        "pgd-2 linf",
        "guidance-target-2 linf margin exact eot 2",
        "guidance-target-2 linf margin exact eot 2 warm",
    ]
    unguided = PURIFIERS.get("gaussian-noise").model_validate({"purifier": "gaussian-noise", "sigma": 0.1})
    with pytest.raises(InvalidInput, match="it has no guidance"):
        ladder.check(unguided)
    purifier = guided()["first answer"]
    target = Target(network(1).float(), y, omega(), purifier, GradientMode("exact"), draws=2)
    rung = strongest.rungs[2]
    assert isinstance(rung, GuidanceTargetConfig)
    start = Region(x.float(), "linf", 0.1).project(x.float() + 0.05)
    images = rung.run_from(target, x.float(), omega("attack"), start).images
    assert (images - x.float()).abs().max() <= 0.1 + 1e-6 and not torch.equal(images, start)


def test_without_a_purifier_it_is_pgd(x: Tensor, y: Tensor) -> None:
    bare = attack(steps=3, eot=4, gradient="exact", reselect=2).on_bare_classifier()
    plain = AttackConfig.from_entry(
        {"attack": "pgd", "norm": "linf", "eps": 0.1, "steps": 3, "loss": "margin"}
    ).on_bare_classifier()
    net = network(1).float()
    images = [config.run(Target(net, y, omega()), x.float(), omega("attack")).images for config in (bare, plain)]
    assert bare.static and torch.equal(*images)


def test_purifiers_without_a_target_are_refused_before_anything_runs() -> None:
    oracle = OracleConfig(schedule="linear-1000")
    shared: dict[str, Any] = {"denoiser": oracle, "schedule": "linear-1000"}
    refused = {
        "diffpure": ({"t_star": 50, "steps": 2}, "it has no guidance"),
        "score-opt": ({"sigma_eq": 0.2, "iterations": 2}, "no pull towards a point"),
        "diff-ap": ({"t_star": 50, "steps": 2, "scale": 0.0}, "it has no guidance"),
    }
    for name, (fields, why) in refused.items():
        both = shared if "t_star" in fields else {"denoiser": oracle}
        purifier = PURIFIERS.get(name).model_validate({"purifier": name, **both, **fields})
        with pytest.raises(InvalidInput, match=why) as caught:
            attack().check(purifier)
        assert "pgd with `gradient: exact`" in str(caught.value), name
    trades = {"auxiliary": "digits-trades", "t_star": 50, "steps": 2}
    distances = ("gdmp", "guided-from-noise", "mimic-diffusion", "distribution-transfer", "contrastive-stateless")
    unpulled: list[dict[str, Any]] = [
        *({"purifier": name, "t_star": 300, "scale": 0.0} for name in distances),
        {"purifier": "robust-reverse", **trades, "scale": 0.0},
        {"purifier": "robust-reverse", **trades, "class_weight": 0.0, "latent_weight": 0.0},
        {"purifier": "robust-reverse", **trades, "class_label": "entropy", "latent_weight": 0.0},
    ]
    for entry in unpulled:
        purifier = PURIFIERS.get(entry["purifier"]).model_validate({**shared, **entry})
        assert purifier.pulls_to is None, entry
        with pytest.raises(InvalidInput, match="no pull towards a point"):
            attack().check(purifier)
    for more in ({"class_label": "entropy"}, {"latent_weight": 0.0}):
        entry = {"purifier": "robust-reverse", **trades, **more}
        assert PURIFIERS.get("robust-reverse").model_validate({**shared, **entry}).pulls_to is not None
    for name in ("gdmp", "guided-from-noise", "mimic-diffusion", "diff-ap", "osgd", "distribution-transfer", "coup"):
        purifier = PURIFIERS.get(name).model_validate({"purifier": name, **shared, "t_star": 300})
        attack().check(purifier)
        assert purifier.pulls_to is not None, name


def test_labels_and_fields() -> None:
    assert ATTACKS.get("guidance-target") is GuidanceTargetConfig
    config = attack(eot=5)
    assert config.label() == "guidance-target-20 linf margin exact eot 5" and not config.static
    assert attack(share=0.25, steps=7).label() == "guidance-target-7 linf margin share 0.25 exact"
    assert config.evaluations == config.on_bare_classifier().evaluations == 21  # as those of pgd
    for wrong in ({"share": 0.0}, {"eot_by": "cosine"}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            attack(**wrong)
    # The share is part of the id, and the id is not that of pgd.
    assert (
        len(
            {
                attack().id,
                attack(share=0.25).id,
                AttackConfig.from_entry(
                    {"attack": "pgd", "norm": "linf", "eps": 0.1, "loss": "margin", "gradient": "exact"}
                ).id,
            }
        )
        == 3
    )
