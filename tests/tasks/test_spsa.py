"""SPSA: the estimator's known error, its draws and keys, its steps, and its place below PGD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defense import Purifier
from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks.losses import margin
from tasks.attacks.pgd import PGDConfig
from tasks.attacks.random_noise import RandomNoiseConfig
from tasks.attacks.region import Norm, perturbation_norms
from tasks.attacks.spsa import SPSAConfig, estimate_gradient
from tasks.attacks.target import Target
from tasks.datasets import ImageSet

NORMS: tuple[Norm, ...] = ("linf", "l2")


def omega(count: int, seed: int = 0) -> Omega:
    return Omega.of("spec", seed, "attack", range(count))


class Watching(nn.Module):
    """Two classes with logits (0, w x); keeps what it saw, and wants no gradient."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen.append(x.clone())
        score = (x * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize("samples", [1, 16, 50, 400])
def test_on_a_linear_model_the_squared_error_is_d_minus_1_over_n(samples: int) -> None:
    shape = (2, 5, 5)
    network = Watching(shape)
    x = torch.full((300, *shape), 0.5)
    target = Target(network, torch.zeros(300).long(), omega(300))
    found = estimate_gradient(target, x, margin, omega(300), 3, samples, 0.01, 0)
    error = (found - network.weight).flatten(1)
    expected = 49 * float(network.weight.square().sum()) / samples
    assert float(error.square().sum(1).mean()) == pytest.approx(expected, rel=0.25 if samples == 1 else 0.08)
    # Unbiased: the mean over images is nearer by the root of their number.
    assert float(error.mean(0).square().sum()) == pytest.approx(expected / 300, rel=0.6)
    assert target.evaluations == 300 * 2 * samples


def test_the_estimate_is_unbiased_where_the_range_cuts_the_queries() -> None:
    shape = (1, 2, 2)
    network = Watching(shape)
    x = torch.tensor([0.0, 1.0, 0.004, 0.5]).view(1, *shape).repeat(500, 1, 1, 1)
    target = Target(network, torch.zeros(500).long(), omega(500))
    found = estimate_gradient(target, x, margin, omega(500), 0, 40, 0.01, 0).mean(0)
    assert all(float(seen.min()) >= 0 and float(seen.max()) <= 1 for seen in network.seen)
    # 20000 directions; the pixels at the border have half the difference and twice the error.
    np.testing.assert_allclose(
        found, network.weight, rtol=0, atol=6 * float(network.weight.norm()) / math.sqrt(20000)
    )


@pytest.mark.parametrize("samples", [1, 21])
def test_the_directions_are_fair_and_differ_by_step_and_image(samples: int) -> None:
    network = Watching((3, 8, 8))
    x = torch.full((5, 3, 8, 8), 0.5)
    signs = []
    for step in (0, 1):
        network.seen.clear()
        estimate_gradient(
            Target(network, torch.zeros(5).long(), omega(5)), x, margin, omega(5), step, samples, 0.125, 0
        )
        moved = torch.cat([seen.view(5, -1, 3, 8, 8) for seen in network.seen], 1) - 0.5
        assert moved.shape[1] == 2 * samples and (moved.abs() == 0.125).all()
        assert torch.equal(moved[:, 0::2], -moved[:, 1::2])
        signs.append(moved[:, 0::2].sign())
    every = torch.stack(signs).flatten(0, 2).flatten(1)  # steps x images x directions
    assert len({tuple(row.tolist()) for row in every}) == len(every)
    assert abs(float(every.mean())) < 5 / math.sqrt(every.numel())


@pytest.mark.parametrize("norm", NORMS)
def test_every_query_is_in_the_range_and_every_iterate_in_the_region(norm: Norm) -> None:
    shape = (1, 4, 4)
    network = Watching(shape)
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 1, 0])
    eps = 0.1 if norm == "linf" else 0.4
    attack = SPSAConfig(norm=norm, eps=eps, steps=30, samples=8, step_size=0.05)
    target = Target(network, y, omega(4))
    found = attack.run(target, x, omega(4))
    assert target.evaluations == 4 * attack.evaluations == 4 * (30 * 17 + 1)
    assert set(target.tally.evaluations.values()) == {attack.evaluations}  # every query of every image
    assert all(float(seen.min()) >= 0 and float(seen.max()) <= 1 for seen in network.seen)
    iterates = [seen for seen in network.seen if len(seen) == 4]
    assert len(iterates) == 31 and torch.equal(iterates[0], x)
    for seen in iterates:
        assert float(perturbation_norms(seen, x)[norm].max()) <= eps
    score = torch.stack([(seen * network.weight).flatten(1).sum(1) for seen in iterates])
    losses = torch.where(y == 0, score, -score)
    np.testing.assert_allclose(found.loss, losses.amax(0), rtol=0, atol=1e-5)
    # All but the optimum of a linear model.
    away = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * network.weight
    if norm == "linf":
        best = (((x + eps * away.sign()).clamp(0, 1) - x) * away).flatten(1).sum(1)
        assert (found.loss - losses[0] >= 0.9 * best).all()
    assert (found.loss - losses[0] > 0.5 * eps * network.weight.norm(p=1 if norm == "linf" else 2)).all()


