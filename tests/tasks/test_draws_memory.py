"""The gradient of many draws: the bits of one backward pass through all of them, and the memory of one batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from loops import every
from torch import Tensor, nn

from defense import DiffPureConfig, Omega
from defense.gradients import GradientMode
from defense.purifiers import PURIFIERS, Purifier
from tasks.attacks import Target
from tasks.attacks.losses import point_loss
from tasks.attacks.target import Evaluation
from tasks.attacks.targeted import towards

LABELS = torch.tensor([3, 1, 4, 1])
X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class AtOnce(Target):
    """One backward pass through all draws, whose batches are all remembered until then."""

    def differentiate(self, x: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Evaluation:
        at = x.detach().requires_grad_()
        logits = self.logits(at)
        value = self.over_draws(logits, loss)
        (gradient,) = torch.autograd.grad(value.sum(), at)
        return Evaluation(value.detach(), logits.detach(), gradient)


@contextmanager
def remembered() -> Iterator[Callable[[], int]]:
    """The most bytes that are kept for a backward pass at once."""
    now = most = 0

    def forget(size: int) -> None:
        nonlocal now
        now -= size

    class Box:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor = tensor
            size = tensor.numel() * tensor.element_size()
            now += size
            most = max(most, now)
            weakref.finalize(self, forget, size)

    with torch.autograd.graph.saved_tensors_hooks(Box, lambda box: box.tensor):
        yield lambda: most


def made(kind: type[Target], purifier: Purifier, network: nn.Module, draws: int, batch: int) -> Target:
    omega = Omega.of("p", 0, "attack", range(len(X)))
    return kind(network, LABELS, omega, purifier, GradientMode("exact"), draws=draws, batch=batch)


@pytest.fixture(scope="module")
def noisy() -> Purifier:
    return PURIFIERS.get("gaussian-noise")(sigma=0.2).build()  # type: ignore[no-any-return]


@pytest.mark.slow
@every("loss", [*map(point_loss, ("ce", "margin", "dlr")), towards(torch.tensor([0, 2, 5, 7]))])
@every(("draws", "batch"), [(1, 4), (5, 4), (5, 3), (6, 24), (2, 100)])
def test_the_gradient_has_the_bits_of_one_backward_pass(
    network: nn.Module, noisy: Purifier, draws: int, batch: int, loss: Any
) -> None:
    parts, at_once = (made(kind, noisy, network, draws, batch) for kind in (Target, AtOnce))
    for _ in range(2):  # the second time with other draws
        found, expected = (target.differentiate(X, loss) for target in (parts, at_once))
        assert torch.equal(found.gradient, expected.gradient)  # type: ignore[arg-type]
        assert torch.equal(found.loss, expected.loss) and torch.equal(found.logits, expected.logits)
    assert found.gradient is not None and found.gradient.abs().max() > 0
    assert parts.evaluations == at_once.evaluations == 2 * 4 * draws
    assert parts.tally.gradients == dict.fromkeys(range(4), 2)


@pytest.mark.slow
def test_the_exact_gradient_through_a_diffusion_too(network: nn.Module, diffpure: DiffPureConfig) -> None:
    purifier = diffpure.build()
    found, expected = (
        made(kind, purifier, network, 2, 3).differentiate(X, point_loss("ce")) for kind in (Target, AtOnce)
    )
    assert torch.equal(found.gradient, expected.gradient)  # type: ignore[arg-type]
    assert torch.equal(found.loss, expected.loss)


def test_twenty_draws_are_remembered_in_the_memory_of_one(network: nn.Module, noisy: Purifier) -> None:
    most = {}
    for kind in (Target, AtOnce):
        for draws in (1, 20):
            with remembered() as peak:
                made(kind, noisy, network, draws, len(X)).differentiate(X, point_loss("ce"))
            most[kind, draws] = peak()
    assert most[Target, 20] <= 1.2 * most[Target, 1]
    assert most[AtOnce, 20] > 10 * most[AtOnce, 1]  # so that the measure is one
