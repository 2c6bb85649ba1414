"""Backward passes on gradients of size about one: equal bits, and digits where single precision has none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from defense.classifiers import ClassifierConfig
from defense.defended import Defended
from defense.denoisers import DiffusersConfig
from defense.gradients import purify, purify_and_deviate
from defense.purifiers import DiffPureConfig, Purifier
from defense.randomness import Omega
from defense.scaled_gradients import with_scaled_gradient

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
    flowing *= torch.tensor([1.0, 3e-9, 7e-6, 4e3, 0.0, 1e-3]).to(dtype)[:, None]

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
    flowing = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(2)) * 1e-6
    of_deviation = torch.tensor([1.0, 1e-9, 0.0, 1e-3, 1e2, 1e-6])

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return purify_and_deviate(purifier, x, omega, every=1)

    found = []
    for way in (both, lambda x: with_scaled_gradient(both, x)):
        x = IMAGES.clone().requires_grad_()
        purified, deviation = way(x)
        found.append(torch.autograd.grad((purified, deviation), x, (flowing, of_deviation))[0])
    assert torch.equal(found[0], found[1])


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


class Wall(nn.Module):
    """A classifier whose first class is certain, with a weight that may learn."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        sure = 1e10 * (1e-10 * (self.weight * x.flatten(1).mean(1)))
        return torch.stack([sure, torch.zeros_like(sure)], 1)


class Nothing(Purifier):
    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return x


def test_a_defended_classifier_that_is_frozen_has_the_gradients_that_underflow() -> None:
    classifier = Wall().requires_grad_(False)
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    found = back(Defended(Nothing(), classifier, gradient="exact")(x), x, torch.tensor([[1e-38, 0.0]]))
    assert found.flatten().tolist() == pytest.approx([2.5e-39] * 4, rel=1e-4)


def test_weights_that_learn_have_their_own_gradients() -> None:
    found = []
    for needs in (False, True):
        classifier = Wall()
        x = torch.tensor([0.25, 0.5]).reshape(2, 1, 1, 1).requires_grad_(needs)
        logits = Defended(Nothing(), classifier)(x)
        logits.backward(torch.tensor([[1e-3, 0.0], [4.0, 0.0]]))
        assert classifier.weight.grad is not None
        found.append(classifier.weight.grad.item())
    assert found[0] == found[1] == pytest.approx(0.25e-3 + 2.0)
