"""The base of every corruption, whose result becomes an 8-bit image.

A corruption maps an 8-bit image, given as ``x / 255`` in float64 and of shape (H, W, C), to values that are cut to
[0, 1], times 255, and **truncated** to whole numbers, not rounded: so does the script that made CIFAR-10-C, and its
images are half a grey level darker for it. Constants are those of that script (Hendrycks and Dietterich,
"Benchmarking neural network robustness to common corruptions and perturbations", arXiv 1903.12261, and
``make_cifar_c.py`` of their public code), not the larger ones of ImageNet-C.

Since truncation makes a grey level of a rounding error, arithmetic is in the precision of that script, corruption by
corruption; of colour changes (HSV) a few values in a hundred differ from it by one level all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["SEVERITIES", "Corrupted", "Corruption", "Image", "Origin", "Pixels", "bytes_of", "truncated"]

SEVERITIES = (1, 2, 3, 4, 5)

Image = npt.NDArray[np.float64]
"""An 8-bit image over 255, shape (H, W, C)."""
Pixels = npt.NDArray[Any]
"""A corrupted image: floating point, to be truncated, or uint8, which stays as it is. Shape (H, W, C)."""
Origin = Literal["official", "generated"]


@dataclass(frozen=True)
class Corruption:
    """A corruption with its constants.

    Arguments:
        name: As the benchmark's files are called.
        constants: What the function takes at each of the five severities.
        function: Image, constant, generator to corrupted image; for ``photographs``, these come fourth.
        coloured: Whether the result has colours though the image had none. Grey images are then corrupted as three
            equal channels, and of the 8-bit result the luma (ITU-R 601) is kept.
        photographs: Whether the function needs photographs that the user has to give.
        moves: Whether there is ImageMagick's motion blur in it; the function then takes ``rounded``.
    """

    name: str
    constants: tuple[Any, Any, Any, Any, Any]
    function: Callable[..., Pixels]
    coloured: bool = False
    photographs: bool = False
    moves: bool = False


@dataclass(frozen=True)
class Corrupted:
    """Corrupted images and where they come from.

    Arguments:
        pixels: 8-bit images, shape (B, C, H, W).
        corruption: Name.
        severity: 1 to 5.
        origin: ``official`` for the published arrays, ``generated`` for our own. The two differ: the published arrays
            were drawn without a seed.
    """

    pixels: npt.NDArray[np.uint8]
    corruption: str
    severity: int
    origin: Origin

    @property
    def images(self) -> npt.NDArray[np.float32]:
        """Images in [0, 1], multiples of 1/255, shape (B, C, H, W)."""
        return self.pixels.astype(np.float32) / np.float32(255)


def truncated(x: Pixels) -> npt.NDArray[np.uint8]:
    """Cut to [0, 1], scale to 255, drop the fraction; uint8 images stay as they are."""
    if x.dtype == np.uint8:
        return x
    return np.asarray(np.clip(x, 0, 1) * 255).astype(np.uint8)


def bytes_of(x: Image) -> npt.NDArray[np.uint8]:
    """Return the 8-bit image that a corruption was given."""
    return np.rint(x * 255).astype(np.uint8)
