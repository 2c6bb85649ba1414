"""Gradients through real networks, and under autocast."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chains import deviation_by_hand
from torch import Tensor, nn
from toys import (
    DENOISER,
    EVERY,
    ancestral,
    guided,
    images,
    omega,
    relative,
)

import defense
from defense import (
    ClassifierConfig,
    DiffusersConfig,
    Purifier,
    purify,
)
from defense.gradients import purify_and_deviate
from defense.guidance import distance
from defense.purifiers import Diffusion, DistanceGuidance, SimilarityGuidance, TransferGuidance
from defense.purifiers.diffusion import guided_transition
from defense.samplers import Ancestral, time_grid

OMEGA = omega(4, 9, 2)


class LinearHead(nn.Module):
    """A classifier whose slope is one matrix product, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


class TestAutocast:
    @pytest.mark.parametrize(
        "name",
        [
            "ddpm large",
            "ode",
            "gdmp mse",
            "gdmp ssim",
            "transfer soft-label denoised",
            "transfer logit noisy",
            "chain",
        ],
    )
    def test_bf16_forward_with_the_backward_pass_outside_is_plain_autograd_of_the_same(self, name: str) -> None:
        purifier = copy.deepcopy(EVERY[name]).float()
        x = images().float()

        def run(whole: bool) -> tuple[Tensor, Tensor]:
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                out = purifier(leaf, OMEGA) if whole else purify(purifier, leaf, OMEGA)
            (found,) = torch.autograd.grad(out.float().square().sum(), leaf)
            return out, found

        (value, expected), (other, found) = run(True), run(False)
        assert torch.equal(value, other)
        assert relative(found, expected) < 1e-6
        leaf = x.clone().requires_grad_()
        (precise,) = torch.autograd.grad(purify(purifier, leaf, OMEGA).square().sum(), leaf)
        assert 1e-5 < relative(found, precise) < 0.2  # it was in bf16, and only in bf16

    def test_a_backward_pass_inside_autocast_rebuilds_what_ran_outside(self) -> None:
        purifier, x = copy.deepcopy(EVERY["ddpm large"]).float(), images().float()
        expected, found = x.clone().requires_grad_(), x.clone().requires_grad_()
        purify(purifier, expected, OMEGA).square().sum().backward()
        value = purify(purifier, found, OMEGA).square().sum()
        with torch.autocast("cpu", torch.bfloat16):
            value.backward()
        assert found.grad is not None and expected.grad is not None
        assert relative(found.grad, expected.grad) < 1e-6

    def test_the_slope_of_guidance_in_full_precision_is_in_full_precision(self) -> None:
        """Inside autocast torch would run the derivative of an fp32 linear layer in bf16."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = LinearHead().requires_grad_(False)
        guidance = TransferGuidance(distance("mse"), head, s=5.0, lam=100.0, classifier_sees="noisy", form="logit")
        purifier = guided(guidance, ancestral(100, 1))
        purifier.denoiser = copy.deepcopy(DENOISER).float()
        z, x = images().float(), images().float()
        sampler = purifier.rounds[0]
        step = (purifier.denoiser, guidance, sampler, 0, sampler.grid[0], z, x, OMEGA, 5)
        _, shift = guided_transition(*step)
        with torch.autocast("cpu", torch.bfloat16):
            _, same = guided_transition(*step)
        assert torch.equal(same, shift)


ASSETS = Path(defense.__file__).parent / "assets"


def cases(
    image_shape: tuple[int, int, int], classifier: nn.Module, denoiser: nn.Module
) -> Iterator[tuple[str, Purifier]]:
    def sampler(t_star: int, steps: int, variance: str = "large") -> Ancestral:
        schedule = denoiser.schedule
        return Ancestral(schedule, time_grid(t_star, steps), variance=variance, clip=True)  # type: ignore[arg-type]

    yield "diffpure", Diffusion(denoiser, [sampler(100, 4, "small")])
    yield "gdmp", Diffusion(denoiser, [sampler(36, 2)] * 2, guidance=SimilarityGuidance("mse", 60000, 100, 8.0))
    guidance = TransferGuidance(distance("mse"), classifier, s=1.0)
    yield "transfer", Diffusion(denoiser, [sampler(58, 2)], guidance=guidance, clamp=True)
    noise = DistanceGuidance(distance("mse"), 0.3)  # more would overshoot in so few steps
    yield "from noise", Diffusion(denoiser, [sampler(1000, 3)], guidance=noise, from_noise=True, clamp=True)


class TestRealNetworks:
    """In float32 the engine may only round otherwise than plain autograd."""

    def check(self, classifier: nn.Module, denoiser: nn.Module, shape: tuple[int, int, int]) -> None:
        x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
        keys = omega(0, 1)

        def slope(out: Tensor, leaf: Tensor) -> Tensor:
            value = nn.functional.cross_entropy(classifier(out), torch.tensor([3, 5]), reduction="sum")
            return torch.autograd.grad(value, leaf, allow_unused=True)[0]

        for name, purifier in cases(shape, classifier, denoiser):
            leaf = x.clone().requires_grad_()
            value = purifier(leaf, keys)
            expected = slope(value, leaf)
            for segment in (1, 2):
                out = purify(purifier, leaf, keys, segment=segment)
                assert torch.equal(out, value), name
                assert relative(slope(out, leaf), expected) < 1e-4, (name, segment)
            with torch.no_grad():
                assert torch.equal(purifier(x, keys), value), name
            leaf_out, deviation = purify_and_deviate(purifier, leaf, keys, segment=2)
            out, terms = deviation_by_hand(purifier, leaf, keys, 3)
            assert torch.equal(leaf_out, out), name
            values = torch.stack(terms).mean(0)
            torch.testing.assert_close(deviation, values, rtol=1e-5, atol=0)
            slopes = [torch.autograd.grad(v.sum(), leaf)[0] for v in (deviation, values)]
            assert relative(*slopes) < 1e-4, name
            # The other exact mode rebuilds states by other code paths, which must have the same bits.
            out = purify(purifier, leaf, keys, "exact-no-guidance-path")
            assert torch.equal(out, value), name
            found = slope(out, leaf)
            assert found.isfinite().all() and (name != "from noise" or found.abs().max() == 0)

    @pytest.mark.slow
    def test_digits(self) -> None:
        classifier = ClassifierConfig(classifier="digits-cnn").resolved(Path()).build()
        denoiser = DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-ddpm")).resolved(Path()).build()
        self.check(classifier, denoiser, (1, 8, 8))

    @pytest.mark.nightly
    def test_cifar10(self, weights_root: Path) -> None:
        config = ClassifierConfig(classifier="resnet20", weights="resnet20-12fca82f.th")
        denoiser = DiffusersConfig(schedule="linear-1000", path="ddpm-cifar10-small").resolved(weights_root).build()
        self.check(config.resolved(weights_root).build(), denoiser, (3, 32, 32))
