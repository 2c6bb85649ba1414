"""The generator against the official script itself, and its pieces against their definitions written out.

``data/official_corruptions.npz`` holds one image and what ``make_cifar_c.py`` (hendrycks/robustness, commit
ca360085d57889288c4143fddd8a707bbcae01bd) made of it at each severity, with OpenCV 5.0.0, scikit-image 0.26.0 and, for
motion blur and snow, ImageMagick 6.9.11 (Q16), its random numbers taken from ``Philox(severity)``.
"""

from __future__ import annotations

import colorsys
import heapq
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from loops import every

from defense.errors import InvalidInput
from defense.spec import Reading
from tasks.corruptions import CORRUPTIONS, SEVERITIES
from tasks.corruptions.base import truncated
from tasks.corruptions.config import CorruptionConfig
from tasks.corruptions.filters import clipped_zoom, motion
from tasks.corruptions.liquid import canny, distance, equalised
from tasks.corruptions.weather import plasma

Bytes = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def official() -> dict[str, Bytes]:
    with np.load(Path(__file__).parent / "data" / "official_corruptions.npz") as arrays:
        return dict(arrays)


# HSV is computed in closed form here and by way of the hue there, and the sum of a motion blur at a whole number is a
# hair above or below it: truncation makes a level of a rounding.
SHARE_OFF = {"brightness": 0.006, "saturate": 0.04, "motion_blur": 0.02}


@every("severity", SEVERITIES)
@every(
    "name",
    [
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "snow",
        "fog",
        "brightness",
        "contrast",
        "elastic_transform",
        "pixelate",
        "gaussian_blur",
        "spatter",
        "saturate",
    ],
)
def test_images_are_those_of_the_official_script(official: dict[str, Bytes], name: str, severity: int) -> None:
    corruption = CORRUPTIONS[name]
    rng = np.random.Generator(np.random.Philox(severity))
    found = truncated(corruption.function(official["image"] / 255.0, corruption.constants[severity - 1], rng))
    off = np.abs(found.astype(int) - official[name][severity - 1].astype(int))
    # Other releases of SciPy may round otherwise; here nearly all but the three above are equal to the last bit.
    assert off.max() <= 1 and (off > 0).mean() <= SHARE_OFF.get(name, 0.002)
    # The case can tell: other severities are not that near.
    others = [np.abs(found.astype(int) - official[name][s - 1]).mean() for s in SEVERITIES if s != severity]
    assert min(others) > 0.5


def smooth_image() -> Bytes:
    y, x = np.mgrid[:16, :20]
    return np.stack([11 * x, 15 * y, 128 + 100 * np.sin(x * y / 20)], 2).astype(np.uint8)


@pytest.mark.parametrize("degrees", [0.0, 30.0, -44.0, -90.0, -120.0])
@pytest.mark.parametrize(("radius", "sigma"), [(6, 1.0), (9, 2.5)])
def test_motion_blur_is_imagemagick_s_sum_pixel_by_pixel_truncated(degrees: float, radius: int, sigma: float) -> None:
    image = smooth_image()
    weights = [math.exp(-i * i / (2 * sigma**2)) for i in range(2 * radius + 1)]
    angle = math.radians(degrees)
    expected = np.zeros(image.shape)
    for (y, x), _ in np.ndenumerate(image[..., 0]):
        for i, weight in enumerate(weights):
            right, down = math.ceil(i * math.cos(angle) - 0.5), math.ceil(i * math.sin(angle) - 0.5)
            row, column = min(max(y + down, 0), 15), min(max(x + right, 0), 19)
            expected[y, x] += weight / sum(weights) * image[row, column]
    assert np.array_equal(motion(image, radius, sigma, degrees), np.floor(expected + 1e-9).astype(np.uint8))
    rounded = motion(image, radius, sigma, degrees, rounded=True)
    assert np.array_equal(rounded, np.floor(expected + 0.5).astype(np.uint8))


