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
from defense.held_graphs import HeldGraphs, holding
from defense.purifiers import PURIFIERS, Purifier
from tasks.attacks import Target
from tasks.attacks.losses import point_loss
from tasks.attacks.target import Attacked, Evaluation
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

    def _forgetting(self) -> Target:
        return self


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


def made(
    kind: type[Target],
    purifier: Purifier,
    network: nn.Module,
    draws: int,
    batch: int,
    attacked: Attacked = "mean-loss",
) -> Target:
    omega = Omega.of("p", 0, "attack", range(len(X)))
    mode = GradientMode("exact")
    return kind(network, LABELS, omega, purifier, mode, draws=draws, batch=batch, attacked=attacked)


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


@pytest.mark.slow
@every("attacked", ["mean-logits", "mean-probability", "vote"])
@every("batch", [1, 3, 4, 100])
def test_the_gradient_of_one_answer_of_all_draws_has_those_bits_too(
    network: nn.Module, noisy: Purifier, attacked: Attacked, batch: int
) -> None:
    targets = [made(kind, noisy, network, 5, batch, attacked) for kind in (Target, AtOnce)]
    found, expected = (target.differentiate(X, point_loss("dlr")) for target in targets)
    assert torch.equal(found.gradient, expected.gradient)  # type: ignore[arg-type]
    assert torch.equal(found.loss, expected.loss) and torch.equal(found.logits, expected.logits)
    assert found.gradient is not None and found.gradient.abs().max() > 0


@pytest.mark.slow
def test_so_have_those_of_deviations(network: nn.Module, diffpure: DiffPureConfig) -> None:
    """With held graphs, under autocast, and what is answered without gradients."""
    found = []
    for kind in (Target, AtOnce):
        target = made(kind, diffpure.build(), network, 3, 4)
        target.precision = lambda: torch.autocast("cpu", torch.bfloat16)
        with holding(HeldGraphs(1e9)):
            for _ in range(2):  # the second time with graphs that are held
                at = X.clone().requires_grad_()
                logits, deviation = target.deviating_logits(at)
                (gradient,) = torch.autograd.grad(logits.sum() + deviation.sum(), at)
        with torch.no_grad():
            found.append((logits, deviation, gradient, target.logits(X)))
    assert all(map(torch.equal, *found))
    assert found[0][0].shape == (4, 3, 10) and found[0][2].abs().max() > 0


@every("attacked", ["mean-loss", "mean-probability", "vote"])
def test_twenty_draws_are_remembered_in_the_memory_of_one(
    attacked: Attacked, network: nn.Module, noisy: Purifier
) -> None:
    most = {}
    for kind in (Target, AtOnce):
        for draws in (1, 20):
            with remembered() as peak:
                made(kind, noisy, network, draws, len(X), attacked).differentiate(X, point_loss("ce"))
            most[kind, draws] = peak()
    assert most[Target, 20] <= 1.2 * most[Target, 1]
    assert most[AtOnce, 20] > 10 * most[AtOnce, 1]  # so that the measure is one
