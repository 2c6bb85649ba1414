"""The gradient engine's modes: what each promises, for every kind of purifier."""

from __future__ import annotations

import pytest
import torch
from loops import every
from torch import Tensor
from toys import (
    DENOISER,
    EVERY,
    GUIDED,
    OPTIMISED,
    UNGUIDED,
    ancestral,
    gradient,
    guided,
    images,
    loss,
    omega,
    relative,
)

from defense import (
    GradientMode,
    InvalidInput,
    IterativePurifier,
    Purifier,
    purify,
)
from defense.guidance import distance
from defense.purifiers import Diffusion, Sequence, TransferGuidance

OMEGA = omega(4, 9, 2)
FAMILIES = (
    "ddpm small",
    "ldsde",
    "gradual-noise",
    "gdmp mse",
    "from noise ssim",
    "robust entropy input noisy",
    "freqpure replace",
    "score-opt O adam",
    "osgd",
    "heterogeneous",
    "chain",
)
"""One of each: what does not depend on the sampler and the form of guidance is asked of these."""


class TestExact:
    # None is 1 for chains as short. The contract suite asks the same of every built-in purifier.
    @pytest.mark.slow
    @every(("name", "segment"), [(name, segment) for name in FAMILIES for segment in (None, 3, 1000)])
    def test_it_is_plain_autograd(self, name: str, segment: int | None) -> None:
        purifier, x = EVERY[name], images()
        found = gradient(lambda x: purify(purifier, x, OMEGA, segment=segment), x)
        expected = gradient(lambda x: purifier(x, OMEGA), x)
        assert expected.norm() > 1e-3
        assert relative(found, expected) < 1e-10

    @pytest.mark.slow
    @every("name", EVERY)
    def test_the_value_is_the_same_to_the_bit_in_every_mode_that_runs_the_purifier(self, name: str) -> None:
        purifier, x = EVERY[name], images()
        with torch.no_grad():
            value = purifier(x, OMEGA)
            assert torch.equal(purify(purifier, x, OMEGA), value)
        assert torch.equal(purifier(x.clone().requires_grad_(), OMEGA), value)
        for mode in ("exact", "exact-no-guidance-path", "bpda"):
            for leaf in (x, x.clone().requires_grad_()):
                assert torch.equal(purify(purifier, leaf, OMEGA, mode), value)

    @pytest.mark.slow
    @every("name", EVERY)
    def test_nothing_is_followed_where_nobody_differentiates(self, name: str) -> None:
        purifier = EVERY[name]
        assert not purifier(images(), OMEGA).requires_grad
        assert not purify(purifier, images(), OMEGA).requires_grad

    @pytest.mark.slow
    @every("name", [name for name in EVERY if "clipped" not in name and "clamped" not in name])
    def test_it_is_the_slope_of_the_loss(self, name: str) -> None:
        # The first steps of Adam turn over where a gradient changes its sign.
        purifier, x, h = EVERY[name], images(), 1e-7 if name in OPTIMISED else 1e-5
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        slope = float((gradient(lambda x: purify(purifier, x, OMEGA), x) * direction).sum())
        with torch.no_grad():
            up, down = (loss(purifier(x + sign * h * direction, OMEGA)) for sign in (1, -1))
        assert float(up - down) / (2 * h) == pytest.approx(slope, rel=2e-5, abs=1e-8)

    @pytest.mark.slow
    def test_a_gradient_is_asked_for_per_image(self) -> None:
        """Images of a batch do not mix: the gradient of one image's loss is zero at the others."""
        for name in ("gdmp ssim", "transfer soft-label denoised", "robust prediction diffused noisy", "chain"):
            x = images().requires_grad_()
            (found,) = torch.autograd.grad(purify(EVERY[name], x, OMEGA)[1].square().sum(), x)
            assert found[0].abs().max() == found[2].abs().max() == 0 < found[1].abs().max()

    def test_pixels_that_a_clamp_saturates_have_no_gradient(self) -> None:
        plain = Diffusion(DENOISER, [ancestral(100, 10)])
        clamped = Diffusion(DENOISER, [ancestral(100, 10)], clamp=True)
        x = images().requires_grad_()
        free, held = purify(plain, x, OMEGA), purify(clamped, x, OMEGA)
        outside = (free < 0) | (free > 1)
        assert outside.any() and torch.equal(held, free.clamp(0, 1))
        (none,) = torch.autograd.grad(held[outside].sum(), x, retain_graph=True)
        (some,) = torch.autograd.grad(free[outside].sum(), x)
        assert none.abs().max() == 0 < some.abs().max()


