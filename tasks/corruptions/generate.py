"""Corrupting the images of any data set, each with random numbers of its own.

A random number is a function of (spec id, seed, role, corruption; image id, draw, severity), so that an image is
corrupted the same in any batch and on any worker. The published arrays were drawn without a seed: generated images
follow their definition and never equal them, which their origin records.

Constants are for 32 x 32 pixels: lengths stay what they are in pixels, except those of the elastic transform, which
are shares of the side. On 8 x 8 digits noise is the same, a blur wide, snow coarse, the zoom of severity 1 smaller
than a pixel (no change), and saturation, without colours to change, does nothing at severities 1 to 3: such numbers
compare with one another, never with CIFAR-10-C.
"""

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from defense.errors import InvalidInput, nearest
from defense.randomness import Omega
from tasks.corruptions.base import SEVERITIES, Corrupted, Corruption, truncated
from tasks.corruptions.blur import DEFOCUS_BLUR, GAUSSIAN_BLUR, GLASS_BLUR, MOTION_BLUR, ZOOM_BLUR
from tasks.corruptions.digital import CONTRAST, ELASTIC_TRANSFORM, JPEG_COMPRESSION, PIXELATE, SATURATE
from tasks.corruptions.noise import GAUSSIAN_NOISE, IMPULSE_NOISE, SHOT_NOISE, SPECKLE_NOISE
from tasks.corruptions.weather import BRIGHTNESS, FOG, FROST, SNOW, SPATTER, Photographs

__all__ = ["BENCHMARK", "CORRUPTIONS", "EXTRA", "VERSION", "check_images", "corrupt", "find"]

VERSION = 1
"""Raised when generated images change."""

_BENCHMARK = (
    GAUSSIAN_NOISE,
    SHOT_NOISE,
    IMPULSE_NOISE,
    DEFOCUS_BLUR,
    GLASS_BLUR,
    MOTION_BLUR,
    ZOOM_BLUR,
    SNOW,
    FROST,
    FOG,
    BRIGHTNESS,
    CONTRAST,
    ELASTIC_TRANSFORM,
    PIXELATE,
    JPEG_COMPRESSION,
)
_EXTRA = (SPECKLE_NOISE, GAUSSIAN_BLUR, SPATTER, SATURATE)

BENCHMARK: tuple[str, ...] = tuple(each.name for each in _BENCHMARK)
"""The fifteen over which the benchmark averages, in its order."""
EXTRA: tuple[str, ...] = tuple(each.name for each in _EXTRA)
"""Four that it keeps for validation."""
CORRUPTIONS = MappingProxyType({each.name: each for each in (*_BENCHMARK, *_EXTRA)})

_SMALLEST = 8


def find(name: str, severity: int) -> Corruption:
    """Return the corruption of that name.

    Raises:
        InvalidInput: Unknown name, or no such severity.
    """
    if name not in CORRUPTIONS:
        raise InvalidInput(f"unknown corruption {name!r}; {nearest(name, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise InvalidInput(f"corruption {name!r} has no severity {severity!r}: write a whole number from 1 to 5.")
    return CORRUPTIONS[name]


def check_images(shape: Sequence[int]) -> None:
    """Refuse images that no corruption is defined for.

    Arguments:
        shape: (B, C, H, W) or (C, H, W).

    Raises:
        InvalidInput: Another number of channels than 1 or 3, or fewer than 8 pixels a side.
    """
    if len(shape) not in (3, 4) or shape[-3] not in (1, 3) or min(shape[-2:]) < _SMALLEST:
        raise InvalidInput(
            f"corruptions take images of shape (B, C, H, W) with 1 or 3 channels and at least {_SMALLEST} pixels a "
            f"side, not {tuple(shape)}. Leave corruptions out for such images."
        )


def corrupt(
    images: npt.NDArray[np.float32],
    name: str,
    severity: int,
    omega: Omega,
    photographs: Photographs | None = None,
    *,
    rounded_motion: bool = False,
) -> Corrupted:
    """Corrupt a batch.

    Images are rounded to 8 bits first, which changes no image that came from 8 bits.

    Arguments:
        images: In [0, 1], shape (B, C, H, W) with 1 or 3 channels and at least 8 pixels a side.
        name: Name of the corruption.
        severity: 1 to 5.
        omega: Randomness, one stream per image.
        photographs: Photographs of frost, for ``frost``.
        rounded_motion: Round the motion blur of ``motion_blur`` and ``snow``, where ImageMagick truncates.

    Raises:
        InvalidInput: Unknown name or severity, no such images, or frost without photographs.
    """
    corruption = find(name, severity)
    if images.ndim != 4:
        raise InvalidInput(f"corruptions take images of shape (B, C, H, W); these have the shape {images.shape}.")
    check_images(images.shape)
    if len(images) != len(omega):
        raise ValueError(f"a batch of {len(images)} with the randomness of {len(omega)} elements")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise InvalidInput("corruptions take images in [0, 1]; these have values outside, or that are no numbers.")
    if corruption.photographs and photographs is None:
        raise InvalidInput(
            f"{name} blends in photographs that come with the official script and are not part of this program: give "
            "the folder that holds them (see Photographs), use the official arrays, or leave it out and say so."
        )
    pixels_in = np.rint(np.moveaxis(images.astype(np.float64), 1, 3) * 255).astype(np.uint8)
    extra = (photographs,) if corruption.photographs else ()
    switches = {"rounded": rounded_motion} if corruption.moves else {}
    constant = corruption.constants[severity - 1]
    out = np.empty_like(images, dtype=np.uint8)
    for row, (pixels, rng) in enumerate(zip(pixels_in, omega.generators(f"corrupt {name}", severity), strict=True)):
        grey = corruption.coloured and pixels.shape[2] == 1
        x = (np.repeat(pixels, 3, 2) if grey else pixels) / 255.0
        done = truncated(corruption.function(x, constant, rng, *extra, **switches))
        out[row] = np.moveaxis(_luma(done) if grey else done, 2, 0)
    return Corrupted(out, name, severity, "generated")


def _luma(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.asarray(Pillow.fromarray(pixels).convert("L"))[..., None]
