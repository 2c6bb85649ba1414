"""Backward passes on gradients of size about one: equal bits, and digits where single precision has none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from defense.classifiers import ClassifierConfig
from defense.denoisers import DiffusersConfig
from defense.gradients import purify, purify_and_deviate
from defense.purifiers import DiffPureConfig, Purifier
from defense.randomness import Omega
from defense.scaled_gradients import TINY, with_scaled_gradient
from tasks.attacks.losses import point_loss
from tasks.attacks.target import Attacked, Target

ASSETS = Path(__file__).parents[2] / "defense" / "assets"
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def back(out: Tensor, x: Tensor, flowing: Tensor) -> Tensor:
    return torch.autograd.grad(out, x, flowing)[0]


def diffpure() -> Purifier:
    denoiser = DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-ddpm"))
    config = DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=50, steps=2)
    return config.resolved(Path()).build()


def digits_cnn() -> nn.Module:
    return ClassifierConfig(classifier="digits-cnn").resolved(Path()).build()


@pytest.mark.parametrize("mode", ["exact", "bpda", "blind", "surrogate(1)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_are_those_of_the_backward_pass_without(mode: str, dtype: torch.dtype) -> None:
    purifier, classifier = diffpure().to(dtype), digits_cnn().to(dtype)
    omega = Omega.of("scaled", 0, "attack", range(6))
    # Sizes that no exponent of one gradient alone would hold apart, all of them far from the ends of the range.
    flowing = torch.randn(6, 10, generator=torch.Generator().manual_seed(1), dtype=dtype)
    flowing *= torch.tensor([1.0, 3e-19, 7e-16, 4e3, 0.0, 1e-13]).to(dtype)[:, None]

    def answer(x: Tensor) -> Tensor:
        logits: Tensor = classifier(purify(purifier, x, omega, mode))
        return logits

    plain, scaled = (IMAGES.to(dtype).requires_grad_() for _ in range(2))
    out = with_scaled_gradient(answer, scaled)
    assert torch.equal(out, answer(plain))
    assert torch.equal(back(out, scaled, flowing), back(answer(plain), plain, flowing))


@given(
    sizes=st.lists(st.integers(-125, 100), min_size=1, max_size=5),
    mantissa=st.floats(1, 2, exclude_max=True, width=32),
)
def test_a_linear_map_has_its_own_gradient_at_every_size(sizes: list[int], mantissa: float) -> None:
    x = torch.ones(len(sizes), 1, 1, 1, requires_grad=True)
    flowing = torch.tensor([[math.ldexp(mantissa, size)] for size in sizes])
    # On the way back first times 2^-30 and then times 2^30: without scaling sizes below 2^-96 lose digits.
    out = with_scaled_gradient(lambda at: (at * 2.0**30 * 2.0**-30).flatten(1), x)
    assert torch.equal(back(out, x, flowing).flatten(), flowing.flatten())


def test_gradients_that_single_precision_would_lose_are_kept() -> None:
    x = torch.ones(2, 1, 1, 1, requires_grad=True)
    flowing = torch.tensor([[1e-38], [3e-44]])

    def narrow(at: Tensor) -> Tensor:
        return (at * 1e10 * 1e-10).flatten(1)

    assert not back(narrow(x), x, flowing).any()
    kept = back(with_scaled_gradient(narrow, x), x, flowing).flatten()
    assert kept[0].item() == pytest.approx(1e-38, rel=1e-5)
    assert kept[1].item() == pytest.approx(3e-44, rel=0.05)  # of about 21 numbers that there are below it


@pytest.mark.parametrize("value", [0.0, math.inf, -math.inf, math.nan])
def test_what_has_no_size_goes_through_as_it_is(value: float) -> None:
    x = torch.ones(2, 1, 1, 1, requires_grad=True)
    out = with_scaled_gradient(lambda at: 3 * at.flatten(1), x)
    found = back(out, x, torch.tensor([[value], [2.0]])).flatten()
    assert torch.equal(found, torch.tensor([3 * value, 6.0])) or (math.isnan(value) and found[0].isnan())


def test_two_outputs_of_an_image_have_one_scale() -> None:
    purifier = diffpure()
    omega = Omega.of("scaled", 0, "attack", range(6))
    flowing = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(2)) * 1e-16
    of_deviation = torch.tensor([1.0, 1e-19, 0.0, 1e-13, 1e2, 1e-16])

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return purify_and_deviate(purifier, x, omega, every=1)

    found = []
    for way in (both, lambda x: with_scaled_gradient(both, x)):
        x = IMAGES.clone().requires_grad_()
        purified, deviation = way(x)
        found.append(torch.autograd.grad((purified, deviation), x, (flowing, of_deviation))[0])
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("largest", [1e4, 1.0, 2 * TINY, TINY])
def test_a_gradient_that_is_not_tiny_is_seen_as_it_is(largest: float) -> None:
    seen: list[Tensor] = []
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    out = with_scaled_gradient(lambda at: seeing(at, seen), x)
    assert torch.equal(back(out, x, torch.full((1, 1), largest)).flatten(), seen[0].flatten())
    assert seen[0].item() == largest


def seeing(x: Tensor, seen: list[Tensor]) -> Tensor:
    out: Tensor = Seen.apply(x.flatten(1), seen)  # type: ignore[no-untyped-call]
    return out


def test_one_that_is_tiny_is_seen_at_a_size_of_about_one() -> None:
    seen: list[Tensor] = []
    x = torch.ones(2, 1, 1, 2, requires_grad=True)
    out = with_scaled_gradient(lambda at: seeing(at, seen), x)
    back(out, x, torch.tensor([[3e-20, 1e-25], [0.0, -(2.0**-41)]]))
    assert seen[0][0].tolist() == pytest.approx([3e-20 * 2.0**64, 1e-25 * 2.0**64], rel=1e-6)
    assert seen[0][1].tolist() == [0.0, -0.5]


class Seen(torch.autograd.Function):
    """The identity; keeps the gradient that it gets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: list[Tensor]) -> Tensor:
        ctx.seen = seen
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.seen.append(gradient)
        return gradient, None