@pytest.mark.parametrize("name", ["motion_blur", "snow"])
def test_rounding_the_motion_blur_is_told_from_the_official_script(official: dict[str, Bytes], name: str) -> None:
    corruption, rng = CORRUPTIONS[name], np.random.Generator(np.random.Philox(5))
    found = truncated(corruption.function(official["image"] / 255.0, corruption.constants[4], rng, rounded=True))
    off = found.astype(int) - official[name][4]
    assert off.min() == 0 and (off > 0).mean() > 0.3


def test_glass_blur_copies_where_the_script_assigns_views_of_one_array() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for severity in (1, 4):
        _, _, passes = CORRUPTIONS["glass_blur"].constants[severity - 1]
        # Sigma is set to 0.05, a kernel of one pixel, so that the shuffling is seen alone.
        found = truncated(
            CORRUPTIONS["glass_blur"].function(image / 255.0, (0.05, 1, passes), np.random.default_rng(9))
        )
        numbers = np.random.default_rng(9)
        expected = image.copy()
        for _ in range(passes):
            steps = iter(numbers.integers(-1, 1, size=(30, 30, 2)).reshape(-1, 2))
            for h in range(31, 1, -1):
                for w in range(31, 1, -1):
                    dx, dy = next(steps)
                    expected[h, w], expected[h + dy, w + dx] = expected[h + dy, w + dx], expected[h, w]
        assert np.array_equal(found, expected)
        # A true swap would keep every pixel once; a copy loses some.
        assert len(np.unique(found.reshape(-1, 3), axis=0)) < len(np.unique(image.reshape(-1, 3), axis=0))


def test_brightness_and_saturate_are_hsv_as_the_standard_library_has_it() -> None:
    image = np.random.default_rng(1).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    image[0, :4] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0]]
    rng = np.random.default_rng(0)

    def by_hue(name: str, severity: int) -> Bytes:
        c = CORRUPTIONS[name].constants[severity - 1]
        out = np.empty(image.shape)
        for place in np.ndindex(12, 12):
            h, s, v = colorsys.rgb_to_hsv(*(image[place] / 255.0))
            if name == "brightness":
                v = min(v + c, 1.0)
            else:
                s = min(s * c[0] + c[1], 1.0)
            out[place] = colorsys.hsv_to_rgb(h, s, v)
        return np.floor(out * 255 + 1e-9).astype(np.uint8)

    for name in ("brightness", "saturate"):
        for severity in SEVERITIES:
            function, c = CORRUPTIONS[name].function, CORRUPTIONS[name].constants[severity - 1]
            exact = function(image / 255.0, c, rng)
            assert np.array_equal(np.floor(exact * 255 + 1e-9).astype(np.uint8), by_hue(name, severity))


def test_the_middle_is_magnified_bilinearly() -> None:
    # A linear ramp stays linear: of 32 pixels the middle 26 are stretched to 32 (26 * 1.25 = 32.5), corner to corner.
    ramp = np.repeat(np.arange(32.0)[None, :, None], 32, 0)
    found = clipped_zoom(ramp, 1.25)
    np.testing.assert_allclose(found[..., 0], np.tile(3 + np.arange(32) * 25 / 31, (32, 1)), atol=1e-9)
    assert np.array_equal(clipped_zoom(ramp, 1.0), ramp)


def test_the_plasma_is_the_mean_of_four_neighbours_and_noise() -> None:
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    found = plasma(4, 2.0, rng)
    field = np.zeros((4, 4))
    for step, rough in ((4, 100.0), (2, 50.0)):
        half = step // 2
        corners = range(0, 4, step)
        for kind in ("centre", "right", "below"):
            noise = iter(rough * same.uniform(-rough, rough, (len(corners) ** 2)))
            filled = field.copy()
            for y in corners:
                for x in corners:
                    row, column = y + half * (kind != "right"), x + half * (kind != "below")
                    around = (
                        [(-half, -half), (-half, half), (half, -half), (half, half)]
                        if kind == "centre"
                        else [(-half, 0), (half, 0), (0, -half), (0, half)]
                    )
                    mean = sum(field[(row + dy) % 4, (column + dx) % 4] for dy, dx in around) / 4
                    filled[row, column] = mean + next(noise)
            field = filled
    field -= field.min()
    np.testing.assert_allclose(found, field / field.max(), atol=1e-12)
    assert (found.min(), found.max()) == (0, 1)


