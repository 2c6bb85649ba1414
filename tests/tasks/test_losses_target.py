"""Losses by hand and by the reference's formulas; what an attack sees of a defence: draws, means, gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loops import every
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from defense import Purifier
from defense.errors import InvalidInput
from defense.gradients import GradientMode
from defense.randomness import Omega
from tasks.attacks.base import AttackConfig
from tasks.attacks.losses import LossName, dlr_targeted, point_loss
from tasks.attacks.pgd import PGDConfig
from tasks.attacks.target import Attacked, Target

LOSSES: tuple[LossName, ...] = ("ce", "margin", "dlr")
ATTACKED: tuple[Attacked, ...] = ("mean-loss", "mean-logits", "mean-probability")

LOGITS = torch.tensor([[3.0, 1.0, 0.0, -1.0], [1.0, 4.0, 2.0, 0.0], [0.0, 0.0, 5.0, -3.0]])
LABELS = torch.tensor([0, 2, 3])


def test_the_cross_entropy_by_hand() -> None:
    found = point_loss("ce")(LOGITS, LABELS)
    by_hand = [
        math.log(sum(math.exp(v) for v in row)) - row[y]
        for row, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


def test_the_margin_by_hand() -> None:
    assert point_loss("margin")(LOGITS, LABELS).tolist() == [1 - 3, 4 - 2, 5 + 3]


def test_dlr_by_hand() -> None:
    # (best wrong - right) / (first - third)
    expected = [(1 - 3) / (3 - 0), (4 - 2) / (4 - 1), (5 + 3) / (5 - 0)]
    np.testing.assert_allclose(point_loss("dlr")(LOGITS, LABELS), expected, rtol=1e-6)


def test_targeted_dlr_by_hand() -> None:
    # (target - right) / (first - mean of third and fourth)
    target = torch.tensor([3, 0, 1])
    expected = [(-1 - 3) / (3 + 0.5), (1 - 2) / (4 - 0.5), (0 + 3) / (5 + 1.5)]
    np.testing.assert_allclose(dlr_targeted(LOGITS, LABELS, target), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def many() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(500, 10, generator=generator)
    return logits, torch.randint(10, (500,), generator=generator), torch.randint(10, (500,), generator=generator)


def test_the_losses_are_those_of_the_reference(many: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, y, target = many
    np.testing.assert_allclose(
        point_loss("dlr")(logits, y), APGDAttack(None, eps=0.1).dlr_loss(logits, y), rtol=1e-5, atol=1e-7
    )
    targeted = APGDAttack_targeted(None, eps=0.1)
    targeted.y_target = target
    np.testing.assert_allclose(
        dlr_targeted(logits, y, target), targeted.dlr_loss_targeted(logits, y), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_shift_changes_no_loss_a_scale_not_dlr_and_the_sign_says_who_is_right(
    many: tuple[Tensor, Tensor, Tensor], name: LossName
) -> None:
    logits, y, _ = many
    loss = point_loss(name)
    np.testing.assert_allclose(loss(logits + 7, y), loss(logits, y), rtol=1e-4, atol=1e-5)
    if name == "dlr":
        np.testing.assert_allclose(loss(5 * logits, y), loss(logits, y), rtol=1e-5, atol=1e-6)
    if name != "ce":
        assert torch.equal(loss(logits, y) > 0, logits.argmax(1) != y)


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 3 classes, not 2"):
        point_loss("dlr")(torch.zeros(1, 2), torch.zeros(1).long())
    with pytest.raises(InvalidInput, match="at least 4 classes, not 3"):
        dlr_targeted(torch.zeros(1, 3), torch.zeros(1).long(), torch.ones(1).long())
    assert float(point_loss("margin")(torch.tensor([[1.0, 3.0]]), torch.tensor([0]))) == 2


class Bent(Purifier):
    """Stochastic and not linear: ``x + 0.3 n tanh(2 x)``; in its surrogate the noise counts twice. Keeps its keys."""

    def __init__(self, size: float = 0.3) -> None:
        super().__init__()
        self.size = size
        self.keys: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        self.keys.append((omega.image_ids, omega.draws))
        return x + self.size * omega.normal("noise", 0, x) * torch.tanh(2 * x)

    def surrogate(self, steps: int) -> Purifier:
        return Bent(self.size * steps)


IDS = (7, 3, 11, 20)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 2, 1, 3])


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 4))
    return net.requires_grad_(False)


def omega(draw: int = 0, ids: tuple[int, ...] = IDS) -> Omega:
    return Omega.of("spec", 0, "eot", ids, draw)


def by_hand(
    net: nn.Module, x: Tensor, y: Tensor, attacked: Attacked, name: LossName, draws: range, size: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Loss and its gradient from one draw after the other."""
    at = x.clone().requires_grad_()
    logits = torch.stack(
        [net(at + size * omega(draw).normal("noise", 0, x) * torch.tanh(2 * at)) for draw in draws], 1
    )
    loss = point_loss(name)
    if attacked == "mean-loss":
        value = torch.stack([loss(logits[:, k], y) for k in range(len(draws))], 1).mean(1)
    elif attacked == "mean-logits":
        value = loss(logits.mean(1), y)
    else:
        value = loss(logits.softmax(2).mean(1).log(), y)
    (gradient,) = torch.autograd.grad(value.sum(), at)
    return value.detach(), gradient


