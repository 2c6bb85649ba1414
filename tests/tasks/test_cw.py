"""Carlini and Wagner's attack: closed-form minima, the norms of foolbox, what is submitted, keyed draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defense import Purifier
from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks.base import AttackResult
from tasks.attacks.cw import CarliniWagnerConfig
from tasks.attacks.losses import margin
from tasks.attacks.region import perturbation_norms
from tasks.attacks.target import Target
from tasks.datasets import ImageSet


def omega(count: int, seed: int = 0) -> Omega:
    return Omega.of("spec", seed, "attack", range(count))


class Linear:
    """Two classes with logits (0, w x + b)."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        score = (x * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.0, 0.3])
def test_on_a_linear_classifier_the_minimum_is_the_distance_to_the_plane(kappa: float) -> None:
    weight = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    x = 0.3 + 0.4 * torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    network = Linear(weight, -float((0.5 * weight).sum()))
    y = network(x).argmax(1)
    attack = CarliniWagnerConfig(norm="l2", eps=0.5, kappa=kappa, steps=200, lr=0.02, initial_c=0.01)
    found = attack.run(Target(network, y, omega(6)), x, omega(6))
    distance = (kappa - margin(network(x), y).double()) / weight.double().norm()
    assert (distance > 0.01).all()
    assert (found.columns["minimum_l2"] >= distance - 1e-6).all()
    np.testing.assert_allclose(found.columns["minimum_l2"], distance, rtol=0.03)


