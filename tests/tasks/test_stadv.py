"""StAdv: the warp against shifts, torch's sampler and finite differences; the bound; the shipped digits network."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks import ATTACKS, AttackResult, PGDConfig, StAdvConfig, Target
from tasks.attacks.losses import margin
from tasks.attacks.stadv import roughness, warp
from tasks.datasets import ImageSet


def omega(count: int) -> Omega:
    return Omega.of("spec", 0, "attack", range(count))


def images(count: int = 3, channels: int = 2, height: int = 6, width: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 33), st.integers(1, 33), st.integers(0, 1000))
def test_no_flow_is_the_identity_bit_for_bit(count: int, channels: int, height: int, width: int, seed: int) -> None:
    x = images(count, channels, height, width, seed)
    assert torch.equal(warp(x, torch.zeros(count, 2, height, width)), x)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 1), (-2, 0), (0, -1), (2, 3)])
def test_a_constant_flow_of_whole_pixels_shifts_the_image_and_repeats_its_border(right: int, down: int) -> None:
    # Powers of two, so that the pixel units come out exactly.
    x = images(height=16, width=8)
    flow = torch.tensor([right * 2 / 8, down * 2 / 16]).view(1, 2, 1, 1).expand(3, 2, 16, 8)
    rows = (torch.arange(16) + down).clamp(0, 15)
    columns = (torch.arange(8) + right).clamp(0, 7)
    assert torch.equal(warp(x, flow), x[:, :, rows][:, :, :, columns])


def test_half_a_pixel_is_the_mean_of_two() -> None:
    x = images(height=4, width=4)
    flow = torch.zeros(3, 2, 4, 4)
    flow[:, 0] = 0.25  # half of 2 / W
    torch.testing.assert_close(warp(x, flow)[..., :3], (x[..., :3] + x[..., 1:]) / 2)
    assert torch.equal(warp(x, flow)[..., 3], x[..., 3])


@pytest.mark.parametrize("size", [0.05, 0.5, 3.0])
def test_it_is_torch_s_sampler_with_border_padding(size: float) -> None:
    x = images(4, 3, 7, 10).double()
    flow = size * (2 * torch.rand(4, 2, 7, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1)
    identity = torch.eye(2, 3, dtype=torch.float64).expand(4, 2, 3)
    grid = F.affine_grid(identity, list(x.shape), align_corners=False) + flow.permute(0, 2, 3, 1)
    expected = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    torch.testing.assert_close(warp(x, flow), expected, rtol=0, atol=1e-12)


def test_its_gradient_is_the_difference_quotient_in_flow_and_image() -> None:
    x = images(2, 2, 3, 4).double().requires_grad_()
    # Between two pixels, and off the border: bilinear sampling has kinks at the pixels.
    generator = torch.Generator().manual_seed(2)
    part = 0.2 + 0.6 * torch.rand(2, 2, 3, 4, generator=generator, dtype=torch.float64)
    inwards = torch.ones(2, 2, 3, 4, dtype=torch.float64)
    inwards[:, 0, :, 2:] = -1
    inwards[:, 1, 2:] = -1
    flow = (part * inwards * torch.tensor([2 / 4, 2 / 3]).view(1, 2, 1, 1)).requires_grad_()
    assert torch.autograd.gradcheck(warp, (x, flow))
    assert torch.autograd.gradcheck(roughness, (flow,))


def test_roughness_sums_the_four_neighbours_of_every_pixel() -> None:
    flow = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = np.zeros(2)
    for b, i, j in np.ndindex(2, 4, 5):
        for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if 0 <= k < 4 and 0 <= m < 5:
                expected[b] += np.sqrt(float((flow[b, :, i, j] - flow[b, :, k, m]).square().sum()) + 1e-10)
    np.testing.assert_allclose(roughness(flow), expected, rtol=1e-12)


class Brightness:
    """Two classes; the margin away from class 0 is the brightness of one pixel. Keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        score = x[:, 0, 3, 3]
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.2])
def test_on_a_ramp_the_flow_goes_to_the_bound_and_no_farther(eps: float) -> None:
    # A ramp from left to right: all that helps is to look to the right, by eps W / 2 pixels at most.
    x = (torch.arange(8.0) / 10).expand(2, 1, 8, 8).contiguous()
    found = StAdvConfig(eps=eps, steps=60, smoothness=0.0).run(
        Target(Brightness(), torch.zeros(2, dtype=torch.long), omega(2)), x, omega(2)
    )
    reached = (found.images - x)[:, 0, 3, 3]
    torch.testing.assert_close(reached, torch.full((2,), eps * 4 / 10), rtol=1e-5, atol=0)
    assert (found.columns["flow"].double() <= eps).all()
    torch.testing.assert_close(found.columns["flow"], torch.full((2,), eps))
    # Other pixels are none of the classifier's business: nothing has moved them.
    elsewhere = torch.ones(8, 8, dtype=torch.bool)
    elsewhere[3, 3] = False
    assert torch.equal(found.images[..., elsewhere], x[..., elsewhere])