@pytest.mark.slow
@every("attacked", ATTACKED)
@every("name", LOSSES)
@every("batch", [None, 1, 5])
def test_k_draws_in_one_batch_are_k_single_draws(
    net: nn.Module, x: Tensor, y: Tensor, attacked: Attacked, name: LossName, batch: int | None
) -> None:
    target = Target(net, y, omega(), Bent(), draws=6, attacked=attacked, batch=batch)
    found = target.differentiate(x, point_loss(name))
    assert found.gradient is not None
    value, gradient = by_hand(net, x, y, attacked, name, range(6))
    np.testing.assert_allclose(found.loss, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-4, atol=1e-6)
    again = Target(net, y, omega(), Bent(), draws=6, attacked=attacked, batch=batch).evaluate(x, point_loss(name))
    assert again.gradient is None
    np.testing.assert_allclose(again.loss, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again.logits, found.logits, rtol=1e-6)
    assert found.logits.shape == (4, 6, 4)
    assert not found.loss.requires_grad and not found.logits.requires_grad and not x.requires_grad


def test_the_three_are_three_different_things(net: nn.Module, x: Tensor, y: Tensor) -> None:
    losses = [
        Target(net, y, omega(), Bent(1.0), draws=6, attacked=attacked).evaluate(x, point_loss("ce")).loss
        for attacked in ATTACKED
    ]
    assert float((losses[0] - losses[1]).abs().min()) > 1e-4 and float((losses[0] - losses[2]).abs().min()) > 1e-4
    # Jensen: the mean of -log p is at least -log of the mean p.
    assert (losses[0] >= losses[2]).all()


def test_calls_take_fresh_draws_and_fixed_ones_do_not(net: nn.Module, x: Tensor, y: Tensor) -> None:
    for fixed in (False, True):
        purifier = Bent()
        target = Target(net, y, omega(), purifier, draws=3, fixed=fixed)
        losses = [target.evaluate(x, point_loss("ce")).loss for _ in range(3)]
        ids = tuple(np.repeat(IDS, 3))
        first = [0, 0, 0] if fixed else [0, 3, 6]
        assert purifier.keys == [(ids, (start, start + 1, start + 2) * 4) for start in first]
        assert torch.equal(losses[0], losses[1]) == fixed
        assert (target.calls, target.evaluations) == (3, 36)
        for start, loss in zip(first, losses, strict=True):
            np.testing.assert_allclose(
                loss, by_hand(net, x, y, "mean-loss", "ce", range(start, start + 3))[0], rtol=1e-5
            )


def test_draws_count_from_the_draw_of_each_image(net: nn.Module, x: Tensor, y: Tensor) -> None:
    purifier = Bent()
    target = Target(net, y, Omega.of("spec", 0, "eot", IDS, [0, 10, 20, 30]), purifier, draws=2)
    target.evaluate(x, point_loss("ce"))
    target.evaluate(x, point_loss("ce"))
    assert [draws for _, draws in purifier.keys] == [(0, 1, 10, 11, 20, 21, 30, 31), (2, 3, 12, 13, 22, 23, 32, 33)]


def test_select_keeps_images_labels_and_the_count_of_draws(net: nn.Module, x: Tensor, y: Tensor) -> None:
    target = Target(net, y, omega(), Bent(), draws=2)
    target.evaluate(x, point_loss("ce"))
    index = torch.tensor([2, 0])
    part = target.select(index)
    assert len(part) == 2 and part.evaluations == 0 and part.calls == 1
    assert part.omega.image_ids == (11, 7) and torch.equal(part.labels, y[index])
    whole, some = target.evaluate(x, point_loss("dlr")), part.evaluate(x[index], point_loss("dlr"))
    np.testing.assert_allclose(some.loss, whole.loss[index], rtol=1e-5)
    np.testing.assert_allclose(some.logits, whole.logits[index], rtol=1e-5)
    assert (part.evaluations, target.evaluations) == (4, 16)


def test_the_bare_classifier_has_no_draws(net: nn.Module, x: Tensor, y: Tensor) -> None:
    target = Target(net, y, omega())
    found = target.differentiate(x, point_loss("ce"))
    at = x.clone().requires_grad_()
    value = F.cross_entropy(net(at), y, reduction="none")
    assert found.gradient is not None
    np.testing.assert_allclose(found.loss, value.detach(), rtol=1e-6)
    np.testing.assert_allclose(found.gradient, torch.autograd.grad(value.sum(), at)[0], rtol=1e-5, atol=1e-8)
    assert found.logits.shape == (4, 1, 4) and target.evaluations == 4


