"""APGD: the paper's checkpoints, the reference's iterates, linear optima, and what it does not look at."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyautoattack import autopgd_base
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from defense import Purifier
from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks import apgd
from tasks.attacks.apgd import APGDConfig, checkpoints, sphere_start
from tasks.attacks.apgd_l1 import budgets
from tasks.attacks.losses import dlr_targeted, point_loss
from tasks.attacks.pgd import PGDConfig
from tasks.attacks.region import Norm, Region, _onto_l1_ball, perturbation_norms
from tasks.attacks.target import Target
from tasks.datasets import ImageSet

NORMS: tuple[Norm, ...] = ("linf", "l2")
REFERENCE_NORM = {"linf": "Linf", "l2": "L2"}


def omega(count: int, seed: int = 0) -> Omega:
    return Omega.of("spec", seed, "attack", range(count))


class Recorder(nn.Module):
    """A classifier that keeps a copy of all images that it saw."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        logits: Tensor = self.network(x)
        return logits


@pytest.fixture(scope="module")
def smooth() -> nn.Module:
    """Five classes, curved enough that the step size is halved at different times."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 5))
    with torch.no_grad():
        net[1].weight.mul_(3)
        net[3].weight.mul_(3)
    return net.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def batch(smooth: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    return x, smooth(x).argmax(1)


def test_the_checkpoints_are_the_papers() -> None:
    # Section 3.1: p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99.
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(20) == [4, 7, 9, 10, *range(11, 21)]
    assert checkpoints(1) == [1]


@pytest.mark.parametrize("norm", NORMS)
def test_the_start_lies_on_the_sphere(norm: Norm) -> None:
    x = torch.full((4, 3, 4, 4), 0.5)
    draws = omega(4)
    t = 2 * draws.uniform("start", 2, x) - 1 if norm == "linf" else draws.normal("start", 2, x)
    length = t.flatten(1).abs().amax(1) if norm == "linf" else t.flatten(1).norm(dim=1)
    start = sphere_start(Region(x, norm, 0.3), draws, 2)
    np.testing.assert_allclose(start, x + 0.3 * t / length.view(-1, 1, 1, 1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(perturbation_norms(start, x)[norm], 0.3, rtol=1e-6)
    assert float(perturbation_norms(start, x)[norm].max()) <= 0.3


class Unrounded(Region):
    """The region in float64, projected as in the reference. In float32 a last digit decides, sooner or later, whether
    the loss rose, and the trajectories part; here they are to be the same to the end."""

    def __init__(self, x: Tensor, norm: Norm, eps: float) -> None:
        self.x, self.norm, self.eps = x, norm, eps

    def project(self, x: Tensor, *, strict: bool = True) -> Tensor:
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x, self.x - self.eps), self.x + self.eps).clamp(0, 1)
        delta = x - self.x
        if self.norm == "l1":
            delta = _onto_l1_ball(delta, self.x, self.eps)
            return torch.where(delta.abs() < 1e-8, self.x, self.x + delta)
        size = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return (self.x + delta / (size + 1e-12) * size.clamp_max(self.eps)).clamp(0, 1)


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(apgd, "Region", Unrounded)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


EPS: dict[Norm, float] = {"linf": 0.0625, "l2": 0.375}


def reference_run(
    attack: APGDAttack, x: Tensor, y: Tensor, norm: Norm, number: int = 0, region: type[Region] = Region
) -> tuple[Tensor, Tensor]:
    """Best images and losses of the reference from the start of our run of that number."""
    attack.init_hyperparam(x)
    start = sphere_start(region(x, norm, EPS[norm]), omega(len(x)), number)
    with torch.random.fork_rng():
        images, _, value, _ = attack.attack_single_run(x, y, x_init=start)
    return images, value


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_iterates_are_those_of_the_reference(float64: None, smooth: nn.Module, norm: Norm, loss: Any) -> None:
    network = copy.deepcopy(smooth).double()
    x = torch.rand(48, 3, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float32).double()
    y = network(x).argmax(1)
    ours, theirs = Recorder(network), Recorder(network)
    attack = APGDConfig(norm=norm, eps=EPS[norm], loss=loss)
    found = attack.run(Target(ours, y, omega(48)), x, omega(48))
    reference = APGDAttack(theirs, norm=REFERENCE_NORM[norm], eps=EPS[norm], loss=loss, device="cpu")
    images, value = reference_run(reference, x, y, norm, region=Unrounded)

    assert len(ours.seen) == len(theirs.seen) == attack.evaluations == 101
    # Where the right class is third, the DLR loss is 1 whatever the logits: its gradient is rounding, which we scale
    # to a step and the reference, dividing by its length plus 1e-12, does not. From there on nothing can be compared.
    losses = torch.stack([point_loss(loss)(network(seen), y) for seen in theirs.seen])
    constant = ((losses - 1).abs() <= 1e-9) & (loss == "dlr")
    before = constant.cumsum(0) == 0
    usual = before.all(0)
    assert int(usual.sum()) >= 10 and float(before.double().mean()) > 0.4
    mine, its = torch.stack(ours.seen), torch.stack(theirs.seen)
    np.testing.assert_allclose(mine[before], its[before], rtol=0, atol=1e-9)
    mine = mine[:, usual]
    np.testing.assert_allclose(found.images[usual], images[usual], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.loss[usual], value[usual], rtol=0, atol=1e-9)
    np.testing.assert_allclose(point_loss(loss)(network(found.images), y), found.loss, rtol=0, atol=1e-9)
    # The case is one in which steps are halved, at different times: without, a wrong rule might pass.
    moves = (mine[1:] - mine[:-1]).flatten(2)
    lengths = moves.abs().amax(2) if norm == "linf" else moves.norm(dim=2)
    assert float(lengths[-30:].mean()) < EPS[norm] / 4
    assert float(lengths[60:].mean(0).std()) > 0


@pytest.fixture
def float64_l1(float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference with our projection, since its own is in float32, and without its count of rounding errors.

    It adds a projected perturbation to an image pixel by pixel, and so counts pixels as changed that are not.
    """

    def project(x: Tensor, y: Tensor, eps: float) -> Tensor:
        return _onto_l1_ball(y, x, eps) - y

    monkeypatch.setattr(autopgd_base, "L1_projection", project)
    monkeypatch.setattr(autopgd_base, "L0_norm", lambda z: (z.abs() >= 1e-8).flatten(1).sum(1).to(z))


