"""How far the reverse process strays from the forward one (DiffAttack's loss), and its gradient."""

from __future__ import annotations

import loops
import pytest
import torch
from chains import Chain, Watched, deviation_by_hand
from torch import Tensor
from toys import (
    DENOISER,
    EVERY,
    OPTIMISED,
    OTHERS,
    ancestral,
    gradient,
    images,
    loss,
    omega,
    relative,
)

from defense import (
    InvalidInput,
    IterativePurifier,
    Omega,
    Purifier,
    purify,
)
from defense.gradients import IrreproducibleState, purify_and_deviate
from defense.purifiers import Diffusion, Sequence
from defense.samplers import DDIM, time_grid

OMEGA = omega(4, 9, 2)

DIFFUSING = [name for name in EVERY if name not in ("ldsde", *OPTIMISED, *OTHERS)]
FAMILIES = ("ddpm small", "gradual-noise", "gdmp mse", "from noise ssim", "robust entropy input noisy", "chain")
"""One of each: how states are chosen and segments are cut does not depend on the sampler and the form of guidance."""


class TestDeviation:
    WEIGHTS = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)

    def total(self, images: Tensor, deviation: Tensor) -> Tensor:
        return loss(images) + (self.WEIGHTS.to(deviation) * deviation).sum()

    @pytest.mark.slow
    @loops.every(
        ("name", "every", "segment"),
        [
            *((name, 3, 4) for name in DIFFUSING),
            *((name, *cut) for name in FAMILIES for cut in ((3, None), (1, 3), (2, 1000))),
        ],
    )
    def test_value_and_gradient_are_those_of_the_formula(self, name: str, every: int, segment: int | None) -> None:
        purifier, x = EVERY[name], images().requires_grad_()
        out, terms = deviation_by_hand(purifier, x, OMEGA, every)
        expected = torch.stack(terms).mean(0)
        purified, deviation = purify_and_deviate(purifier, x, OMEGA, every=every, segment=segment)
        assert torch.equal(purified, out)
        torch.testing.assert_close(deviation, expected, rtol=1e-12, atol=0)
        (by_hand,) = torch.autograd.grad(self.total(out, expected), x)
        (found,) = torch.autograd.grad(self.total(purified, deviation), x, retain_graph=True)
        assert relative(found, by_hand) < 1e-10
        (alone,) = torch.autograd.grad(deviation.sum(), x)
        plain = gradient(lambda x: purify(purifier, x, OMEGA), x.detach())
        # The loss has a part of its own in the sum: a gradient without it would be seen.
        assert alone.norm() > 1e-3 * plain.norm() and relative(found, plain) > 1e-3

    @pytest.mark.parametrize("name", ["ddpm small", "gradual-noise", "gdmp mse", "chain"])
    def test_without_a_gradient_the_values_are_the_same_to_the_bit(self, name: str) -> None:
        purifier, x = EVERY[name], images()
        purified, deviation = purify_and_deviate(purifier, x.clone().requires_grad_(), OMEGA)
        bare = purify_and_deviate(purifier, x, OMEGA)
        assert torch.equal(bare[0], purified) and torch.equal(bare[1], deviation)
        assert torch.equal(purified, purifier(x, OMEGA)) and not bare[1].requires_grad

    @pytest.mark.parametrize("mode", ["surrogate(2)", "exact-no-guidance-path"])
    @pytest.mark.parametrize("name", ["gradual-noise", "gdmp mse"])
    def test_other_modes_deviate_along_their_own_chain(self, name: str, mode: str) -> None:
        purifier, x = EVERY[name], images().requires_grad_()
        (found,) = torch.autograd.grad(purify_and_deviate(purifier, x, OMEGA, mode)[1].sum(), x)
        other = purifier.surrogate(2) if "surrogate" in mode else purifier
        terms = deviation_by_hand(other, x, OMEGA, 3)[1]
        (expected,) = torch.autograd.grad(torch.stack(terms).mean(0).sum(), x)
        same = "surrogate" in mode or name == "gradual-noise"
        assert (relative(found, expected) < 1e-10) == same

    def test_it_is_the_slope_of_the_deviation(self) -> None:
        purifier, x, h = EVERY["gradual-noise"], images(), 1e-5
        leaf = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(purify_and_deviate(purifier, leaf, OMEGA)[1].sum(), leaf)
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        up, down = (purify_and_deviate(purifier, x + s * h * direction, OMEGA)[1].sum() for s in (1, -1))
        assert float(up - down) / (2 * h) == pytest.approx(float((found * direction).sum()), rel=1e-6)

    def test_a_perfect_reconstruction_does_not_deviate(self) -> None:
        """A denoiser that knows the noise takes the flow back along the path it came: L_dev is 0."""
        x = images()
        noise = OMEGA.normal("forward", 0, x)

        class Knows:
            schedule = DENOISER.schedule

            def __call__(self, z: Tensor, t: int) -> Tensor:
                return noise

        purifier = Diffusion(Knows(), [DDIM(Knows.schedule, time_grid(100, 10))])
        purified, deviation = purify_and_deviate(purifier, x, OMEGA)
        torch.testing.assert_close(purified, x, rtol=0, atol=1e-12)
        assert deviation.max() < 1e-24

    @pytest.mark.parametrize(("segment", "most"), [(1, 1), (3, 3)])
    @pytest.mark.parametrize("name", ["ddpm large", "gdmp mse", "gradual-noise"])
    def test_no_more_graphs_than_a_segment_are_alive(self, name: str, segment: int, most: int) -> None:
        inner = EVERY[name]
        assert isinstance(inner, IterativePurifier)
        watched, x, n = Watched(inner), images().requires_grad_(), inner.length
        out, deviation = purify_and_deviate(watched, x, OMEGA, segment=segment)
        assert not watched.alive
        (out.sum() + deviation.sum()).backward()
        assert sorted(watched.stepped) == sorted([*range(n), *range(n)]) and watched.most == most

    def test_a_step_that_is_not_a_function_of_its_arguments_raises(self) -> None:
        class Mixed(Diffusion):
            calls = 0

            def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
                self.calls += 1
                return super().step(i, z, x, omega) + 1e-6 * self.calls

        purifier = Mixed(DENOISER, [ancestral(100, 10)])
        with pytest.raises(IrreproducibleState, match="after step 9"):
            purify_and_deviate(purifier, images().requires_grad_(), OMEGA)[1].sum().backward()

    @pytest.mark.parametrize("purifier", [EVERY["ldsde"], Chain(), Sequence([Chain()])])
    def test_a_purifier_without_a_forward_process_is_refused_before_it_runs(self, purifier: Purifier) -> None:
        with pytest.raises(InvalidInput, match="does not noise its input and reverse that"):
            purify_and_deviate(purifier, images(), OMEGA)
        assert not isinstance(purifier, Chain) or not purifier.stepped

    @pytest.mark.parametrize("mode", ["bpda", "blind"])
    def test_so_is_a_mode_that_leaves_the_states_out(self, mode: str) -> None:
        with pytest.raises(InvalidInput, match=f"gradient {mode} does not go through the states"):
            purify_and_deviate(EVERY["ddim"], images(), OMEGA, mode)
