"""Square Attack: the schedule and windows of the paper, the strength of the reference, keyed randomness."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loops import every
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from defense import Purifier
from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks.losses import margin
from tasks.attacks.region import Norm, Region, perturbation_norms
from tasks.attacks.square import SquareConfig, _move, _profile, window_share, window_side
from tasks.attacks.target import Target
from tasks.datasets import ImageSet

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


def omega(count: int, seed: int = 0) -> Omega:
    return Omega.of("spec", seed, "attack", range(count))


class AllPlaces(SquareAttack):
    """The reference with the paper's windows, which may lie at the last row and column."""

    def random_int(self, low: int = 0, high: int = 1, shape: Any = (1,)) -> Tensor:
        found: Tensor = super().random_int(low, high + 1, shape)
        return found


def reference(norm: Norm, **more: Any) -> SquareAttack:
    names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
    return AllPlaces(None, norm=names[norm], resc_schedule=False, device="cpu", **more)


def test_the_share_of_the_image_follows_the_reference_s_schedule() -> None:
    square = reference("linf", eps=0.1)
    for query in range(10_001):
        assert window_share(query, 0.8) == square.p_selection(query)
    assert [window_share(query, 0.8) for query in (0, 10, 11, 50, 51, 8001)] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.8 / 512]


def test_the_side_of_windows() -> None:
    assert window_side(0.8, 32, 32, "linf") == round(math.sqrt(0.8 * 1024)) == 29
    assert [window_side(0.8 / 2**k, 8, 8, "linf") for k in range(8)] == [7, 5, 4, 3, 2, 1, 1, 1]
    assert [window_side(0.8 / 2**k, 8, 8, "l2") for k in range(5)] == [7, 5, 5, 3, 3]
    assert window_side(1.0, 8, 8, "l2") == 8  # 9 does not fit
    assert window_side(0.8, 4, 20, "linf") == 4


@every("side", [1, 2, 3, 5, 6, 7, 29])
@every(("norm", "power"), [("l2", 2), ("l1", 1)])
def test_the_profile_is_the_reference_s(norm: Norm, power: int, side: int) -> None:
    with torch.random.fork_rng():
        theirs = reference(norm, eps=0.1).eta(side)
    ours = _profile(side, norm)
    assert float(ours.norm(p=power)) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(ours, theirs, atol=1e-6) or torch.allclose(ours.T, theirs, atol=1e-6)


