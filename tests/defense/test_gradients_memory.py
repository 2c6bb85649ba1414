"""What the exact gradient holds in memory, and that it refuses what does not repeat itself."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from chains import Chain, Watched
from torch import Tensor, nn
from toys import (
    DENOISER,
    EVERY,
    ancestral,
    gradient,
    images,
    omega,
)

from defense import (
    IterativePurifier,
    Omega,
    purify,
)
from defense.gradients import IrreproducibleState
from defense.purifiers import Diffusion

OMEGA = omega(4, 9, 2)


class Spoilt(Chain):
    """Adds something that is not a function of the arguments, in step 6 or before the first."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0
        self.dropout = nn.Dropout(0.5)

    def other(self, like: Tensor) -> Tensor:
        self.calls += 1
        if "global" in self.how:
            return 1e-6 * torch.randn_like(like)
        return torch.full_like(like, 1e-6 * self.calls) if "counter" in self.how else self.dropout(like)

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        z = super().start(x, omega)
        return z + self.other(z) if "start" in self.how else z

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        z = super().step(i, z, x, omega)
        return z + self.other(z) if i == 6 and "start" not in self.how else z


class TestReproducibility:
    @pytest.mark.parametrize("how", ["global", "counter", "dropout"])
    @pytest.mark.parametrize(("segment", "where"), [(1, 6), (5, 9), (4, 7)])
    def test_a_step_that_is_not_a_function_of_its_arguments_raises_and_is_named(
        self, how: str, segment: int, where: int
    ) -> None:
        out = purify(Spoilt(how), images().requires_grad_(), OMEGA, segment=segment)
        with pytest.raises(
            IrreproducibleState, match=rf"after step {where} .*difference of up to \d.*\(no global random"
        ):
            out.sum().backward()

    @pytest.mark.parametrize("how", ["global start", "counter start"])
    def test_so_does_a_start(self, how: str) -> None:
        out = purify(Spoilt(how), images().requires_grad_(), OMEGA)
        with pytest.raises(IrreproducibleState, match="before step 0"):
            out.sum().backward()

    def test_dropout_in_evaluation_mode_is_none(self) -> None:
        x = images().requires_grad_()
        purify(Spoilt("dropout").eval(), x, OMEGA).sum().backward()
        assert x.grad is not None and x.grad.norm() > 0

    def test_a_state_that_is_nan_gives_a_gradient_that_is_nan_and_no_wrong_diagnosis(self) -> None:
        class Broken(Chain):
            def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
                return z + (torch.tensor([0.0, math.nan, 0.0]).view(3, 1, 1, 1) if i == 4 else 0.0)

        x = images().requires_grad_()
        (found,) = torch.autograd.grad(purify(Broken(), x, OMEGA).square().sum(), x)
        assert found[1].isnan().all() and found[[0, 2]].isfinite().all()

    def test_an_input_that_was_changed_in_place_before_the_backward_pass_is_an_error(self) -> None:
        leaf = images().requires_grad_()
        x = leaf + 0
        out = purify(Chain(), x, OMEGA)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()

    def test_global_random_states_are_neither_read_nor_moved(self) -> None:
        x, found = images(), []
        for seed in (0, 1):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            found.append(gradient(lambda x: purify(EVERY["chain"], x, OMEGA), x))
            assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(*found)

    def test_parameters_that_want_gradients_are_refused(self) -> None:
        purifier = Diffusion(copy.deepcopy(DENOISER).requires_grad_(), [ancestral(100, 10)])
        with pytest.raises(ValueError, match="freeze the purifier's parameters"):
            purify(purifier, images().requires_grad_(), OMEGA)

    def test_a_second_derivative_through_the_engine_is_refused_rather_than_wrong(self) -> None:
        x = images().requires_grad_()
        (first,) = torch.autograd.grad(purify(Chain(), x, OMEGA).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()


class TestMemory:
    @pytest.mark.parametrize("name", ["ddpm large", "gdmp mse", "transfer soft-label denoised", "from noise mse"])
    @pytest.mark.parametrize(("segment", "most"), [(1, 1), (3, 3), (100, None)])
    @pytest.mark.parametrize("mode", ["exact", "exact-no-guidance-path"])
    def test_no_more_graphs_than_a_segment_are_alive_and_every_step_is_made_twice(
        self, name: str, segment: int, most: int | None, mode: str
    ) -> None:
        inner = EVERY[name]
        assert isinstance(inner, IterativePurifier)
        watched, x, n = Watched(inner), images().requires_grad_(), inner.length
        out = purify(watched, x, OMEGA, mode, segment=segment)
        assert watched.stepped == list(range(n))
        # What a guided step builds for its slope is gone when the step is done.
        assert not watched.alive
        out.sum().backward()
        if not (mode != "exact" and name.startswith("from noise")):  # nothing flows there
            assert sorted(watched.stepped) == sorted([*range(n), *range(n)])
            assert watched.most == (most or n)

    def test_plain_autograd_holds_them_all(self) -> None:
        inner = EVERY["ddpm large"]
        assert isinstance(inner, IterativePurifier)
        watched = Watched(inner)
        watched(images().requires_grad_(), OMEGA)
        assert watched.most == 10

    @pytest.mark.parametrize(("length", "segment"), [(1, 1), (64, 1), (65, 2), (100, 2), (1000, 4)])
    def test_the_default_segment_grows_with_the_square_root(self, length: int, segment: int) -> None:
        watched = Watched(Chain(length))
        purify(watched, images(1).requires_grad_(), omega(1)).sum().backward()
        assert watched.most == segment and len(watched.stepped) == 2 * length

    @pytest.mark.parametrize("segment", [0, -1])
    def test_a_segment_without_steps_is_refused(self, segment: int) -> None:
        with pytest.raises(ValueError, match="at least 1 step"):
            purify(Chain(), images().requires_grad_(), OMEGA, segment=segment)