@pytest.mark.parametrize("mode", ["exact", "exact-no-guidance-path", "bpda", "surrogate(2)", "blind"])
def test_every_gradient_mode_reaches_the_target(net: nn.Module, x: Tensor, y: Tensor, mode: str) -> None:
    target = Target(net, y, omega(), Bent(), GradientMode.parse(mode), draws=3)
    found = target.differentiate(x, point_loss("ce"))
    assert found.gradient is not None
    if mode.startswith("exact"):
        value, gradient = by_hand(net, x, y, "mean-loss", "ce", range(3))
    elif mode.startswith("surrogate"):
        value, gradient = by_hand(net, x, y, "mean-loss", "ce", range(3), size=0.6)
    elif mode == "blind":
        value, gradient = by_hand(net, x, y, "mean-loss", "ce", range(3), size=0.0)
    else:  # the gradient of the classifier at the purified images
        value, _ = by_hand(net, x, y, "mean-loss", "ce", range(3))
        gradients = []
        for draw in range(3):
            at = (x + 0.3 * omega(draw).normal("noise", 0, x) * torch.tanh(2 * x)).requires_grad_()
            loss = F.cross_entropy(net(at), y, reduction="sum")
            gradients.append(torch.autograd.grad(loss, at)[0])
        gradient = torch.stack(gradients).mean(0)
    np.testing.assert_allclose(found.loss, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-4, atol=1e-6)


def test_the_purifier_runs_in_the_precision_asked_for_and_the_classifier_in_float32(x: Tensor, y: Tensor) -> None:
    seen: list[torch.dtype] = []

    class Linear(Purifier):
        def forward(self, x: Tensor, omega: Omega) -> Tensor:
            return F.linear(x, torch.eye(3))

    def classifier(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x.flatten(1)[:, :4]

    autocast = torch.autocast("cpu", torch.bfloat16)
    target = Target(classifier, y, omega(), Linear(), precision=lambda: autocast)
    found = target.evaluate(x, point_loss("ce"))
    assert seen == [torch.float32]
    np.testing.assert_array_equal(found.logits[:, 0], x.bfloat16().float().flatten(1)[:, :4])


def pgd(**more: Any) -> AttackConfig:
    return PGDConfig.model_validate({"norm": "linf", "eps": 0.1, **more})


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ({}, ("classifier", None)),
        ({"gradient": "blind"}, ("classifier", None)),
        ({"gradient": "blind", "knows": "classifier"}, ("classifier", None)),
        ({"gradient": "exact"}, ("purifier", "exact")),
        ({"gradient": "surrogate(5)"}, ("purifier", "surrogate(5)")),
        ({"knows": "purifier"}, ("purifier", "exact")),
        ({"knows": "randomness"}, ("randomness", "exact")),
        ({"knows": "randomness", "gradient": "bpda"}, ("randomness", "bpda")),
    ],
)
def test_a_threat_model_has_one_spelling(said: dict[str, Any], means: tuple[str, str | None]) -> None:
    attack = pgd(**said)
    assert (attack.knows, attack.gradient) == means
    assert attack.static == (means[0] == "classifier")
    plain = {"knows": means[0]} if means[1] is None else {"knows": means[0], "gradient": means[1]}
    assert pgd(**plain).id == attack.id
    assert PGDConfig.model_validate(attack.model_dump()).id == attack.id
    bare = attack.on_bare_classifier()
    assert bare.static and bare.id == pgd().id


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"gradient": "blind", "knows": "purifier"}, "does not go with `knows: purifier`"),
        ({"gradient": "blind", "knows": "randomness"}, "does not go with"),
        ({"gradient": "exact", "knows": "classifier"}, "does not go with `knows: classifier`"),
        ({"gradient": "exakt"}, "did you mean 'exact'"),
        ({"gradient": "surrogate(0)"}, "unknown gradient mode"),
        ({"eot": 2}, "has no draws"),
        ({"gradient": "blind", "eot": 2}, "has no draws"),
        ({"attacked": "mean-logits"}, "has no draws"),
    ],
)
def test_contradictory_threat_models_are_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput, match=why.replace("(", r"\(").replace(")", r"\)")):
        pgd(**said)


def test_labels_say_the_threat_model() -> None:
    assert pgd().label() == "pgd-20 linf"
    assert pgd(gradient="bpda").label() == "pgd-20 linf bpda"
    assert pgd(knows="randomness", eot=8).label() == "pgd-20 linf exact fixed draws eot 8"
    assert pgd(gradient="surrogate(3)", eot=2).label() == "pgd-20 linf surrogate(3) eot 2"
