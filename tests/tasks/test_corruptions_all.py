"""What corrupting a batch promises: severities, an image's own numbers, shapes, rounding, and errors."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corrupting import Images, done, flat, omega
from loops import every
from PIL import Image as Pillow

from defense.errors import InvalidInput
from tasks.corruptions import (
    CORRUPTIONS,
    FROST_FILES,
    SEVERITIES,
    Photographs,
    corrupt,
)

MONOTONE = [
    name
    for name in CORRUPTIONS
    # Glass and spatter change kind between severities, elastic trades one displacement for another, frost covers what
    # it whitens, and saturation falls first and rises then: the official constants are ordered by how models fail.
    if name not in ("glass_blur", "elastic_transform", "frost", "spatter", "saturate")
]


@pytest.mark.slow
@every("name", MONOTONE)
def test_severity_is_monotone_in_distance(scenes: Images, name: str) -> None:
    many = np.tile(scenes, (8, 1, 1, 1))
    sizes = [np.sqrt(((done(many, name, s).images - many) ** 2).mean()) for s in SEVERITIES]
    assert sizes[0] > 0.002
    for less, more in pairwise(sizes):
        assert more > 0.98 * less
    assert sizes[-1] > 1.3 * sizes[0]


RANDOM = [
    *("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"),
    *("elastic_transform", "speckle_noise", "spatter"),
]


@pytest.mark.parametrize("name", RANDOM)
def test_every_draw_of_every_image_has_numbers_of_its_own(
    scenes: Images, photographs: Photographs, name: str
) -> None:
    alike = np.tile(scenes[:1], (3, 1, 1, 1))
    differ = [
        corrupt(alike, name, 3, omega([1, 2, 3]), photographs).pixels,
        corrupt(alike, name, 3, omega([1, 2, 3], seed=1), photographs).pixels,
        corrupt(alike, name, 3, omega([1, 2, 3], draw=1), photographs).pixels,
    ]
    versions = len({image.tobytes() for batch in differ for image in batch})
    # Two angles may move the same pixels, and pieces of photographs of one colour are told by the photograph alone.
    assert versions >= {"motion_blur": 7, "frost": 3}.get(name, 9)


def test_corruptions_and_severities_have_numbers_of_their_own() -> None:
    noise = {
        (name, severity): done(flat(128, count=1), name, severity).pixels.astype(float).ravel()
        for name in ("gaussian_noise", "speckle_noise")
        for severity in (1, 2)
    }
    together = np.corrcoef(list(noise.values()))
    assert np.abs(together - np.eye(4)).max() < 0.1


def test_oblong_images_are_corrupted_too(photographs: Photographs) -> None:
    images = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (2, 3, 24, 1))
    for name in CORRUPTIONS:
        found = corrupt(images, name, 4, omega(range(2)), photographs)
        assert found.pixels.shape == (2, 3, 24, 40)
        assert np.array_equal(found.images, found.pixels.astype(np.float32) / np.float32(255))


def test_images_that_came_from_8_bits_are_rounded_back_to_them() -> None:
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    images = np.tile(levels.reshape(1, 1, 16, 16), (1, 3, 1, 1))
    # Noise of a Poisson law aside, the identity is at hand: impulse noise leaves what it does not hit.
    found = done(images, "impulse_noise", 1).pixels
    same = found[0, 0].ravel() == np.arange(256)
    assert same.mean() > 0.95


def test_frost_without_photographs_is_refused_and_so_are_files_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="photographs that come with the official script"):
        done(flat(10, count=1), "frost", 1)
    with pytest.raises(InvalidInput, match=r"frost1\.png.*hendrycks/robustness"):
        Photographs.read(tmp_path)
    for name in FROST_FILES:
        Pillow.new("RGB", (100, 100)).save(tmp_path / name, format="PNG")
    small = Photographs.read(tmp_path)
    with pytest.raises(InvalidInput, match="only 20x20 then"):
        done(flat(10, count=1), "frost", 1, small)
    (tmp_path / "again").mkdir()
    for name in FROST_FILES:
        (tmp_path / "again" / name).write_text("no image")
    with pytest.raises(InvalidInput, match=r"frost1\.png"):
        Photographs.read(tmp_path / "again")


def test_photographs_are_reduced_to_a_fifth_and_known_by_content(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (203, 254, 3)).astype(np.uint8)
    for name in FROST_FILES:
        Pillow.fromarray(pixels).save(tmp_path / name, format="PNG")
    read = Photographs.read(tmp_path)
    assert read.pixels[0].shape == (41, 51, 3) and len(read.digest) == 64
    assert np.array_equal(read.pixels[0][3, 4], pixels[17, 22])


@pytest.mark.parametrize(
    ("name", "severity", "shape", "message"),
    [
        ("gausian_noise", 1, (1, 3, 32, 32), "did you mean 'gaussian_noise'"),
        ("fog", 0, (1, 3, 32, 32), "no severity 0"),
        ("fog", 6, (1, 3, 32, 32), "from 1 to 5"),
        ("fog", 1, (1, 2, 32, 32), "1 or 3 channels"),
        ("fog", 1, (1, 3, 32, 7), "at least 8 pixels"),
        ("fog", 1, (3, 32, 32), "shape"),
    ],
)
def test_nonsense_is_refused(name: str, severity: int, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        corrupt(np.zeros(shape, dtype=np.float32), name, severity, omega(range(shape[0])))


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan])
def test_images_outside_0_to_1_are_refused(value: float) -> None:
    images = flat(3, count=1)
    images[0, 0, 0, 0] = value
    with pytest.raises(InvalidInput, match=r"in \[0, 1\]"):
        done(images, "fog", 1)
