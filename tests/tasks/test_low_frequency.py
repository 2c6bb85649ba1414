"""Attacks under a bound of LPIPS: filters and steps in closed form, the threshold, and what they refuse.

LPIPS has its own backbone with seeded random weights here: the distance is another one, the mechanism the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defense.errors import InvalidInput
from defense.lpips import LpipsConfig
from defense.randomness import Omega
from defense.torchvision_cpu import allow_torchvision_import
from tasks.attacks import (
    ATTACKS,
    AttackConfig,
    AttackResult,
    LagrangianPerceptualConfig,
    LowFrequencyConfig,
    Target,
    perturbation_norms,
)
from tasks.attacks.losses import margin
from tasks.attacks.low_frequency import GuidedFilter, _at_most_one
from tasks.attacks.perceptual import network

Y = torch.tensor([0, 3, 1, 2])


def omega(count: int) -> Omega:
    return Omega.of("spec", 0, "attack", range(count))


def smooth_images(count: int, channels: int = 3, side: int = 32) -> Tensor:
    """Images in [0, 1] with structure at all scales."""
    generator = torch.Generator().manual_seed(7)
    x = torch.zeros(count, channels, side, side)
    for cells in (2, 4, 8, 16):
        noise = torch.rand(count, channels, cells, cells, generator=generator) - 0.5
        x += 2 / cells**0.5 * nn.functional.interpolate(noise, side, mode="bilinear", align_corners=False)
    return (0.5 + 0.5 * x).clamp(0, 1)


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> LpipsConfig:
    allow_torchvision_import()
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = alexnet(weights=None)
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.save({key: value for key, value in net.state_dict().items() if key.startswith("features.")}, path)
    return LpipsConfig(weights=path.name).resolved(path.parent)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)
        )
    with torch.no_grad():
        net[4].weight.mul_(20)
    return net.requires_grad_(False).eval()


def run(attack: AttackConfig, classifier: nn.Module, x: Tensor, y: Tensor = Y) -> AttackResult:
    return attack.run(Target(classifier, y, omega(len(x))), x, omega(len(x)))


class TestFilter:
    def test_it_begins_as_the_identity_up_to_what_it_takes_from_each_neighbour(self) -> None:
        x = smooth_images(2, side=12)
        for side in (3, 5, 7):
            filtered = GuidedFilter(x, side, 0.1)(x).detach()
            assert float((filtered - x).abs().max()) <= (side**2 - 1) * 1.01e-5
            assert not torch.equal(filtered, x)

    @pytest.mark.parametrize("side", [1, 3, 5])
    def test_it_is_the_formula(self, side: int) -> None:
        x = smooth_images(2, 2, side=6).double()
        z = smooth_images(4, 2, side=6)[2:].double()
        own = GuidedFilter(x, side, 0.3)
        with torch.no_grad():
            own.logits += torch.randn(own.logits.shape, generator=torch.Generator().manual_seed(1)).double()
        found = own(z).detach().numpy()
        radius = side // 2
        padded = [np.pad(a.numpy(), ((0, 0), (0, 0), (radius, radius), (radius, radius)), "reflect") for a in (x, z)]
        logits = own.logits.detach().numpy()
        for b, i, j in np.ndindex(2, 6, 6):
            total, share = np.zeros(2), 0.0
            for k, m in np.ndindex(side, side):
                away = np.abs(padded[0][b, :, i + k, j + m] - x[b, :, i, j].numpy()).sum()
                quadrant = logits[b, radius - abs(k - radius), radius - abs(m - radius), i, j]
                weight = np.exp(quadrant) * np.exp(-(away**2) / (2 * 0.3**2))
                total += weight * padded[1][b, :, i + k, j + m]
                share += weight
            np.testing.assert_allclose(found[b, :, i, j], total / share, rtol=1e-10)

    def test_equal_logits_and_no_guidance_are_the_mean_of_the_window(self) -> None:
        x = smooth_images(1, side=9)
        own = GuidedFilter(x, 3, 1e6)
        nn.init.zeros_(own.logits)
        expected = nn.functional.avg_pool2d(nn.functional.pad(x, (1,) * 4, mode="reflect"), 3, 1)
        torch.testing.assert_close(own(x), expected)

    def test_edges_of_the_guide_stay(self) -> None:
        # A step of 0.5 with sigma 0.1: nothing crosses it, though all logits are equal.
        x = torch.zeros(1, 1, 8, 8)
        x[..., 4:] = 0.5
        own = GuidedFilter(x, 5, 0.1)
        nn.init.zeros_(own.logits)
        torch.testing.assert_close(own(x), x, rtol=0, atol=1e-5)

    def test_its_gradient_is_the_difference_quotient(self) -> None:
        x = smooth_images(1, 2, side=4).double()
        own = GuidedFilter(x, 3, 0.3)
        logits = torch.randn(own.logits.shape, generator=torch.Generator().manual_seed(1)).double()

        def filtered(w: Tensor, z: Tensor) -> Tensor:
            return torch.func.functional_call(own, {"logits": w}, (z,))  # type: ignore[no-any-return]

        assert torch.autograd.gradcheck(filtered, (logits.requires_grad_(), x.requires_grad_()))


def test_gradients_are_scaled_down_to_norm_1_never_up_and_image_by_image() -> None:
    gradient = torch.zeros(4, 3)
    gradient[0, 1], gradient[1], gradient[2] = 0.5, torch.tensor([3.0, 0.0, 4.0]), torch.full((3,), 1e30)
    third = 3**-0.5
    expected = torch.tensor([[0.0, 0.5, 0.0], [0.6, 0.0, 0.8], [third] * 3, [0.0] * 3])
    torch.testing.assert_close(_at_most_one(gradient), expected)


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.0005, pytest.param(0.005, marks=pytest.mark.nightly)])
def test_it_gains_loss_and_keeps_to_the_threshold(lpips: LpipsConfig, classifier: nn.Module, eps: float) -> None:
    x = smooth_images(4)
    attack = LowFrequencyConfig(eps=eps, lpips=lpips, steps=25)
    target = Target(classifier, Y, omega(4))
    found = attack.run(target, x, omega(4))
    assert target.evaluations == 4 * attack.evaluations
    assert found.images.dtype == torch.float32 and 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    with torch.no_grad():
        distance = lpips.build()(2 * found.images - 1, 2 * x - 1)
        torch.testing.assert_close(found.columns["lpips"], distance, rtol=1e-4, atol=1e-7)
        assert (distance <= eps * (1 + 1e-4)).all() and (distance > eps / 10).all()
        torch.testing.assert_close(margin(classifier(found.images), Y), found.loss)
        assert (found.loss > margin(classifier(x), Y)).all()


@pytest.mark.slow
def test_the_bound_binds_and_filters_alone_already_gain(lpips: LpipsConfig, classifier: nn.Module) -> None:
    x = smooth_images(4)
    gain, norm = [], []
    for change in ({"eps": 5e-5}, {"eps": 5e-4}, {"eps": 1e3}, {"eps": 1e3, "learning_rate": 1e-12}):
        fields = {"lpips": lpips, "steps": 12, "kernels": (5, 3), **change}
        found = run(LowFrequencyConfig.model_validate(fields), classifier, x)
        gain.append(float((found.loss - margin(classifier(x), Y)).mean()))
        norm.append(float(perturbation_norms(found.images, x)["l2"].mean()))
    assert 0 < gain[0] < gain[1] < gain[2] and norm[0] < norm[1] < norm[2]
    assert 0 < gain[3] < gain[2]


@pytest.mark.slow
def test_where_nothing_is_inside_the_clean_image_stays(lpips: LpipsConfig, classifier: nn.Module) -> None:
    x = smooth_images(4)
    found = run(LowFrequencyConfig(eps=1e-12, lpips=lpips, steps=2), classifier, x)
    assert torch.equal(found.images, x)
    torch.testing.assert_close(found.loss, margin(classifier(x), Y))
    assert found.columns["lpips"].tolist() == [0.0] * 4


class Untouched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the defence was called")


def test_images_too_small_are_refused_before_the_defence_is_called(lpips: LpipsConfig) -> None:
    attack = LowFrequencyConfig(lpips=lpips, steps=2)
    with pytest.raises(InvalidInput, match=r"at least 31 pixels a side, not \(8, 8\)"):
        run(attack, Untouched(), torch.rand(4, 1, 8, 8))
    wide = LowFrequencyConfig(lpips=lpips, steps=2, kernels=(65,))
    with pytest.raises(InvalidInput, match=r"kernels \[65\] do not fit images of \(32, 32\)"):
        run(wide, Untouched(), smooth_images(4))


def test_missing_weights_are_reported_before_any_compute(lpips: LpipsConfig, tmp_path: Path) -> None:
    for fields in ({}, {"lpips": {}}, {"lpips": {"net": "vgg"}}):
        with pytest.raises(InvalidInput, match=r"lpips: {net: vgg, weights: PATH}.*vgg16-397923af.*never fetched"):
            LowFrequencyConfig.model_validate(fields)
    named = LowFrequencyConfig.model_validate({"lpips": {"weights": "nothing.pth"}})
    with pytest.raises(
        InvalidInput, match=r"nothing\.pth' is not there.*alexnet-owt-7be5be79\.pth; its sha256 begins with 7be5"
    ):
        named.resolved(tmp_path)
    with pytest.raises(InvalidInput, match="have not been looked up"):
        run(named, Untouched(), smooth_images(4))


def test_names_and_the_weights_in_the_id(lpips: LpipsConfig, tmp_path: Path) -> None:
    attack = LowFrequencyConfig(lpips=lpips)
    assert (attack.label(), attack.norm, attack.eps) == ("low-frequency-100 lpips-alex", "lpips", 0.05)
    assert (attack.kernels, attack.evaluations) == ((5, 7, 5, 3), 102)
    assert ATTACKS.get("low-frequency") is LowFrequencyConfig
    assert lpips.weights is not None
    here = LowFrequencyConfig.model_validate(
        {"lpips": {"weights": Path(lpips.weights).name}, "kernels": [5, 7, 5, 3]}
    )
    resolved = here.resolved(Path(lpips.weights).parent)
    assert resolved.id == attack.id != here.id
    with pytest.raises(InvalidInput, match=r"odd sides.*\[5, 4\]"):
        LowFrequencyConfig(lpips=lpips, kernels=(5, 4))
    with pytest.raises(InvalidInput, match="write `norm: lpips`"):
        LowFrequencyConfig(lpips=lpips, norm="l2")


class TestLagrangian:
    def test_one_step_is_that_of_the_formula(self, lpips: LpipsConfig, classifier: nn.Module) -> None:
        x, d, eps = smooth_images(4), network(lpips), 1e-4
        attack = LagrangianPerceptualConfig(lpips=lpips, steps=1, eps=eps, penalty=2.0)
        found = run(attack, classifier, x)
        start = (x + 0.01 * omega(4).normal("start", 0, x)).clamp(0, 1)
        at = start.clone().requires_grad_()
        lagrangian = margin(classifier(at), Y) - 2.0 * (d(at, x) - eps).clamp_min(0)
        (g,) = torch.autograd.grad(lagrangian.sum(), at)
        u = g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        with torch.no_grad():
            length = 0.1 * eps / (d(start, start + 0.1 * u) / 0.1).clamp_min(1e-4)
            moved = (start + length.view(-1, 1, 1, 1) * u).clamp(0, 1)
            # The bisection: some point between the clean image and that one, as far as the bound allows.
            away = (found.images - x).flatten(1)
            share = (away * (moved - x).flatten(1)).sum(1) / (moved - x).flatten(1).square().sum(1)
            far, found_far = d(moved, x), d(found.images, x)
        ours = found.loss > margin(classifier(x), Y)
        assert ours.any()
        torch.testing.assert_close(away[ours], (share.view(-1, 1) * (moved - x).flatten(1))[ours], rtol=0, atol=1e-5)
        at_the_bound = ours & (far > eps)
        assert at_the_bound.any() and (found_far <= eps * (1 + 1e-3)).all()
        assert (found_far[at_the_bound] > 0.98 * eps).all()

    def test_it_breaks_images_inside_its_bound(self, lpips: LpipsConfig, classifier: nn.Module) -> None:
        x = smooth_images(4)
        y = classifier(x).argmax(1)
        result = run(LagrangianPerceptualConfig(lpips=lpips, steps=8, eps=0.01), classifier, x, y)
        with torch.no_grad():
            far = network(lpips)(result.images, x)
        assert (far <= 0.01 * (1 + 1e-4)).all() and (classifier(result.images).argmax(1) != y).any()
        torch.testing.assert_close(result.columns["lpips"], far, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(result.loss, margin(classifier(result.images), y))
        assert (result.loss >= margin(classifier(x), y)).all()

    def test_missing_weights_and_its_name(self, lpips: LpipsConfig) -> None:
        with pytest.raises(InvalidInput, match=r"lagrangian-perceptual needs `lpips: {net: vgg, weights: PATH}`"):
            LagrangianPerceptualConfig.model_validate({})
        attack = LagrangianPerceptualConfig(lpips=lpips)
        assert (attack.label(), attack.evaluations) == ("lagrangian-perceptual-40 lpips-alex", 42)
        with pytest.raises(InvalidInput, match="write `norm: lpips`"):
            LagrangianPerceptualConfig(lpips=lpips, norm="linf")
