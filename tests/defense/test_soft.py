"""Differentiable approximations: values against closed forms and the codec, gradients against finite differences."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from defense.gradients import GradientMode, purify
from defense.purifiers import Purifier
from defense.purifiers.bit_depth import BitDepth, BitDepthConfig
from defense.purifiers.gaussian_noise import GaussianNoise, GaussianNoiseConfig
from defense.purifiers.jpeg import JPEG, JPEGConfig
from defense.purifiers.median import Median, MedianConfig
from defense.purifiers.sequence import Sequence, SequenceConfig
from defense.purifiers.soft import soft_levels, soft_median, soft_round, with_gradient_of
from defense.purifiers.soft_jpeg import quantisation_table, soft_jpeg
from defense.randomness import Omega

OMEGA = Omega.of("spec", 0, "attack", [3, 5])
FILTERS = {"jpeg": JPEG(60), "bit-depth": BitDepth(3), "median": Median(3)}


def images(channels: int = 1, side: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    coarse = torch.rand(2, channels, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0.05, 0.95).to(dtype)


def slope(purifier: Purifier, x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of a fixed sum of it."""
    leaf = x.clone().requires_grad_()
    out = purify(purifier, leaf, OMEGA, mode)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(x)
    return out.detach(), torch.autograd.grad((weight * out).sum(), leaf)[0]


def test_the_cubic_rounds_whole_numbers_to_themselves_and_is_steep_where_rounding_jumps() -> None:
    x = torch.tensor([-1.0, 0.0, 0.3, 0.49, 0.51, 2.9], dtype=torch.float64, requires_grad=True)
    out = soft_round(x)
    assert out.tolist() == pytest.approx([-1, 0, 0.027, 0.117649, 1 - 0.117649, 2.999])
    (found,) = torch.autograd.grad(out.sum(), x)
    assert found.tolist() == pytest.approx([0, 0, 0.27, 3 * 0.49**2, 3 * 0.49**2, 0.03])


def test_the_soft_levels_meet_at_the_levels_and_go_to_the_staircase() -> None:
    x = torch.linspace(-2, 2, 401, dtype=torch.float64)
    for alpha in (0.5, 0.2, 1e-3):
        assert (soft_levels(x, alpha).diff() > 0).all() and soft_levels(x, alpha).diff().max() < 0.2
        assert soft_levels(torch.tensor([0.0, 0.5, 0.9999999]).double(), alpha).tolist() == pytest.approx([0, 0.5, 1])
    away = (x - x.floor() - 0.5).abs() > 0.05
    assert (soft_levels(x, 1e-30) - x.round()).abs()[away].max() < 0.01
    at = torch.tensor([0.5, 1e-9], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(soft_levels(at).sum(), at)
    steepest = math.log(9) / 0.8 / 2
    assert found.tolist() == pytest.approx([steepest, steepest / math.cosh(math.log(9) / 2) ** 2])
    assert found.tolist() == pytest.approx([1.37, 0.49], abs=0.01)


def test_the_soft_median_is_a_weighted_mean_about_the_median() -> None:
    x = torch.tensor([[0.1, 0.2, 0.9], [0.4, 0.4, 0.4]], dtype=torch.float64)
    weights = np.exp([-0.1 / 0.05, 0.0, -0.7 / 0.05])
    assert soft_median(x)[0].item() == pytest.approx(float(weights @ [0.1, 0.2, 0.9] / weights.sum()))
    assert soft_median(x)[1].item() == pytest.approx(0.4)
    assert soft_median(x, 1e-4)[0].item() == pytest.approx(0.2) and soft_median(x, 1e6)[0].item() == pytest.approx(
        0.4
    )


def test_a_value_with_another_gradient_keeps_its_bits() -> None:
    x = torch.rand(5, requires_grad=True)
    value = torch.rand(5)
    out = with_gradient_of(value, x**2)
    assert torch.equal(out, value)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], 2 * x.detach())


@pytest.mark.parametrize("quality", [10, 49, 50, 75, 95, 100])
def test_quantisation_tables_are_those_of_the_codec(quality: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, format="JPEG", quality=quality)
    tables = Image.open(file).quantization  # type: ignore[attr-defined]
    for chroma in (False, True):
        ours = np.ravel(quantisation_table(quality, chroma=chroma)).tolist()
        assert sorted(ours) == sorted(tables[int(chroma)]) and ours[0] == tables[int(chroma)][0]


@pytest.mark.parametrize(("channels", "side"), [(1, 16), (1, 13), (3, 32), (3, 21)])
@pytest.mark.parametrize("quality", [30, 75])
def test_with_hard_rounding_it_is_the_codec_within_a_grey_level_or_so(channels: int, side: int, quality: int) -> None:
    x = (images(channels, side) * 255).round() / 255
    codec = JPEG(quality)(x, OMEGA)
    off = (soft_jpeg(x, quality, torch.round).clamp(0, 1) - codec).abs() * 255
    # Here and there a coefficient halfway between two whole numbers goes the other way.
    assert off.mean() < 1.4 and ((x - codec).abs() * 255).mean() > 5 * off.mean()
    if (channels, side) == (1, 16):
        assert off.max() < 0.6, "rounding to whole grey levels"


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_is_that_of_the_purifier_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    x = images(3, dtype=dtype)
    hard = FILTERS[name](x, OMEGA)
    assert torch.equal(slope(FILTERS[name], x, "soft")[0], hard)
    assert torch.equal(purify(FILTERS[name], x, OMEGA, "soft"), hard)  # nobody differentiates


@pytest.mark.parametrize("name", FILTERS)
def test_the_gradient_is_that_of_the_approximation_by_finite_differences(name: str) -> None:
    def median(x: Tensor) -> Tensor:
        windows = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1)
        return soft_median(windows.flatten(4))

    soft = {
        "jpeg": lambda x: soft_jpeg(x, 60),
        "bit-depth": lambda x: soft_levels(7 * x) / 7,
        "median": median,
    }[name]
    x = images(3) + 1e-3 * torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h = 1e-8
    difference = float((weight * (soft(x + h * u) - soft(x - h * u))).sum()) / (2 * h)
    _, found = slope(FILTERS[name], x, "soft")
    assert float((found * u).sum()) == pytest.approx(difference, rel=1e-4)
    assert (slope(FILTERS[name], x, "exact")[1] - found).abs().max() > 0.1, "the other mode is another gradient"


def test_chains_soften_their_stages_and_others_stay_what_they_are() -> None:
    chain, x = Sequence([Median(3), GaussianNoise(0.1), BitDepth(3)]), images()
    out, found = slope(chain, x, "soft")
    assert torch.equal(out, chain(x, OMEGA)) and not torch.equal(found, slope(chain, x, "exact")[1])
    plain = Sequence([GaussianNoise(0.1)])
    assert plain.softened() is plain and GaussianNoise(0.1).softened() is not chain
    assert torch.equal(slope(plain, x, "soft")[1], slope(plain, x, "exact")[1])


def test_configs_say_what_softens() -> None:
    noise, depth = GaussianNoiseConfig(sigma=0.1), BitDepthConfig(bits=3)
    assert depth.softens and MedianConfig().softens and JPEGConfig().softens and not noise.softens
    assert SequenceConfig(stages=(noise, depth)).softens and not SequenceConfig(stages=(noise,)).softens
    assert str(GradientMode.parse("soft")) == "soft"
