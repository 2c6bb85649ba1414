"""Purifiers without a generator against closed forms, scipy and Pillow."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from defense.errors import InvalidInput
from defense.purifiers.base import PURIFIERS, Purifier, PurifierConfig
from defense.purifiers.bit_depth import BitDepth, BitDepthConfig
from defense.purifiers.gaussian_noise import GaussianNoise, GaussianNoiseConfig
from defense.purifiers.jpeg import JPEG, JPEGConfig
from defense.purifiers.median import Median, MedianConfig
from defense.randomness import Omega

CONFIGS: list[PurifierConfig] = [
    JPEGConfig(quality=60),
    BitDepthConfig(bits=3),
    MedianConfig(size=3),
    GaussianNoiseConfig(sigma=0.25),
]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.purifier)


def images(n: int, channels: int = 3, side: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, channels, side, side, generator=generator, dtype=torch.float64).to(dtype)


def smooth(n: int, channels: int = 3, side: int = 32) -> Tensor:
    """Images such as JPEG is made for."""
    coarse = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(n))
    return torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)


def omega(*image_ids: int, draw: int = 0) -> Omega:
    return Omega.of("spec", 0, "judge", image_ids, draw)


@each_config
class TestEvery:
    def test_it_is_registered_under_its_name_and_reads_its_own_identity(self, config: PurifierConfig) -> None:
        assert PURIFIERS.get(config.purifier) is type(config)
        assert type(config).model_validate(config.identity()) == config

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_and_dtype_stay(self, config: PurifierConfig, dtype: torch.dtype) -> None:
        purify: Purifier = config.build()
        for channels in (1, 3):
            x = images(2, channels, dtype=dtype)
            out = purify(x, omega(4, 9))
            assert out.shape == x.shape and out.dtype == dtype and not out.requires_grad

    def test_an_image_is_purified_the_same_whatever_else_is_in_the_batch(self, config: PurifierConfig) -> None:
        purify, x = config.build(), images(4)
        whole = purify(x, omega(7, 3, 11, 0))
        assert torch.equal(purify(x[[2, 0]], omega(11, 7)), whole[[2, 0]])
        assert torch.equal(purify(x[1:2], omega(3)), whole[1:2])

    def test_the_input_is_left_alone_and_gradients_do_not_change_the_output(self, config: PurifierConfig) -> None:
        purify, x = config.build(), images(2)
        before = x.clone()
        plain = purify(x, omega(1, 2))
        followed = purify(x.clone().requires_grad_(), omega(1, 2))
        assert torch.equal(x, before) and torch.equal(plain, followed.detach()) and followed.requires_grad

    def test_only_noise_depends_on_omega(self, config: PurifierConfig) -> None:
        purify, x = config.build(), images(1)
        differs = not torch.equal(purify(x, omega(1)), purify(x, omega(1, draw=1)))
        assert differs == config.stochastic

    def test_no_network_is_evaluated(self, config: PurifierConfig) -> None:
        assert config.evaluations == 0 and config.model_key() == "" and config.image_shape is None
        assert config.noise_level is None and not config.knows_eps and not config.uses_classifier


@pytest.mark.parametrize("purify", [JPEG(50), BitDepth(2)])
def test_the_backward_pass_of_rounding_is_that_of_the_identity(purify: Purifier) -> None:
    x = images(2, dtype=torch.float64).requires_grad_()
    flowing = images(2, dtype=torch.float64).flip(0)
    (gradient,) = torch.autograd.grad(purify(x, omega(0, 1)), x, flowing)
    assert torch.equal(gradient, flowing)


def test_the_configs_say_where_the_gradient_is_straight_through() -> None:
    assert [config.differentiable for config in CONFIGS] == [False, False, True, True]


def test_labels_show_the_parameters() -> None:
    assert [config.label() for config in CONFIGS] == [
        "jpeg q=60",
        "bit-depth 3",
        "median 3x3",
        "gaussian-noise s=0.25",
    ]
    assert GaussianNoiseConfig(sigma=0.5, clip=True).label() == "gaussian-noise s=0.5 clipped"


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (JPEGConfig, {"quality": 0}, "greater than or equal to 1"),
        (JPEGConfig, {"quality": 101}, "less than or equal to 100"),
        (JPEGConfig, {"quality": 75.0}, "valid integer"),
        (BitDepthConfig, {}, "field 'bits' is missing"),
        (BitDepthConfig, {"bits": 9}, "less than or equal to 8"),
        (BitDepthConfig, {"bits": 0}, "greater than or equal to 1"),
        (MedianConfig, {"size": 4}, "has no centre; take an odd size such as 5"),
        (MedianConfig, {"size": 1}, "greater than or equal to 3"),
        (GaussianNoiseConfig, {"sigma": 0.0}, "greater than 0"),
        (GaussianNoiseConfig, {"sigma": 0.1, "clip": 1}, "valid boolean"),
        (GaussianNoiseConfig, {"sigma": math.inf}, "finite"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(
    kind: type[PurifierConfig], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        kind.model_validate(fields)


@pytest.mark.parametrize(
    "build",
    [lambda: JPEG(0), lambda: BitDepth(9), lambda: Median(2), lambda: GaussianNoise(0.0)],
    ids=["jpeg", "bit-depth", "median", "gaussian-noise"],
)
def test_the_classes_refuse_them_too(build: Any) -> None:
    with pytest.raises(ValueError, match="="):
        build()


class TestBitDepth:
    def test_the_values_of_two_bits(self) -> None:
        x = torch.tensor([0.0, 0.16, 0.17, 0.49, 0.51, 0.83, 0.84, 1.0], dtype=torch.float64).view(1, 1, 2, 4)
        expected = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3], dtype=torch.float64).view(1, 1, 2, 4) / 3
        assert torch.equal(BitDepth(2)(x, omega(0)), expected)

    @pytest.mark.parametrize("bits", range(1, 9))
    def test_there_are_two_to_the_bits_levels_and_a_second_rounding_changes_nothing(self, bits: int) -> None:
        x = torch.linspace(0, 1, 10_000, dtype=torch.float64).view(1, 1, 100, 100)
        once = BitDepth(bits)(x, omega(0))
        assert len(once.unique()) == 2**bits
        assert torch.equal(BitDepth(bits)(once, omega(0)), once)
        assert (once - x).abs().max() <= 0.5 / (2**bits - 1) + 1e-12

    def test_eight_bits_leave_8_bit_images_as_they_are(self) -> None:
        x = torch.arange(256).view(1, 1, 16, 16) / 255
        assert torch.equal(BitDepth(8)(x, omega(0)), x)


class TestJPEG:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("quality", [5, 75, 100])
    def test_it_is_a_round_trip_through_pillow(self, channels: int, quality: int) -> None:
        x = smooth(2, channels)
        out = JPEG(quality)(x, omega(0, 1))
        for image, coded in zip(x, out, strict=True):
            levels = np.rint(image.numpy() * np.float32(255)).astype(np.uint8)
            picture = Image.fromarray(levels[0] if channels == 1 else np.moveaxis(levels, 0, -1).copy())
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality)
            back = np.asarray(Image.open(file))
            back = back[None] if channels == 1 else np.moveaxis(back, -1, 0)
            np.testing.assert_array_equal((coded * 255).round().numpy(), back)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_signal_to_noise_ratio_falls_with_the_quality(self, channels: int) -> None:
        x = smooth(4, channels)
        mse = [float((JPEG(q)(x, omega(0, 1, 2, 3)) - x).square().mean()) for q in (95, 75, 50, 25, 10, 3)]
        psnr = [-10 * math.log10(error) for error in mse]
        assert psnr == sorted(psnr, reverse=True) and psnr[0] > 30 > 25 > psnr[-1]

    def test_channels_keep_their_order(self) -> None:
        x = torch.zeros(1, 3, 16, 16)
        x[:, 0], x[:, 2] = 0.9, 0.2
        means = JPEG(95)(x, omega(0)).mean((0, 2, 3))
        torch.testing.assert_close(means, torch.tensor([0.9, 0.0, 0.2]), rtol=0, atol=0.02)

    def test_values_outside_the_image_range_are_clamped(self) -> None:
        x = torch.full((1, 1, 8, 8), 1.7)
        assert torch.equal(JPEG(90)(x, omega(0)), torch.ones_like(x))
        assert torch.equal(JPEG(90)(-x, omega(0)), torch.zeros_like(x))

    @pytest.mark.parametrize("side", [8, 9, 15])
    def test_sides_need_not_be_multiples_of_a_block(self, side: int) -> None:
        assert JPEG(75)(images(1, 3, side), omega(0)).shape == (1, 3, side, side)

    def test_two_channels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="2 channels"):
            JPEG(75)(images(1, 2), omega(0))


class TestMedian:
    @pytest.mark.parametrize("size", [3, 5])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_it_is_scipy_s_with_mirrored_borders(self, size: int, channels: int) -> None:
        x = images(2, channels, 9, torch.float64)
        expected = ndimage.median_filter(x.numpy(), size=(1, 1, size, size), mode="mirror")
        np.testing.assert_array_equal(Median(size)(x, omega(0, 1)).numpy(), expected)

    def test_a_single_wrong_pixel_vanishes(self) -> None:
        x = torch.full((1, 1, 8, 8), 0.25)
        x[0, 0, 3, 4] = 1.0
        assert torch.equal(Median(3)(x, omega(0)), torch.full_like(x, 0.25))

    def test_the_gradient_is_that_of_finite_differences(self) -> None:
        x = images(1, 2, 5, torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: Median(3)(x, omega(0)), x, eps=1e-7, atol=1e-6)

    def test_an_image_smaller_than_the_window_s_reach_is_refused(self) -> None:
        with pytest.raises(ValueError, match="too small for a median of size 5"):
            Median(5)(images(1, 1, 2), omega(0))


class TestGaussianNoise:
    def test_mean_and_standard_deviation(self) -> None:
        x = torch.full((50, 3, 32, 32), 0.5, dtype=torch.float64)
        noise = GaussianNoise(0.25)(x, omega(*range(50))) - x
        assert abs(float(noise.mean())) < 4 * 0.25 / math.sqrt(noise.numel())
        assert float(noise.std()) == pytest.approx(0.25, rel=4 / math.sqrt(2 * noise.numel()))

    def test_it_is_the_named_noise(self) -> None:
        x, keys = images(2), omega(5, 8)
        assert torch.equal(GaussianNoise(0.5)(x, keys), x + 0.5 * keys.normal("forward", 0, x))

    def test_the_same_draw_is_the_same_noise_at_every_level(self) -> None:
        x, keys = images(2, dtype=torch.float64), omega(5, 8)
        low, high = (GaussianNoise(sigma)(x, keys) - x for sigma in (0.25, 0.5))
        torch.testing.assert_close(2 * low, high, rtol=0, atol=1e-12)

    def test_it_leaves_the_range_unless_clipped(self) -> None:
        x, keys = images(2), omega(5, 8)
        free, clipped = GaussianNoise(0.5)(x, keys), GaussianNoise(0.5, clip=True)(x, keys)
        assert free.min() < 0 and free.max() > 1
        assert torch.equal(clipped, free.clamp(0, 1))

    def test_the_gradient_is_that_of_the_identity(self) -> None:
        x = images(1).requires_grad_()
        (gradient,) = torch.autograd.grad(GaussianNoise(0.5)(x, omega(0)).sum(), x)
        assert torch.equal(gradient, torch.ones_like(x))