@pytest.mark.slow
@pytest.mark.parametrize("larger_eps", [True, False])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_l1_iterates_are_those_of_the_reference(
    float64_l1: None,
    smooth: nn.Module,
    batch: tuple[Tensor, Tensor],
    larger_eps: bool,
    loss: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = batch[0].double(), batch[1]
    network = copy.deepcopy(smooth).double()
    ours, theirs = Recorder(network), Recorder(network)
    attack = APGDConfig(norm="l1", eps=1.0, loss=loss, steps=50, larger_eps=larger_eps)
    found = attack.run(Target(ours, y, omega(24)), x, omega(24))
    assert len(ours.seen) == attack.evaluations == (53 if larger_eps else 51)

    reference = APGDAttack(theirs, norm="L1", eps=1.0, loss=loss, n_iter=50, device="cpu")
    reference.init_hyperparam(x)
    noise = omega(24).normal("start", 0, x)
    monkeypatch.setattr(torch, "randn", lambda *_: noise.clone())
    monkeypatch.setattr(torch, "randn_like", lambda _: noise.clone())
    if larger_eps:
        assert budgets(50) == [(3.0, 15), (2.0, 15), (1.0, 20)]
        _, _, value, _ = reference.decr_eps_pgd(x, y, [3.0, 2.0, 1.0], [15, 15, 20])
    else:
        _, _, value, _ = reference.attack_single_run(x, y)
    mine, its = torch.stack(ours.seen), torch.stack(theirs.seen)
    assert mine.shape == its.shape
    same = ((mine - its).flatten(2).abs().amax(2) <= 1e-7).all(0)
    # Where the DLR loss is constant, its gradient is rounding, whose largest components are anybody's.
    assert float(same.double().mean()) == 1 if loss == "ce" else float(same.double().mean()) >= 0.4
    np.testing.assert_allclose(found.loss[same], value[same], rtol=0, atol=1e-6)
    # The case is one in which runs get sparser at different times, and go back.
    changed = (mine != x).flatten(2).sum(2)
    assert int(changed[-1].min()) <= 5 and any(len(set(row.tolist())) >= 6 for row in changed)
    assert (perturbation_norms(mine[-21:].flatten(0, 1), x.repeat(21, 1, 1, 1))["l1"] <= 1).all()


def test_a_larger_ball_s_images_are_not_results(smooth: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    ours = Recorder(smooth)
    attack = APGDConfig(norm="l1", eps=1.0, steps=20)
    found = attack.run(Target(ours, y, omega(24)), x, omega(24))
    losses = torch.stack([F.cross_entropy(smooth(seen), y, reduction="none") for seen in ours.seen])
    assert float(perturbation_norms(found.images, x)["l1"].max()) <= 1
    np.testing.assert_allclose(found.loss, losses[-9:].amax(0), rtol=1e-5)  # 8 steps and their start
    assert (losses[:-9].amax(0) > found.loss + 0.1).all()  # which more could have been had of outside
    assert [len(seen) for seen in ours.seen] == [24] * 23


@pytest.mark.slow
def test_on_the_shipped_network_larger_balls_first_are_better_and_random_l1_noise_is_nothing(
    network: nn.Module, digits_test: ImageSet
) -> None:
    x, y = torch.from_numpy(digits_test.images[:40]), torch.from_numpy(digits_test.labels[:40])
    left = []
    for larger_eps in (True, False):
        attack = APGDConfig(norm="l1", eps=2.0, steps=50, larger_eps=larger_eps)
        found = attack.run(Target(network, y, omega(40)), x, omega(40))
        assert float(perturbation_norms(found.images, x)["l1"].max()) <= 2.0
        assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1
        left.append(float((network(found.images).argmax(1) == y).double().mean()))
    noisy = network(Region(x, "l1", 2.0).random_start(omega(40))).argmax(1) == y
    assert left[0] <= left[1] + 0.02 and left[1] < 0.5 < 0.9 < float(noisy.double().mean())


class Wavy(nn.Module):
    """Many maxima, so that steps fall as often as they rise."""

    def forward(self, x: Tensor) -> Tensor:
        wave = torch.sin(40 * x).flatten(1).mean(1)
        return torch.stack([wave, -wave, 0.3 * wave], 1)


@pytest.mark.parametrize("norm", NORMS)
def test_the_very_first_step_has_risen_if_its_loss_is_positive_as_in_the_reference(float64: None, norm: Norm) -> None:
    x = torch.rand(120, 3, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y = torch.arange(120) % 3
    ours, theirs = Recorder(Wavy()), Recorder(Wavy())
    APGDConfig(norm=norm, eps=EPS[norm], steps=5).run(Target(ours, y, omega(120)), x, omega(120))
    reference = APGDAttack(theirs, norm=REFERENCE_NORM[norm], n_iter=5, eps=EPS[norm], device="cpu")
    reference_run(reference, x, y, norm, region=Unrounded)
    np.testing.assert_allclose(torch.stack(ours.seen), torch.stack(theirs.seen), rtol=0, atol=1e-9)
    # With 5 steps each is a checkpoint; some images fell in the first and yet were not sent back.
    losses = torch.stack([F.cross_entropy(Wavy()(seen), y, reduction="none") for seen in ours.seen[:2]])
    assert int((losses[1] < losses[0]).sum()) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_in_float32_the_best_loss_is_that_of_the_reference(
    smooth: nn.Module, batch: tuple[Tensor, Tensor], norm: Norm, loss: Any
) -> None:
    x, y = batch
    attack = APGDConfig(norm=norm, eps=EPS[norm], loss=loss)
    found = attack.run(Target(smooth, y, omega(24)), x, omega(24))
    reference = APGDAttack(smooth, norm=REFERENCE_NORM[norm], eps=EPS[norm], loss=loss, device="cpu")
    _, value = reference_run(reference, x, y, norm)
    # Of a few images the trajectories part, see Unrounded, and end in other maxima or other places around one.
    assert float(((found.loss - value).abs() <= 1e-5).double().mean()) >= 0.75
    assert abs(float((found.loss - value).mean())) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_a_targeted_run_ends_where_the_reference_s_does(
    float64: None, smooth: nn.Module, batch: tuple[Tensor, Tensor], norm: Norm
) -> None:
    x, y = batch[0].double(), batch[1]
    network = copy.deepcopy(smooth).double()
    attack = APGDConfig(norm=norm, eps=EPS[norm], loss="dlr-targeted", targets=3, steps=50)
    assert attack.evaluations == 3 * 51 + 1
    ours = Recorder(network)
    found = attack.run(Target(ours, y, omega(24)), x, omega(24))
    assert len(ours.seen) == attack.evaluations

    losses = []
    order = network(x).argsort(1, descending=True)
    for number in range(3):
        reference = APGDAttack_targeted(network, n_iter=50, norm=REFERENCE_NORM[norm], eps=EPS[norm], device="cpu")
        reference.y_target = order[:, number + 1]  # the right class comes first
        images, value = reference_run(reference, x, y, norm, number, Unrounded)
        losses.append(value)
        np.testing.assert_allclose(dlr_targeted(network(images), y, order[:, number + 1]), value, atol=1e-9)
    np.testing.assert_allclose(found.loss, torch.stack(losses).amax(0), rtol=0, atol=1e-9)
    assert len(set(torch.stack(losses).argmax(0).tolist())) > 1  # the best target is not always the first


def test_where_the_clean_answer_is_wrong_the_right_class_is_no_target(smooth: nn.Module) -> None:
    x = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    order = smooth(x).argsort(1, descending=True)
    y = order[:, 1]
    attack = APGDConfig(norm="linf", eps=0.05, loss="dlr-targeted", targets=1, steps=5)
    found = attack.run(Target(smooth, y, omega(12)), x, omega(12))
    np.testing.assert_allclose(found.loss, dlr_targeted(smooth(found.images), y, order[:, 0]), atol=1e-6)
    assert (found.loss > 0).all()


class Linear:
    """Two classes with logits (0, w x)."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        score = (x * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_on_a_linear_classifier_it_reaches_the_optimum(norm: Norm, order: int, loss: Any) -> None:
    weight = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0)) / 4
    x = torch.full((5, 1, 4, 4), 0.5)
    y = torch.tensor([0, 1, 1, 0, 0])
    away = torch.tensor([1.0, -1, -1, 1, 1], dtype=torch.float64)
    found = APGDConfig(norm=norm, eps=0.2, loss=loss).run(Target(Linear(weight), y, omega(5)), x, omega(5))
    moved = ((found.images.double() - x.double()) * weight.double()).flatten(1).sum(1) * away
    best = 0.2 * float(weight.double().norm(order))
    assert (moved <= best).all()
    np.testing.assert_allclose(moved, best, rtol=1e-5)


class Noisy(Purifier):
    """Adds noise of its key."""

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return x + 0.2 * omega.normal("noise", 0, x)


def test_with_draws_the_best_iterate_is_that_of_highest_mean_loss(
    smooth: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    ours = Recorder(smooth)
    attack = APGDConfig(norm="linf", eps=0.1, steps=9, eot=4, gradient="exact")
    found = attack.run(Target(ours, y, omega(24).within("eot"), Noisy(), draws=4), x, omega(24))
    assert len(ours.seen) == 10
    losses = torch.stack([F.cross_entropy(smooth(s), y.repeat_interleave(4), reduction="none") for s in ours.seen])
    np.testing.assert_allclose(found.loss, losses.reshape(10, 24, 4).mean(2).amax(0), rtol=1e-5)
    # The first draws are those of the first call, and no call repeats them.
    noise = Omega.of("spec", 0, "attack/eot", [7] * 4, [0, 1, 2, 3]).normal("noise", 0, x[:4])
    start = sphere_start(Region(x, "linf", 0.1), omega(24), 0)
    assert torch.equal(ours.seen[0][28:32], start[7] + 0.2 * noise)


def test_no_image_is_dropped_and_restarts_only_help(smooth: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    wrong = (y + 1) % 5  # all clean answers are wrong
    ours = Recorder(smooth)
    attack = APGDConfig(norm="l2", eps=0.3, steps=10)
    once = attack.run(Target(ours, wrong, omega(24)), x, omega(24))
    assert [len(seen) for seen in ours.seen] == [24] * 11
    assert (once.loss > F.cross_entropy(smooth(x), wrong, reduction="none")).all()
    twice = attack.model_copy(update={"restarts": 2})
    target = Target(smooth, wrong, omega(24))
    again = twice.run(target, x, omega(24))
    assert (again.loss >= once.loss).all() and (again.loss > once.loss).any()
    assert target.evaluations == 24 * twice.evaluations


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
def test_on_the_shipped_network_it_is_not_weaker_than_pgd(
    network: nn.Module, digits_test: ImageSet, norm: Norm, eps: float
) -> None:
    x, y = torch.from_numpy(digits_test.images[:40]), torch.from_numpy(digits_test.labels[:40])
    left, losses = [], []
    for attack in (PGDConfig(norm=norm, eps=eps, steps=50), APGDConfig(norm=norm, eps=eps, steps=50)):
        found = attack.run(Target(network, y, omega(40)), x, omega(40))
        assert float(perturbation_norms(found.images, x)[norm].max()) <= eps
        assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1
        left.append(float((network(found.images).argmax(1) == y).double().mean()))
        losses.append(float(found.loss.mean()))
    assert left[1] <= left[0] + 0.01
    assert losses[1] >= losses[0]


def test_labels_and_defaults() -> None:
    attack = APGDConfig(norm="linf", eps=8 / 255)
    assert (attack.label(), attack.evaluations, attack.rho, attack.targets) == ("apgd-100 linf", 101, 0.75, None)
    targeted = APGDConfig(norm="l2", eps=0.5, loss="dlr-targeted", restarts=2)
    assert (targeted.label(), targeted.targets) == ("apgd-100 l2 dlr-targeted 9 targets x2", 9)
    assert APGDConfig.model_validate(targeted.model_dump()).id == targeted.id
    assert APGDConfig.model_validate(attack.model_dump()).id == attack.id
    l1 = APGDConfig(norm="l1", eps=12.0)
    assert (l1.label(), l1.evaluations, l1.larger_eps) == ("apgd-100 l1", 103, True)
    assert (
        APGDConfig.model_validate(l1.model_dump()).id == l1.id == APGDConfig(norm="l1", eps=12.0, larger_eps=True).id
    )
    assert APGDConfig(norm="l1", eps=12.0, larger_eps=False).label() == "apgd-100 l1 one ball"


def test_targets_go_with_the_targeted_loss_and_with_enough_classes(smooth: nn.Module) -> None:
    with pytest.raises(InvalidInput, match="dlr-targeted"):
        APGDConfig(norm="linf", eps=0.1, targets=3)
    with pytest.raises(InvalidInput, match="is for `norm: l1`"):
        APGDConfig(norm="linf", eps=0.1, larger_eps=True)
    with pytest.raises(InvalidInput, match="4 steps leave none"):
        APGDConfig(norm="l1", eps=0.1, steps=4)
    with pytest.raises(InvalidInput, match="has no norm 'l1'"):
        PGDConfig(norm="l1", eps=0.1)
    attack = APGDConfig(norm="linf", eps=0.1, loss="dlr-targeted")
    with pytest.raises(InvalidInput, match="9 target classes, but only 4 of 5"):
        attack.run(Target(smooth, torch.zeros(2).long(), omega(2)), torch.rand(2, 3, 4, 4), omega(2))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rho": 0.0}, {"rho": 1.5}, {"restarts": 0}, {"loss": "cw"}])
def test_nonsense_parameters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        APGDConfig.model_validate({"norm": "linf", "eps": 0.1, **wrong})
