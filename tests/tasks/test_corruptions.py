"""Each corruption's constants by their statistics."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from corrupting import Images, done, flat, values
from loops import every
from PIL import Image as Pillow
from scipy import stats

from tasks.corruptions import (
    BENCHMARK,
    CORRUPTIONS,
    EXTRA,
    FROST_FILES,
    SEVERITIES,
    Photographs,
)
from tasks.corruptions.digital import _affine
from tasks.corruptions.filters import clipped_zoom


def test_names_are_the_fifteen_and_the_four_in_official_order() -> None:
    assert (
        *("gaussian_noise", "shot_noise", "impulse_noise"),
        *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
        *("snow", "frost", "fog", "brightness"),
        *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    ) == BENCHMARK
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")
    assert tuple(CORRUPTIONS) == BENCHMARK + EXTRA
    assert all(name == corruption.name and len(corruption.constants) == 5 for name, corruption in CORRUPTIONS.items())


@pytest.mark.parametrize(("severity", "std"), zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True))
def test_gaussian_noise_has_its_deviation_and_truncation_darkens_by_half_a_level(severity: int, std: float) -> None:
    noise = done(flat(128), "gaussian_noise", severity).pixels.astype(float) / 255 - 128 / 255
    count = noise.size  # 24,576 values: the deviation is known to 0.45 %, one sigma
    assert abs(noise.std() / math.hypot(std, 1 / 255 / math.sqrt(12)) - 1) < 4 / math.sqrt(2 * count)
    assert abs(noise.mean() + 0.5 / 255) < 4 * std / math.sqrt(count)
    assert abs(stats.kurtosis(noise.ravel())) < 4 * math.sqrt(24 / count)
    assert np.abs(np.corrcoef(noise.reshape(8, 3, -1)[:, 0], noise.reshape(8, 3, -1)[:, 1])[:8, 8:]).max() < 0.15


@pytest.mark.parametrize(("severity", "rate"), zip(SEVERITIES, (500, 250, 100, 75, 50), strict=True))
def test_shot_noise_is_a_count_over_its_rate_with_variance_x_over_rate(severity: int, rate: int) -> None:
    for level in (64, 128):
        found = done(flat(level), "shot_noise", severity).pixels.astype(float)
        x = level / 255
        variance = ((found + 0.5) / 255).var()
        assert abs(variance / (x / rate + 1 / 255**2 / 12) - 1) < 0.05
        assert abs(((found + 0.5) / 255).mean() - x) < 4 * math.sqrt(x / rate / found.size) + 0.3 / 255
        # Only whole counts occur.
        possible = {int(min(k / rate, 1) * 255) for k in range(2 * rate)}
        assert set(np.unique(found).astype(int)) <= possible


@pytest.mark.parametrize(("severity", "share"), zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07), strict=True))
def test_impulses_replace_a_share_of_values_by_black_or_white_equally_in_each_channel(
    severity: int, share: float
) -> None:
    found = done(flat(100, count=16), "impulse_noise", severity).pixels
    salt, pepper = int((found == 255).sum()), int((found == 0).sum())
    assert salt + pepper + int((found == 100).sum()) == found.size
    assert stats.binomtest(salt + pepper, found.size, share).pvalue > 1e-4
    assert stats.binomtest(salt, salt + pepper, 0.5).pvalue > 1e-4
    together = ((found != 100).sum(1) == 3).mean()
    assert together < 5 * share**3 + 1e-3


@pytest.mark.parametrize(("severity", "std"), zip(SEVERITIES, (0.06, 0.1, 0.12, 0.16, 0.2), strict=True))
def test_speckle_noise_scales_with_the_image(severity: int, std: float) -> None:
    for level in (50, 120):
        found = done(flat(level), "speckle_noise", severity).pixels / 255
        expected = math.hypot(std * level / 255, 1 / 255 / math.sqrt(12))
        assert abs(found.std() / expected - 1) < 4 / math.sqrt(2 * found.size)
    assert (done(flat(0), "speckle_noise", severity).pixels == 0).all()


def wave(period: float, count: int = 1) -> Images:
    """0.5 + 0.4 cos along x, the same in all rows, exact in 8 bits to half a level."""
    line = 0.5 + 0.4 * np.cos(2 * np.pi * np.arange(32) / period)
    return np.tile(line.astype(np.float32), (count, 3, 32, 1))


def amplitude(image: npt.NDArray[np.float64], period: float) -> float:
    """Of that wave in the middle 16 columns, which hold whole periods."""
    middle = image[..., 8:24]
    phase = np.exp(-2j * np.pi * np.arange(8, 24) / period)
    return float(np.abs((middle * phase).mean(-1)).mean() * 2)


@pytest.mark.parametrize(("severity", "sigma"), zip(SEVERITIES, (0.4, 0.6, 0.7, 0.8, 1.0), strict=True))
def test_gaussian_blur_attenuates_a_wave_by_its_transform(severity: int, sigma: float) -> None:
    k = np.arange(-4, 5)
    kernel = np.exp(-(k**2) / (2 * sigma**2)) * (np.abs(k) <= int(4 * sigma + 0.5))
    for period in (4, 8):
        factor = float((kernel * np.cos(2 * np.pi * k / period)).sum() / kernel.sum())
        found = amplitude(values(wave(period), "gaussian_blur", severity), period)
        assert abs(found - 0.4 * factor) < 0.004
        if sigma >= 0.7:  # where pixels sample the kernel finely, it is the continuous one's transform
            assert abs(factor - math.exp(-2 * (math.pi * sigma / period) ** 2)) < 0.01


@pytest.mark.parametrize(
    ("severity", "radius", "soft"),
    zip(SEVERITIES, (0.3, 0.4, 0.5, 1, 1.5), (0.4, 0.5, 0.6, 0.2, 0.1), strict=True),
)
def test_defocus_blur_is_a_softened_disk(severity: int, radius: float, soft: float) -> None:
    point = flat(0, count=1)
    point[:, :, 16, 16] = 1
    found = values(point, "defocus_blur", severity)[0, 0] - 0.5 / 255
    y, x = np.mgrid[-16:16, -16:16]
    disk = (x**2 + y**2 <= radius**2) / ((x**2 + y**2 <= radius**2).sum())
    a = math.exp(-1 / (2 * soft**2))
    blur = np.array([a, 1, a]) / (1 + 2 * a)
    for axis in (0, 1):
        disk = np.apply_along_axis(lambda line: np.convolve(line, blur, "same"), axis, disk)
    assert np.abs(found - disk).max() <= 1.01 / 255
    # Radii below 1 are one pixel: what blurs there is the softening alone.
    assert (disk > 0.01).sum() == [5, 9, 9, 5, 9][severity - 1]


@pytest.mark.slow
@every("name", ["gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
@every("severity", SEVERITIES)
def test_blurs_keep_flat_images_and_nearly_the_mean_and_lose_contrast(
    scenes: Images, name: str, severity: int
) -> None:
    assert np.abs(done(flat(90), name, severity).pixels.astype(int) - 90).max() <= 1
    found = done(scenes, name, severity).images
    assert abs(float(found.mean() - scenes.mean())) < 0.02
    roughness = [np.abs(np.diff(images, axis=3)).mean() for images in (scenes, found)]
    if name != "glass_blur":
        assert roughness[1] < roughness[0]


def test_motion_blur_is_along_the_horizontal_within_45_degrees_and_differs_from_image_to_image() -> None:
    point = flat(0, count=40)
    point[:, :, 16, 16] = 1
    found = done(point, "motion_blur", 5).pixels[:, 0].astype(float)
    y, x = np.mgrid[-16:16, -16:16]
    mass = found.sum((1, 2))
    dx, dy = (found * x).sum((1, 2)) / mass, (found * y).sum((1, 2)) / mass
    # The kernel is one-sided: light comes from the right, its mean a distance sigma sqrt(2 / pi) and a bit.
    assert (dx < 0).all() and (np.abs(dy) <= np.abs(dx) + 0.3).all()
    assert (dy > 0.3).any() and (dy < -0.3).any()
    i = np.arange(19)
    mean = float((i * np.exp(-(i**2) / 12.5)).sum() / np.exp(-(i**2) / 12.5).sum())
    assert abs(np.hypot(dx, dy).mean() - mean) < 0.15


def test_zoom_blur_averages_the_image_and_as_many_magnifications_as_the_official_ranges_have(scenes: Images) -> None:
    # `arange` includes its end by rounding at severities 1 and 2, and 1.26 has 26 steps.
    counts = [len(factors) for factors in CORRUPTIONS["zoom_blur"].constants]
    assert counts == [7, 12, 16, 21, 26]
    image = np.moveaxis(scenes[0], 0, 2).astype(float)
    step = 1.01 - 1  # not quite 0.01, which decides how 26 * 1.25 is rounded
    for severity, count in zip(SEVERITIES, counts, strict=True):
        mean = (image + sum(clipped_zoom(image, 1 + step * i) for i in range(count))) / (count + 1)
        found = values(scenes[:1], "zoom_blur", severity)[0]
        assert np.abs(found - np.moveaxis(mean, 2, 0)).max() < 0.51 / 255


@pytest.mark.parametrize(("severity", "shift"), zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True))
def test_brightness_shifts_the_largest_channel_and_keeps_ratios(scenes: Images, severity: int, shift: float) -> None:
    found = values(scenes, "brightness", severity)
    value = scenes.max(1)
    assert np.abs(found.max(1) - np.minimum(value + shift, 1)).max() <= 1.01 / 255
    ratios = (scenes / value[:, None] - found / found.max(1)[:, None])[:, :, value.min(0) > 0.2]
    assert np.abs(ratios).max() < 0.02
    assert np.abs(values(flat(0), "brightness", severity) - shift).max() <= 1.01 / 255
    grey = flat(60, channels=1)
    assert np.abs(values(grey, "brightness", severity) - 60 / 255 - shift).max() <= 1.01 / 255


@pytest.mark.parametrize(("severity", "share"), zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True))
def test_contrast_shrinks_every_channel_about_its_mean(scenes: Images, severity: int, share: float) -> None:
    found = values(scenes, "contrast", severity)
    mean = scenes.mean((2, 3), keepdims=True)
    assert np.abs(found - (mean + share * (scenes - mean))).max() <= 0.55 / 255


def test_fog_mixes_a_fractal_of_full_range_into_the_image() -> None:
    for severity, (weight, _) in zip(SEVERITIES, CORRUPTIONS["fog"].constants, strict=True):
        found = values(flat(102, count=20), "fog", severity)
        # On a flat image of brightness m the fractal is seen from m m / (m + c) to m.
        low, high = found.min((1, 2, 3)), found.max((1, 2, 3))
        assert np.abs(low - 0.4 * 0.4 / (0.4 + weight)).max() <= 0.51 / 255
        assert np.abs(high - 0.4).max() <= 0.51 / 255 + 1e-9
        assert np.abs(found[:, 0] - found[:, 2]).max() == 0

    # The greater the decay, the smoother.
    def rough(severity: int) -> float:
        fractal = values(flat(102, count=20), "fog", severity)[:, 0]
        fractal = (fractal - fractal.min((1, 2), keepdims=True)) / np.ptp(fractal, axis=(1, 2), keepdims=True)
        return float(np.abs(np.diff(fractal, axis=2)).mean())

    assert rough(2) < rough(3) < rough(4) < rough(5)


@pytest.mark.slow
def test_snow_whitens_and_leaves_flakes_that_are_symmetric_under_a_half_turn() -> None:
    for severity, c in zip(SEVERITIES, CORRUPTIONS["snow"].constants, strict=True):
        found = values(flat(51, count=10), "snow", severity)
        ground = c[6] * 0.2 + (1 - c[6]) * max(0.2, 0.2 * 1.5 + 0.5)
        flakes = found - ground
        assert flakes.min() >= -0.51 / 255
        assert np.abs(flakes - flakes[:, :, ::-1, ::-1]).max() <= 1.01 / 255
        assert np.abs(flakes[:, 0] - flakes[:, 1]).max() <= 1.01 / 255
        assert 0.005 < flakes.mean() < 0.4
    # Without magnification a flake is a value above the threshold: its share is the normal tail.
    tail = 1 - stats.norm.cdf((0.5 - 0.1) / 0.2)
    mass = stats.norm.expect(lambda v: v, loc=0.1, scale=0.2, lb=0.5)
    assert 0.02 < tail < 0.03
    found = values(flat(51, count=100), "snow", 2) - (0.9 * 0.2 + 0.1 * 0.8)
    assert abs(found.mean() / (2 * mass) - 1) < 0.15


def test_frost_adds_a_piece_of_one_of_five_photographs(photographs: Photographs) -> None:
    seen = set()
    for severity, (keep, add) in zip(SEVERITIES, CORRUPTIONS["frost"].constants, strict=True):
        found = done(flat(50, count=30), "frost", severity, photographs).pixels.astype(int)
        assert np.abs(found[:, 1] - min(255, int(keep * 50 + add * 200))).max() <= 1
        which = np.rint(((found[:, 0].mean((1, 2)) - keep * 50) / add - 20) / 40).astype(int)
        seen |= set(which)
        expected = np.floor(keep * 50 + add * (40 * which + 20))
        assert np.abs(found[:, 0].mean((1, 2)) - expected).max() <= 1
    assert seen == {0, 1, 2, 3, 4}


def test_whole_sums_of_frost_are_not_truncated_to_the_level_below(tmp_path: Path) -> None:
    for name in FROST_FILES:
        Pillow.new("RGB", (300, 250), (5, 105, 205)).save(tmp_path / name, format="PNG")
    # 1 * x + 0.2 * (5, 105, 205) is x + (1, 21, 41).
    for level in range(0, 200, 7):
        found = done(flat(level, count=1), "frost", 1, Photographs.read(tmp_path)).pixels
        assert [set(channel.ravel().tolist()) for channel in found[0]] == [{level + 1}, {level + 21}, {level + 41}]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_spatter_adds_turquoise_water_or_covers_with_brown_mud(severity: int) -> None:
    start = 80
    found = done(flat(start, count=30), "spatter", severity).pixels.astype(float)
    hit = (found != start).any(1)
    assert 0.002 < hit.mean() < 0.5
    c = CORRUPTIONS["spatter"].constants[severity - 1]
    if severity <= 3:
        added = (found - start).max((2, 3)).max(0)
        np.testing.assert_allclose(added, c[4] * np.array([175, 238, 238]), atol=1.5)
        assert (found >= start).all()
    else:
        # Cover is at least 0.8, or there is none.
        mud = np.array([63, 42, 20])
        cover = (start - found[:, 2]) / (start - mud[2])
        assert (cover[hit] > 0.78).all() and cover.max() > 0.9
        np.testing.assert_allclose(found.min((0, 2, 3)), start - cover.max() * (start - mud), atol=1.5)


@pytest.mark.parametrize(
    ("severity", "factor", "shift"), zip(SEVERITIES, (0.3, 0.1, 1.5, 2, 2.5), (0, 0, 0, 0.1, 0.2), strict=True)
)
def test_saturate_changes_saturation_and_keeps_value(
    scenes: Images, severity: int, factor: float, shift: float
) -> None:
    found = values(scenes, "saturate", severity)
    assert np.abs(found.max(1) - scenes.max(1)).max() <= 0.51 / 255
    old, new = ((x.max(1) - x.min(1)) / x.max(1) for x in (scenes, found))
    assert np.abs(new - np.clip(old * factor + shift, 0, 1)).max() < 1.2 / 255 / scenes.max(1).min()


@pytest.mark.parametrize(("severity", "share"), zip(SEVERITIES, (0.95, 0.9, 0.85, 0.75, 0.65), strict=True))
def test_pixelate_has_blocks_of_one_over_its_share(severity: int, share: float) -> None:
    ramp = np.tile((np.arange(32) * 8 / 255).astype(np.float32), (1, 3, 32, 1))
    found = done(ramp, "pixelate", severity).pixels[0, 0, 16].astype(int)
    small = np.asarray(
        Pillow.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))).resize(
            (int(32 * share), int(32 * share)), Pillow.Resampling.BOX
        )
    )[0]
    assert len(np.unique(small)) == int(32 * share) < 32
    # Enlarged by box, every pixel shows a block, or a mean of the two that it straddles.
    place = (np.arange(32) + 0.5) * int(32 * share) / 32
    assert np.abs(found - small[place.astype(int)].astype(int)).max() <= 0.75 * 8 / share
    assert int(32 * share) == [30, 28, 27, 24, 20][severity - 1]


@pytest.mark.parametrize(("severity", "quality"), zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True))
def test_jpeg_is_saved_with_its_quality(scenes: Images, severity: int, quality: int) -> None:
    found = done(scenes, "jpeg_compression", severity).pixels
    pixels = np.rint(scenes * 255).astype(np.uint8)
    errors = {}
    for other in (quality - 5, quality, quality + 5):
        file = io.BytesIO()
        Pillow.fromarray(np.ascontiguousarray(pixels[0].transpose(1, 2, 0))).save(file, "JPEG", quality=other)
        again = np.asarray(Pillow.open(file)).transpose(2, 0, 1).astype(int)
        errors[other] = int(np.abs(again - found[0]).sum())
    assert errors[quality] == 0 and min(errors[quality - 5], errors[quality + 5]) > 0


@pytest.mark.parametrize(("severity", "scale", "sigma"), [(3, 2.56, 1.92), (4, 3.2, 1.28), (5, 3.2, 0.96)])
def test_elastic_displacements_have_the_deviation_of_smoothed_uniform_noise(
    severity: int, scale: float, sigma: float
) -> None:
    corruption = CORRUPTIONS["elastic_transform"]
    share, smooth, _ = corruption.constants[severity - 1]
    # On a ramp a displacement is a difference. The affine part is left out.
    y, x = np.mgrid[:32, :32] / 255.0
    ramps = np.stack([4 * x, 4 * y], 2)
    moved = [corruption.function(ramps, (share, smooth, 0), np.random.default_rng(i)) - ramps for i in range(200)]
    right, down = np.moveaxis(np.array(moved)[:, 6:26, 6:26], 3, 0) * 255 / 4
    expected = scale / (sigma * math.sqrt(12 * math.pi))
    for field in (right, down):
        assert abs(field.std() / expected - 1) < 0.03
        # Smoothed noise is as far correlated as its kernel reaches: exp(-1 / 4 sigma^2) from pixel to pixel.
        near = np.corrcoef(field[:, :, 1:].ravel(), field[:, :, :-1].ravel())[0, 1]
        assert abs(near - math.exp(-1 / (4 * sigma**2))) < 0.03
    assert abs(np.corrcoef(right.ravel(), down.ravel())[0, 1]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("severity", "step"), zip(SEVERITIES, (0.08, 0.07, 0.06, 0.05, 0.03), strict=True))
def test_elastic_images_are_moved_by_the_mean_of_two_of_three_random_steps_in_the_middle(
    severity: int, step: float
) -> None:
    # (16, 16) lies half way between two of the three points: its step is their mean, nearly triangular.
    corruption = CORRUPTIONS["elastic_transform"]
    x = np.mgrid[:32, :32][1][..., None] * 4 / 255.0
    constant = (0, 0, corruption.constants[severity - 1][2])
    shown = [corruption.function(x, constant, np.random.default_rng(i))[16, 16, 0] * 255 / 4 for i in range(400)]
    moved = np.array(shown) - 16
    assert abs(moved.std() / (32 * step / math.sqrt(6)) - 1) < 0.15
    assert abs(moved.mean()) < 0.3 and np.abs(moved).max() < 32 * step * 1.6


def test_the_affine_part_moves_three_points_uniformly() -> None:
    y, x = np.mgrid[:32, :32].astype(np.float32)
    image = np.stack([x, y, x], 2)
    # A shift of all three points by (2, -3): the result at p shows the image at p - (2, -3).
    found = _affine(image, np.tile([2.0, -3.0], (3, 1)))
    np.testing.assert_allclose(found[8:24, 8:24, 0], x[8:24, 6:22], atol=1e-5)
    np.testing.assert_allclose(found[8:24, 8:24, 1], y[11:27, 8:24], atol=1e-5)
    assert np.array_equal(_affine(image, np.zeros((3, 2))), image)
    # One point alone, (26, 26), shears: what was there is then at (28, 26).
    found = _affine(image, np.array([[2.0, 0.0], [0, 0], [0, 0]]))
    np.testing.assert_allclose(found[26, 28], [26, 26, 26], atol=1e-4)
    np.testing.assert_allclose(found[6, 26], [26, 6, 26], atol=1e-4)
    np.testing.assert_allclose(found[6, 6], [6, 6, 6], atol=1e-4)