def test_adam_is_torch_s() -> None:
    network = Watching((1, 3, 3))
    x = torch.full((2, 1, 3, 3), 0.5)
    y = torch.zeros(2).long()
    attack = SPSAConfig(norm="linf", eps=1.0, steps=6, samples=5, step_size=0.02)
    attack.run(Target(network, y, omega(2)), x, omega(2))
    iterates = [seen for seen in network.seen if len(seen) == 2]
    at = nn.Parameter(x.clone())
    adam = torch.optim.Adam([at], lr=0.02, maximize=True)
    for step in range(6):
        np.testing.assert_allclose(iterates[step], at.detach(), rtol=0, atol=1e-6)
        target = Target(network, y, omega(2))
        at.grad = estimate_gradient(target, at.detach(), margin, omega(2), step, 5, 0.01, 0)
        adam.step()


class Noisy(Purifier):
    """Adds noise of its key, and keeps the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[tuple[int, int]] = []

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        self.keys += zip(omega.image_ids, omega.draws, strict=True)
        return x + 0.3 * omega.normal("noise", 0, x)


@pytest.mark.parametrize("fixed", [True, False])
def test_the_queries_of_a_step_have_the_same_draws_or_each_its_own(fixed: bool) -> None:
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    network, purifier = Watching((1, 4, 4)), Noisy()
    attack = SPSAConfig(norm="linf", eps=0.1, steps=4, samples=3, gradient="bpda", eot=2, fixed_scores=fixed)
    target = Target(network, torch.zeros(3).long(), omega(3).within("eot"), purifier, draws=2)
    attack.run(target, x, omega(3))
    assert target.evaluations == len(purifier.keys) == 3 * 2 * attack.evaluations
    for image in range(3):
        draws = [draw for i, draw in purifier.keys if i == image]
        if fixed:  # seven evaluations a step and the last iterate's
            assert draws == [d for step in range(4) for d in [2 * step, 2 * step + 1] * 7] + [8, 9]
        else:
            assert draws == list(range(2 * attack.evaluations))


def test_who_knows_the_draws_has_them_in_every_query() -> None:
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    network, purifier = Watching((1, 4, 4)), Noisy()
    attack = SPSAConfig(norm="linf", eps=0.1, steps=3, samples=2, knows="randomness", eot=2, fixed_scores=False)
    attack.run(Target(network, torch.zeros(2).long(), omega(2), purifier, draws=2, fixed=True), x, omega(2))
    assert {draw for _, draw in purifier.keys} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.12), ("l2", 0.6)])
def test_it_is_between_random_noise_and_pgd(
    network: nn.Module, digits_test: ImageSet, norm: Norm, eps: float
) -> None:
    x, y = torch.from_numpy(digits_test.images[:50]), torch.from_numpy(digits_test.labels[:50])
    left = []
    for attack in (
        PGDConfig(norm=norm, eps=eps, steps=40, loss="margin"),
        SPSAConfig(norm=norm, eps=eps, steps=12, samples=24, step_size=None if norm == "l2" else 0.03),
        RandomNoiseConfig(norm=norm, eps=eps),
    ):
        found = attack.run(Target(network, y, omega(50)), x, omega(50))
        with torch.no_grad():
            left.append(float((network(found.images).argmax(1) == y).double().mean()))
    assert left[0] <= left[1] + 0.02  # one image of 50
    assert left[1] < left[2] - 0.2


def test_labels_and_defaults() -> None:
    attack = SPSAConfig(norm="linf", eps=0.1)
    assert (attack.label(), attack.evaluations, attack.update) == ("spsa-100x64 linf", 12901, "adam")
    assert attack.black_box and SPSAConfig(norm="l2", eps=0.5).update == "steepest"
    assert SPSAConfig(norm="l2", eps=0.5, update="adam").update == "adam"
    other = SPSAConfig(norm="l2", eps=0.5, steps=9, samples=4, loss="ce", knows="purifier", fixed_scores=False)
    assert other.method() == "spsa-9x4 l2 ce fresh scores"
    for spec in (attack, other):
        assert SPSAConfig.model_validate(spec.model_dump()).id == spec.id
    with pytest.raises(InvalidInput, match="has no norm 'l1'"):
        SPSAConfig(norm="l1", eps=1.0)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"samples": 0}, {"delta": 0.0}, {"update": "sgd"}])
def test_nonsense_parameters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        SPSAConfig.model_validate({"norm": "linf", "eps": 0.1, **wrong})