class Watching(nn.Module):
    """A classifier of three classes by random weights that keeps what it saw."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen.append(x.clone())
        return (x.unsqueeze(1) * self.weight).flatten(2).sum(2)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 8, 8), (3, 9, 14), (2, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("norm", NORMS)
def test_every_query_is_in_the_region_and_a_window_away_from_the_best_so_far(
    norm: Norm, shape: tuple[int, int, int]
) -> None:
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    network = Watching(shape)
    y = torch.tensor([0, 1, 2, 0])
    eps = {"linf": 0.1, "l2": 0.6, "l1": 5.0}[norm]
    attack = SquareConfig(norm=norm, eps=eps, queries=60)
    found = attack.run(Target(network, y, omega(4)), x, omega(4))
    assert len(network.seen) == attack.evaluations == 61
    best, best_loss = network.seen[0], margin((network.seen[0].unsqueeze(1) * network.weight).flatten(2).sum(2), y)
    for query, seen in enumerate(network.seen):
        assert float(perturbation_norms(seen, x)[norm].max()) <= eps
        assert float(seen.min()) >= 0 and float(seen.max()) <= 1
        if norm == "linf" and query > 0:
            side = window_side(window_share(query - 1, 0.8), *shape[1:], norm)
            changed = (seen != best).any(1)
            assert int(changed.any(2).sum(1).max()) <= side and int(changed.any(1).sum(1).max()) <= side
        loss = margin((seen.unsqueeze(1) * network.weight).flatten(2).sum(2), y)
        better = loss > best_loss
        best = torch.where(better.view(-1, 1, 1, 1), seen, best)
        best_loss = torch.where(better, loss, best_loss)
    assert torch.equal(found.images, best) and torch.equal(found.loss, best_loss)


def test_linf_starts_with_vertical_stripes_and_stays_at_corners_of_the_region() -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = Watching((3, 8, 8))
    SquareConfig(norm="linf", eps=0.1, queries=30).run(Target(network, torch.zeros(4).long(), omega(4)), x, omega(4))
    region = Region(x, "linf", 0.1)
    above = network.seen[0] == region.upper
    assert (above | (network.seen[0] == region.lower)).all()
    assert torch.equal(above, above[:, :, :1].expand_as(above))
    assert 0.3 < float(above.double().mean()) < 0.7
    for seen in network.seen:
        assert ((seen == region.upper) | (seen == region.lower)).all()
    # Windows reach the last row and column, each image's its own.
    moved = [(seen != network.seen[0]).any(1) for seen in network.seen[1:]]
    assert any(m[:, -1].any() for m in moved) and any(m[:, :, -1].any() for m in moved)
    assert any(not torch.equal(m[0], m[1]) for m in moved)


def test_l2_proposals_use_the_whole_budget_where_the_range_does_not_cut() -> None:
    x = torch.full((4, 3, 12, 12), 0.5)
    network = Watching((3, 12, 12))
    SquareConfig(norm="l2", eps=0.6, queries=40).run(Target(network, torch.zeros(4).long(), omega(4)), x, omega(4))
    for seen in network.seen:
        np.testing.assert_allclose(perturbation_norms(seen, x)["l2"], 0.6, rtol=1e-5)
        assert float(perturbation_norms(seen, x)["l2"].max()) <= 0.6


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_proposal_is_the_reference_s(norm: Norm) -> None:
    """One move of the windows that the reference draws, from the same image."""
    generator = torch.Generator().manual_seed(0)
    eps = 0.9 if norm == "l2" else 8.0
    x = torch.rand(1, 3, 10, 10, generator=generator)
    seen: list[Tensor] = []
    square = reference(norm, eps=eps, n_queries=12, p_init=0.2)
    numbers: list[Tensor] = []  # all that it draws but the turns

    def predict(images: Tensor) -> Tensor:
        seen.append(images.clone())
        # Worse and worse, so that the best stays the start; never misclassified.
        return torch.tensor([[1.0 + len(seen), 0.0, 0.0]]).repeat(len(images), 1)

    def random_int(low: int = 0, high: int = 1, shape: Any = (1,)) -> Tensor:
        numbers.append(torch.rand(1, generator=generator))
        return (numbers[-1] * (high + 1)).long()  # the last place too, as in AllPlaces

    def random_choice(shape: Any) -> Tensor:
        numbers.append(torch.rand(shape, generator=generator))
        return torch.where(numbers[-1] < 0.5, -1.0, 1.0)

    square.predict, square.random_int, square.random_choice = predict, random_int, random_choice
    square.orig_dim, square.ndims = [3, 10, 10], 3
    with torch.random.fork_rng():
        square.attack_single_run(x, torch.tensor([0]))
    assert len(seen) == 13
    region, drawn = Region(x, norm, eps), numbers[-12 * 5 :]
    for query in range(12):
        row, column, row2, column2, signs = drawn[5 * query : 5 * query + 5]
        places = torch.cat([row, column, row2, column2])
        side = window_side(window_share(query, 0.2), 10, 10, norm)
        ours = [
            _move(region, seen[0], side, torch.cat([places, torch.tensor([turn]), signs.flatten()]).unsqueeze(0))
            for turn in (0.0, 1.0)  # it turns its profile by a number of its own
        ]
        apart = min(float((image - seen[query + 1]).abs().max()) for image in ours)
        assert apart <= 1e-5
        assert float((seen[query + 1] - seen[0]).abs().max()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "eps"),
    [("linf", 0.12), *(pytest.param(*case, marks=pytest.mark.nightly) for case in (("l2", 0.6), ("l1", 1.5)))],
)
def test_it_leaves_as_many_right_as_the_reference(
    network: nn.Module, digits_test: ImageSet, norm: Norm, eps: float
) -> None:
    x, y = torch.from_numpy(digits_test.images[:150]), torch.from_numpy(digits_test.labels[:150])
    attack = SquareConfig(norm=norm, eps=eps, queries=150)
    found = attack.run(Target(network, y, omega(150)), x, omega(150))
    square = reference(norm, eps=eps, n_queries=150, seed=0)
    square.predict = network
    with torch.random.fork_rng(), torch.no_grad():
        a = (network(found.images).argmax(1) == y).double()
        b = (network(square.perturb(x, y)).argmax(1) == y).double()
    assert 0.1 < float(b.mean()) < 0.9
    assert abs(float((a - b).mean())) <= 3 * float((a - b).std()) / math.sqrt(150)


@pytest.mark.slow
def test_more_queries_go_on_where_fewer_end(network: nn.Module, digits_test: ImageSet) -> None:
    x, y = torch.from_numpy(digits_test.images[:20]), torch.from_numpy(digits_test.labels[:20])
    losses = []
    for queries in (5, 50, 300):
        attack = SquareConfig(norm="linf", eps=0.1, queries=queries)
        losses.append(attack.run(Target(network, y, omega(20)), x, omega(20)).loss)
    assert (losses[0] <= losses[1]).all() and (losses[1] <= losses[2]).all()
    assert float((losses[2] - losses[0]).mean()) > 1
    assert (losses[1] > 0).any()  # some are misclassified after 50, and yet go on
    assert (losses[2] > losses[1])[losses[1] > 0].any()


class Noisy(Purifier):
    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        self.draws.append(omega.draws)
        return x + 0.3 * omega.normal("noise", 0, x)


@pytest.mark.parametrize("fixed", [True, False])
def test_scores_are_means_over_the_same_or_over_fresh_draws(fixed: bool) -> None:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2])
    network, purifier = Watching((1, 8, 8)), Noisy()
    attack = SquareConfig(norm="linf", eps=0.1, queries=20, gradient="bpda", eot=2, fixed_scores=fixed, loss="ce")
    target = Target(network, y, omega(3).within("eot"), purifier, draws=2)
    found = attack.run(target, x, omega(3))
    assert purifier.draws == [(0, 1) * 3 if fixed else (2 * k, 2 * k + 1) * 3 for k in range(21)]
    assert (target.calls, target.evaluations, target.fixed) == (21, 21 * 6, False)
    losses = [
        F.cross_entropy((s.unsqueeze(1) * network.weight).flatten(2).sum(2), y.repeat_interleave(2), reduction="none")
        for s in network.seen
    ]
    means = torch.stack(losses).reshape(21, 3, 2).mean(2)
    np.testing.assert_allclose(found.loss, means.amax(0), rtol=1e-5)
    # With fixed draws the loss is that of the images; with fresh ones it was luck, which a repetition has not.
    again = attack.run(target, x, omega(3)) if fixed else None
    assert again is None or torch.equal(again.images, found.images)


def test_labels_and_defaults() -> None:
    attack = SquareConfig(norm="linf", eps=0.1)
    assert (attack.label(), attack.evaluations, attack.p_init) == ("square-5000 linf", 5001, 0.8)
    assert attack.loss == "margin" and attack.fixed_scores and attack.black_box
    other = SquareConfig(norm="l2", eps=0.1, gradient="bpda", eot=4, fixed_scores=False, loss="ce")
    assert other.label() == "square-5000 l2 ce fresh scores by scores eot 4"


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"p_init": 0.0}, {"p_init": 1.1}, {"loss": "dlr"}])
def test_nonsense_parameters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        SquareConfig.model_validate({"norm": "linf", "eps": 0.1, **wrong})