class TestOtherModes:
    @pytest.mark.slow
    def test_bpda_has_the_identity_as_its_jacobian_and_blind_leaves_the_purifier_out(self) -> None:
        for name, purifier in EVERY.items():
            x = images().requires_grad_()
            out = purify(purifier, x, OMEGA, "bpda")
            cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
            (found,) = torch.autograd.grad(out, x, cotangent)
            assert torch.equal(found, cotangent), name
            assert purify(purifier, x, OMEGA, "blind") is x, name

    @pytest.mark.slow
    @every(("name", "steps"), [*((name, 3) for name in EVERY), *((name, 1) for name in FAMILIES)])
    def test_surrogate_is_the_shorter_chain_forward_and_backward(self, name: str, steps: int) -> None:
        purifier, x = EVERY[name], images()
        short = purifier.surrogate(steps)
        mode = f"surrogate({steps})"
        assert torch.equal(purify(purifier, x, OMEGA, mode), short(x, OMEGA))
        found = gradient(lambda x: purify(purifier, x, OMEGA, mode), x)
        assert relative(found, gradient(lambda x: short(x, OMEGA), x)) < 1e-10
        if isinstance(purifier, Diffusion):
            assert isinstance(short, Diffusion)
            assert [len(sampler) for sampler in short.rounds] == [min(steps, len(s)) for s in purifier.rounds]
            assert [sampler.grid[0] for sampler in short.rounds] == [s.grid[0] for s in purifier.rounds]

    @pytest.mark.slow
    def test_a_surrogate_of_all_the_steps_is_the_purifier(self) -> None:
        x = images()
        for name, purifier in EVERY.items():
            assert torch.equal(purify(purifier, x, OMEGA, "surrogate(1000)"), purifier(x, OMEGA)), name

    def test_the_surrogate_of_langevin_dynamics_runs_as_long_and_does_not_diverge(self) -> None:
        purifier = UNGUIDED["ldsde"]
        short = purifier.surrogate(1)
        assert isinstance(short, IterativePurifier) and short.length == 5
        assert (short(images(), OMEGA) - images()).abs().max() < 1

    @pytest.mark.slow
    @every("name", [name for name in EVERY if name != "chain"])
    def test_without_the_guidance_path_it_is_plain_autograd_of_steps_that_hold_guidance_fixed(
        self, name: str
    ) -> None:
        purifier, x = EVERY[name], images()
        assert isinstance(purifier, IterativePurifier)

        def by_hand(x: Tensor) -> Tensor:
            z = purifier.start(x, OMEGA)
            for i in range(purifier.length):
                z = purifier.step(i, z, x, OMEGA, guidance_path=False)
            return purifier.finish(z, x, OMEGA)

        found, expected = (
            gradient(lambda x: purify(purifier, x, OMEGA, "exact-no-guidance-path"), x),
            gradient(by_hand, x),
        )
        exact = gradient(lambda x: purify(purifier, x, OMEGA), x)
        if name.startswith("from noise"):
            assert found.abs().max() == expected.abs().max() == 0 < exact.abs().max()
            return
        assert relative(found, expected) < 1e-10
        if name in UNGUIDED or name == "heterogeneous":  # whose mask has no derivative anyway
            assert relative(found, exact) < 1e-10
        else:
            assert relative(found, exact) > 1e-4

    def test_the_slope_of_one_guided_step_without_its_guidance_path_is_that_of_the_unguided_step(self) -> None:
        """With noise and guidance held fixed a step is its unguided mean plus constants."""
        step = guided(TransferGuidance(distance("mse"), None, form="none", s=5.0), ancestral(100, 1))
        bare = Diffusion(DENOISER, [ancestral(100, 1)])
        x, weight = images(), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

        def slope(purifier: Purifier, mode: str) -> Tensor:
            leaf = x.clone().requires_grad_()
            (found,) = torch.autograd.grad((purify(purifier, leaf, OMEGA, mode) * weight).sum(), leaf)
            return found

        torch.testing.assert_close(slope(step, "exact-no-guidance-path"), slope(bare, "exact"), rtol=0, atol=1e-13)
        # d/dx of -gain s 2 (z - target), with z = a(2x-1) + ... and target = a(2x-1) + ...: they cancel for MSE.
        torch.testing.assert_close(slope(step, "exact"), slope(bare, "exact"), rtol=0, atol=1e-12)

    @pytest.mark.slow
    def test_a_chain_drops_the_guidance_path_of_its_stages(self) -> None:
        chain, x = EVERY["chain"], images()
        first, second = UNGUIDED["ddpm small"], GUIDED["gdmp mse"]
        assert isinstance(chain, Sequence)
        own = [omega for _, omega in chain.stages_with(OMEGA)]

        def by_hand(x: Tensor) -> Tensor:
            noised = purify(next(iter(chain.stages_with(OMEGA)))[0], x, own[0])
            return purify(second, purify(first, noised, own[1]), own[2], "exact-no-guidance-path")

        found = gradient(lambda x: purify(chain, x, OMEGA, "exact-no-guidance-path"), x)
        assert relative(found, gradient(by_hand, x)) < 1e-12
        assert relative(found, gradient(lambda x: purify(chain, x, OMEGA), x)) > 1e-4


class TestModeNames:
    @pytest.mark.parametrize("text", ["blind", "bpda", "exact", "exact-no-guidance-path", "surrogate(5)"])
    def test_a_name_is_read_and_written_the_same(self, text: str) -> None:
        assert str(GradientMode.parse(text)) == text
        assert GradientMode.parse(text).steps == (5 if "surrogate" in text else 0)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("exct", "unknown gradient mode 'exct'; did you mean 'exact'"),
            ("surrogate", r"'surrogate'.*surrogate\(K\).*K is a number of reverse steps"),
            ("surrogate(K)", "unknown gradient mode"),
            ("surrogate(0)", "at least 1"),
            ("surrogate(-1)", "at least 1"),
            ("surrogate(2.5)", "unknown gradient mode"),
            ("Exact", "did you mean 'exact'"),
            ("", "unknown gradient mode ''"),
        ],
    )
    def test_another_name_is_refused_with_the_nearest(self, text: str, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            GradientMode.parse(text)
        with pytest.raises(InvalidInput, match=message):
            purify(EVERY["ddim"], images(), OMEGA, text)