@pytest.mark.slow
def test_the_minima_are_those_of_foolbox(network: nn.Module, digits_test: ImageSet) -> None:
    import foolbox

    x, y = torch.from_numpy(digits_test.images[:25]), torch.from_numpy(digits_test.labels[:25])
    attack = CarliniWagnerConfig(
        norm="l2", eps=0.6, binary_search_steps=6, steps=60, initial_c=0.1, lr=0.02, abort_early=False
    )
    target = Target(network, y, omega(25))
    found = attack.run(target, x, omega(25))
    assert target.evaluations == 25 * attack.evaluations
    reference = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=6, steps=60, stepsize=0.02, initial_const=0.1, abort_early=False
    )
    theirs, _, fooled = reference(foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu"), x, y, epsilons=None)
    norms = perturbation_norms(theirs, x)["l2"]
    right = network(x).argmax(1) == y
    minimum = found.columns["minimum_l2"]
    assert fooled.all() and minimum.isfinite().all() and right.sum() >= 22
    ratio = (minimum / norms)[right]
    assert abs(float(ratio.median()) - 1) < 1e-3 and abs(float(ratio.mean()) - 1) < 0.01
    assert float(((ratio - 1).abs() < 0.03).double().mean()) > 0.95
    assert (minimum[~right] < 1e-4).all()

    # What is submitted is in the ball, and fools exactly where the least perturbation is.
    assert float(perturbation_norms(found.images, x)["l2"].max()) <= 0.6
    np.testing.assert_allclose(margin(network(found.images), y), found.loss, rtol=0, atol=1e-4)
    assert torch.equal(found.loss > 0, minimum <= 0.6)
    assert 4 < int((found.loss > 0).sum()) < 21


@pytest.mark.slow
def test_where_nothing_is_met_the_minimum_is_nan_and_the_largest_margin_in_the_ball_is_submitted() -> None:
    weight = torch.ones(1, 2, 2)
    network = Linear(weight, -100.0)
    x = torch.full((2, 1, 2, 2), 0.5)
    y = torch.zeros(2).long()
    attack = CarliniWagnerConfig(
        norm="l2", eps=0.3, binary_search_steps=5, initial_c=1.0, steps=60, abort_early=False
    )
    found = attack.run(Target(network, y, omega(2)), x, omega(2))
    assert found.columns["minimum_l2"].isnan().all()
    gain = margin(network(found.images), y) - margin(network(x), y)
    assert (gain > 0.55).all() and (gain <= 0.3 * 2 + 1e-4).all()


@pytest.mark.slow
def test_images_that_are_wrong_already_have_no_distance_and_are_attacked_all_the_same() -> None:
    network = Linear(torch.ones(1, 2, 2), -1.0)
    x = torch.full((2, 1, 2, 2), 0.5)
    attack = CarliniWagnerConfig(norm="l2", eps=0.3, steps=20)
    found = attack.run(Target(network, torch.zeros(2).long(), omega(2)), x, omega(2))
    assert (found.columns["minimum_l2"] < 1e-5).all() and (found.loss > 0.99).all()


class Noisy(Purifier):
    """Adds noise of its key; the draws are kept by image."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: dict[int, list[int]] = {}

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        for image, draw in zip(omega.image_ids, omega.draws, strict=True):
            self.draws.setdefault(image, []).append(draw)
        return x + 0.1 * omega.normal("noise", 0, x)


def one_by_one(network: nn.Module) -> nn.Module:
    class OneByOne(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([network(image[None]) for image in x])

    return OneByOne()


@pytest.fixture(scope="module")
def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    return net.requires_grad_(False)


@pytest.mark.slow
def test_an_image_s_result_and_draws_do_not_depend_on_its_batch(small: nn.Module) -> None:
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = small(x).argmax(1)
    attack = CarliniWagnerConfig(
        norm="l2", eps=0.5, steps=40, binary_search_steps=4, initial_c=0.1, lr=0.05, gradient="exact", eot=2
    )
    classifier = one_by_one(small)

    def attacked(some: list[int]) -> tuple[AttackResult, Noisy, Target]:
        keys, purifier = Omega.of("spec", 0, "attack", some), Noisy()
        target = Target(classifier, y[some], keys.within("eot"), purifier, draws=2)
        return attack.run(target, x[some], keys), purifier, target

    before = torch.get_rng_state()
    whole, their, target = attacked([0, 1, 2, 3, 4])
    part, own, _ = attacked([3, 1])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(part.images, whole.images[[3, 1]]) and torch.equal(part.loss, whole.loss[[3, 1]])
    assert torch.equal(part.columns["minimum_l2"], whole.columns["minimum_l2"][[3, 1]])
    assert own.draws[3] == their.draws[3] and own.draws[1] == their.draws[1]
    lengths = {len(draws) for draws in their.draws.values()}
    assert len(lengths) > 1  # images do give up at different times
    assert sum(map(len, their.draws.values())) == target.evaluations
    assert max(lengths) <= 2 * attack.evaluations
    assert all(len(set(draws)) == len(draws) for draws in their.draws.values())


@pytest.mark.slow
def test_with_draws_the_margin_is_the_mean_over_them(small: nn.Module) -> None:
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = small(x).argmax(1)
    attack = CarliniWagnerConfig(
        norm="l2", eps=0.4, steps=30, binary_search_steps=3, initial_c=1.0, lr=0.05, knows="randomness", eot=5
    )
    target = Target(small, y, omega(3), Noisy(), draws=5, fixed=True)
    found = attack.run(target, x, omega(3))
    margins = [
        margin(small(found.images + 0.1 * replace(omega(3), draws=(k,) * 3).normal("noise", 0, x)), y)
        for k in range(5)
    ]
    np.testing.assert_allclose(found.loss, torch.stack(margins).mean(0), rtol=0, atol=1e-5)
    assert float(perturbation_norms(found.images, x)["l2"].max()) <= 0.4


@pytest.mark.slow
def test_giving_up_early_loses_little(network: nn.Module, digits_test: ImageSet) -> None:
    x, y = torch.from_numpy(digits_test.images[:6]), torch.from_numpy(digits_test.labels[:6])
    minima, costs = [], []
    for abort_early in (True, False):
        attack = CarliniWagnerConfig(
            norm="l2", eps=1.0, steps=100, binary_search_steps=5, initial_c=0.1, lr=0.02, abort_early=abort_early
        )
        target = Target(network, y, omega(6))
        minima.append(attack.run(target, x, omega(6)).columns["minimum_l2"])
        costs.append(target.evaluations)
    assert costs[0] < 0.95 * costs[1]
    assert float((minima[0] / minima[1]).nanmean()) < 1.02


def test_labels_and_defaults() -> None:
    attack = CarliniWagnerConfig(norm="l2", eps=0.5)
    assert (attack.label(), attack.evaluations) == ("cw-l2 9x10000", 90001)
    assert (attack.kappa, attack.initial_c, attack.lr, attack.abort_early) == (0, 1e-3, 0.01, True)
    assert CarliniWagnerConfig(norm="l2", eps=0.5, kappa=2.0).label() == "cw-l2 9x10000 kappa 2"
    assert CarliniWagnerConfig.model_validate(attack.model_dump()).id == attack.id


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_other_norms_are_refused(norm: str) -> None:
    with pytest.raises(InvalidInput, match="write `norm: l2`"):
        CarliniWagnerConfig.model_validate({"norm": norm, "eps": 0.1})


@pytest.mark.parametrize("wrong", [{"kappa": -1.0}, {"steps": 0}, {"initial_c": 0.0}, {"lr": 0.0}])
def test_nonsense_parameters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        CarliniWagnerConfig.model_validate({"norm": "l2", "eps": 0.1, **wrong})