def test_in_half_precision_nothing_is_scaled() -> None:
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    out = with_scaled_gradient(lambda at: at.flatten(1).half(), x)
    flowing = torch.full((1, 1), 1e-7).half()
    assert torch.equal(back(out, x, flowing).flatten(), flowing.float().flatten())


def test_outputs_that_are_not_one_an_image_are_not_scaled() -> None:
    x = torch.ones(2, 1, 1, 1, requires_grad=True)
    out = with_scaled_gradient(lambda at: at.flatten(1).repeat(2, 1), x)
    assert back(out, x, torch.full((4, 1), 1e-20)).flatten().tolist() == pytest.approx([2e-20, 2e-20])


def test_a_second_derivative_is_that_of_the_function() -> None:
    x = torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1).requires_grad_()
    out = with_scaled_gradient(lambda at: (at**3).flatten(1), x)
    (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert torch.equal(first.flatten(), torch.tensor([0.75, 12.0]))
    # By way of the square also through the function itself, whose second pass must not be scaled either.
    (second,) = torch.autograd.grad((first + out.reshape(first.shape) ** 2).sum(), x)
    assert torch.allclose(second.flatten(), torch.tensor([3 + 6 * 0.5**5, 12 + 6 * 2.0**5]))


def test_a_graph_may_be_gone_through_again_at_another_size() -> None:
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    out = with_scaled_gradient(lambda at: 5 * at.flatten(1), x)
    for size in (1e-30, 1.0, 1e20):
        (found,) = torch.autograd.grad(out, x, torch.full((1, 1), size), retain_graph=True)
        assert found.item() == pytest.approx(5 * size)


class Nothing(Purifier):
    """Purifies nothing, by a detour on which tiny gradients underflow."""

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return x * 1e10 * 1e-10


def sure(x: Tensor) -> Tensor:
    """Logits of a classifier that is sure of its first class: as a vote the other one has a probability of e^-60."""
    other = 1e10 * (1e-10 * x.flatten(1).mean(1))
    return torch.stack([torch.full_like(other, 6), other], 1)


EXPECTED = 1e-10 * 10 * math.exp(-60) / 4
"""Of the loss by each of four pixels: p of the other vote, times what a pixel is of ten times its logit."""


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    return 1e-10 * point_loss("ce")(logits, labels)


def attacked(way: Attacked) -> tuple[Target, Tensor]:
    omega = Omega.of("scaled", 0, "attack", range(2))
    labels = torch.zeros(2, dtype=torch.long)
    return Target(sure, labels, omega, Nothing(), draws=3, attacked=way), torch.zeros(2, 1, 2, 2)


def test_the_gradient_of_a_vote_does_not_underflow() -> None:
    target, x = attacked("vote")
    found = target.differentiate(x, loss).gradient
    assert found is not None
    assert found.flatten().tolist() == pytest.approx([EXPECTED] * 8, rel=1e-3)


@pytest.mark.parametrize("through", [True, False])
def test_nor_do_those_of_its_draws(through: bool) -> None:
    # Of each draw on its own the loss is that of its logits.
    target, x = attacked("vote")
    found = target.per_draw(x, lambda z, y: loss(10 * z, y), through=through).gradients
    assert found.flatten().tolist() == pytest.approx([EXPECTED] * 24, rel=1e-3)


def test_nor_what_is_taken_back_from_purified_images() -> None:
    target, x = attacked("vote")
    found = target.pull_back(x, torch.zeros(2, dtype=torch.long), torch.full_like(x, 3e-37))
    assert found.flatten().tolist() == pytest.approx([3e-37] * 8, rel=1e-5)


def test_nor_that_of_a_vote_with_deviations() -> None:
    omega = Omega.of("scaled", 0, "attack", range(2))
    target = Target(sure, torch.zeros(2, dtype=torch.long), omega, diffpure(), attacked="vote")
    x = IMAGES[:2].clone().requires_grad_()
    logits, deviation = target.deviating_logits(x)
    # Nothing of the deviation: what is left is of the logits alone, and of that size.
    (found,) = torch.autograd.grad((target.over_draws(logits, loss) + 0 * deviation[:, 0]).sum(), x)
    assert 1e-39 < float(found.abs().max()) < 1e-33


def test_other_answers_go_back_as_they_did() -> None:
    # Their rows are on record: so sure a classifier has no gradient there.
    target, x = attacked("mean-probability")
    found = target.differentiate(x, lambda z, y: loss(10 * z, y)).gradient
    assert found is not None and not found.any()