@pytest.mark.slow
def test_smoothness_takes_the_neighbours_along() -> None:
    x = (torch.arange(8.0) / 10).expand(2, 1, 8, 8).contiguous()
    moved = []
    for smoothness in (0.0, 0.01):
        attack = StAdvConfig(eps=0.2, steps=60, smoothness=smoothness)
        found = attack.run(Target(Brightness(), torch.zeros(2, dtype=torch.long), omega(2)), x, omega(2))
        moved.append((found.images - x)[0, 0, 3])
    assert moved[1][3] > 0.06 and moved[1][2] > 0.003 and moved[1][4] > 0.003
    assert moved[0][2] == moved[0][4] == 0


def test_the_first_iterate_is_the_image_and_the_best_is_returned() -> None:
    # Adam's steps are larger than this narrow hill is wide, and jump over it.
    class Hill(Brightness):
        def __call__(self, x: Tensor) -> Tensor:
            logits = super().__call__(x)
            return torch.stack([logits[:, 0], (60 * logits[:, 1]).sin()], 1)

    x = images(6, 1, 8, 8)
    classifier = Hill()
    y = torch.zeros(6, dtype=torch.long)
    attack = StAdvConfig(eps=0.2, steps=12, learning_rate=0.09)
    found = attack.run(Target(classifier, y, omega(6)), x, omega(6))
    assert len(classifier.seen) == attack.evaluations == 13
    assert torch.equal(classifier.seen[0], x)
    values = torch.stack([margin(classifier(seen), y) for seen in list(classifier.seen)])
    assert torch.equal(found.loss, values.max(0).values)
    torch.testing.assert_close(margin(classifier(found.images), y), found.loss)
    assert (values.argmax(0) < 12).sum() >= 3  # where keeping the last one would fail


def attacked(network: nn.Module, data: ImageSet, attack: StAdvConfig | PGDConfig, count: int = 200) -> AttackResult:
    x, y = torch.from_numpy(data.images[:count]), torch.from_numpy(data.labels[:count])
    return attack.run(Target(network, y, omega(count)), x, omega(count))


def accuracy(network: nn.Module, data: ImageSet, found: AttackResult) -> float:
    right = network(found.images).argmax(1) == torch.from_numpy(data.labels[: len(found.images)])
    return float(right.double().mean())


@pytest.mark.slow
def test_it_breaks_the_shipped_network_and_more_budget_breaks_more(network: nn.Module, digits_test: ImageSet) -> None:
    # Measured on the first 200 test images: 28 % at 0.05 (0.2 pixels), 0 % at 0.1; clean accuracy is 99.5 %.
    left, losses = [], []
    for eps in (0.02, 0.05, 0.1):
        attack = StAdvConfig(eps=eps)
        found = attacked(network, digits_test, attack)
        assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1
        assert float(found.columns["flow"].double().max()) <= eps
        left.append(accuracy(network, digits_test, found))
        losses.append(float(found.loss.mean()))
    assert left[0] > 0.8 and 0.18 <= left[1] <= 0.38 and left[2] <= 0.01
    assert all(more < less for less, more in pairwise(left)) and losses == sorted(losses)


def test_names_defaults_and_refusals() -> None:
    attack = StAdvConfig()
    assert (attack.norm, attack.eps, attack.steps, attack.learning_rate) == ("flow", 0.05, 100, 0.01)
    assert (attack.label(), attack.evaluations) == ("stadv-100 flow", 101)
    assert StAdvConfig(loss="ce", gradient="exact", eot=5).label() == "stadv-100 flow ce exact eot 5"
    assert ATTACKS.get("stadv") is StAdvConfig
    with pytest.raises(InvalidInput, match="attack 'stadv' has no norm 'linf': write `norm: flow`"):
        StAdvConfig(norm="linf", eps=0.05)
    with pytest.raises(InvalidInput, match="attack 'pgd' has no norm 'flow': write `norm: linf or l2"):
        PGDConfig(norm="flow", eps=0.05)
    wrong: list[dict[str, object]] = [{"eps": 0.0}, {"eps": 2.1}, {"steps": 0}, {"smoothness": -1.0}, {"tau": 1.0}]
    for fields in wrong:
        with pytest.raises(InvalidInput):
            StAdvConfig.model_validate(fields)
