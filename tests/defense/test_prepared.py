"""Weights that are cast once: the bits of autocast, forwards and backwards, with fewer operations."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import defense
from defense import DiffPureConfig, DiffusersConfig, Omega
from defense.gradients import GradientMode, purify
from defense.prepared import prepare


class Net(nn.Module):
    """Every kind of layer that is prepared, one of a class of its own, and a part without autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.circular = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular", bias=False)
        self.one = nn.Conv1d(8, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.own = Own(8, 8)
        self.full = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.circular(torch.relu(self.norm(self.conv(x))))
        x = self.own(self.one(x.flatten(2)).mean(2))
        with torch.autocast(x.device.type, enabled=False):
            x = self.full(x.float())
        answer: Tensor = self.head(x)
        return answer


class Own(nn.Linear):
    """Does something else with its weights: scales them in full precision before they are cast."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * 1.01, self.bias)


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


def asked(network: nn.Module, x: Tensor, *, bf16: bool = True) -> tuple[Tensor, Tensor]:
    """Answers and the gradient of their sum of squares."""
    at = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        answer = network(at)
    return answer.detach(), torch.autograd.grad((answer.float() ** 2).sum(), at)[0]


class Casts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
def test_prepared_layers_have_the_bits_of_autocast_and_of_none(plain: nn.Module, bf16: bool, batch: int) -> None:
    prepared = copy.deepcopy(plain)
    assert len(prepare(prepared)) == len(prepare(prepared)) == 9  # five weights, four biases
    x = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    for first, second in zip(asked(plain, x, bf16=bf16), asked(prepared, x, bf16=bf16), strict=True):
        assert first.dtype == second.dtype and torch.equal(first, second)
    assert asked(plain, x)[0].dtype == torch.bfloat16
    assert not torch.equal(asked(plain, x)[0].float(), asked(plain, x, bf16=False)[0])


def test_no_weight_is_cast_in_a_forward_pass(plain: nn.Module) -> None:
    prepared = copy.deepcopy(plain)
    prepare(prepared)
    x, counts = torch.rand(1, 3, 6, 6), []
    for network in (plain, prepared):
        with Casts() as casts, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            network(x)
        counts.append(casts.seen["aten._to_copy.default"])
    # Weights of conv, circular, one and head, and three biases; `full` is not cast, `own` as before.
    assert counts[0] - counts[1] == 7


def test_weights_that_change_are_cast_again_and_trained_ones_are_left(plain: nn.Module) -> None:
    prepared = copy.deepcopy(plain)
    prepare(prepared)
    state = {name: value + 0.25 for name, value in plain.state_dict().items()}
    assert prepared.state_dict().keys() == state.keys()
    for network in (plain, prepared):
        network.load_state_dict(state)
    x = torch.rand(2, 3, 6, 6)
    assert torch.equal(asked(plain, x)[0], asked(prepared, x)[0])
    assert prepare(Net()) == []


def test_a_first_call_in_inference_mode_leaves_layers_that_have_gradients(plain: nn.Module) -> None:
    prepare(plain)
    x = torch.rand(1, 3, 6, 6)
    plain.conv.weight.add_(0.5)  # type: ignore[union-attr, operator]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        plain(x)
    assert torch.isfinite(asked(plain, x)[1]).all()


@pytest.mark.slow
def test_the_exact_gradient_with_its_bit_check_is_that_of_autocast() -> None:
    """The quickstart's denoiser; states are rebuilt and compared bit for bit on the way back."""
    path = Path(defense.__file__).parent / "assets" / "digits-ddpm"
    denoiser = DiffusersConfig(schedule="linear-1000", path=str(path)).resolved(Path())
    config = DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=10, steps=2)
    x, omega = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)), Omega.of("p", 0, "judge", (0, 1))
    found = []
    for ready in (False, True):
        purifier = config.build()
        assert bool(prepare(purifier) if ready else True)
        at = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            purified = purify(purifier, at, omega, GradientMode.parse("exact"))
        found.append((purified.detach(), torch.autograd.grad((purified.float() ** 2).sum(), at)[0]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().max() > 0