def shortest(edges: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Dijkstra with the steps of OpenCV's 5 x 5 mask."""
    steps = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    price = {(0, 1): 1.0, (1, 1): 1.4, (1, 2): 2.1969}
    best = np.where(edges, 0.0, np.inf)
    queue = [(0.0, int(y), int(x)) for y, x in np.argwhere(edges)]
    while queue:
        so_far, y, x = heapq.heappop(queue)
        if so_far > best[y, x]:
            continue
        for dy, dx in steps:
            cost = price.get((min(abs(dy), abs(dx)), max(abs(dy), abs(dx))))
            row, column = y + dy, x + dx
            if cost is None or not (0 <= row < len(edges) and 0 <= column < edges.shape[1]):
                continue
            if so_far + cost < best[row, column] - 1e-12:
                best[row, column] = so_far + cost
                heapq.heappush(queue, (so_far + cost, row, column))
    return best


def test_distances_are_shortest_paths_by_the_three_steps() -> None:
    edges = np.random.default_rng(4).random((15, 22)) < 0.02
    assert 3 <= edges.sum() <= 15
    np.testing.assert_allclose(distance(edges), shortest(edges), atol=1e-9)
    assert np.isinf(distance(np.zeros((4, 4), dtype=bool))).all()


def test_edges_of_a_bright_square_are_its_outline_and_weak_ones_count_where_a_strong_one_touches() -> None:
    square = np.zeros((16, 16), dtype=np.uint8)
    square[5:11, 5:11] = 200
    edges = canny(square)
    ys, xs = np.nonzero(edges)
    assert 16 <= len(ys) <= 24 and (np.maximum(np.abs(ys - 7.5), np.abs(xs - 7.5)) <= 3.5).all()
    assert not edges[7:9, 7:9].any()
    # Across a step of height d the Sobel gradient is 4 d: thresholds 50 and 150 are steps of 12.5 and 37.5.
    for step, seen in ((37, False), (38, True)):
        image = np.zeros((8, 12), dtype=np.uint8)
        image[:, 6:] = step
        assert canny(image).any() == seen
    wedge = np.zeros((20, 12), dtype=np.uint8)
    wedge[:, 6:] = np.linspace(20, 60, 20)[:, None]
    assert canny(wedge)[:, 5:7].any(1).all()


def test_equalisation_spreads_levels_by_their_cumulative_share() -> None:
    image = np.array([[10, 10, 20, 30], [30, 30, 40, 40]], dtype=np.uint8)
    assert equalised(image).tolist() == [[0, 0, 42, 170], [170, 170, 255, 255]]
    assert np.array_equal(equalised(np.full((3, 3), 7, dtype=np.uint8)), np.full((3, 3), 7))


def test_rounded_motion_blur_has_the_id_of_before_and_is_read_back_from_it() -> None:
    old, new = (CorruptionConfig(corruption="snow", severity=2, motion=motion) for motion in ("rounded", "truncated"))
    assert "motion" not in old.identity() and new.identity()["motion"] == "truncated" and old.id != new.id
    assert CorruptionConfig(corruption="snow", severity=2) == new
    for config in (old, new):
        assert CorruptionConfig.model_validate(config.identity(), context=Reading(identity=True)) == config
    assert "motion" not in CorruptionConfig(corruption="fog", severity=2).identity()
    with pytest.raises(InvalidInput, match="motion is for generated motion_blur and snow; fog 2 has none"):
        CorruptionConfig(corruption="fog", severity=2, motion="rounded")
