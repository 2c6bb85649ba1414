"""Blurs.

* defocus: the mean over a disk of radius c1, its edge softened by a 3x3 Gaussian of sigma c2; below radius 1 the disk
  is one pixel and the softening all there is
* glass: Gaussian blur, then every pixel replaced by a near one, then blurred again
* motion: along a random direction within 45 degrees of the horizontal
* zoom: the mean of the image and its magnifications
* gaussian: by sigma c

Radii and sigmas are in pixels and do not grow with the image.
"""

import numpy as np
import numpy.typing as npt

from tasks.corruptions.base import Corruption, Image, Pixels, bytes_of
from tasks.corruptions.filters import clipped_zoom, gaussian, mirrored, motion

__all__ = ["DEFOCUS_BLUR", "GAUSSIAN_BLUR", "GLASS_BLUR", "MOTION_BLUR", "ZOOM_BLUR", "disk"]


def disk(radius: float, softness: float) -> npt.NDArray[np.float32]:
    """Kernel of the defocus blur, 7x7, which holds all of it up to radius 2; sums to 1."""
    y, x = np.mgrid[-3:4, -3:4]
    inside = np.asarray(x**2 + y**2 <= radius**2, dtype=np.float32)
    inside /= inside.sum()
    line = np.exp(-(np.arange(-1, 2) ** 2) / (2 * softness**2))
    line = (line / line.sum()).astype(np.float32)
    return mirrored(inside, np.outer(line, line)).astype(np.float32)


def defocus_blur(x: Image, c: tuple[float, float], rng: np.random.Generator) -> Pixels:
    """Out of focus."""
    return mirrored(x, disk(*c))


def glass_blur(x: Image, c: tuple[float, int, int], rng: np.random.Generator) -> Pixels:
    """Through frosted glass; c is sigma, the farthest step, and how often.

    The script means to swap each pixel with a near one, from the last to the first, but assigns views of one array,
    so that the near pixel is copied and stays as it was. What is copied lies up to c[1] pixels above and to the left
    (steps are drawn from -c[1] to c[1] - 1, and c[1] is 1), where no pixel has been replaced yet: a pass is one
    gathering from the image before it.
    """
    sigma, farthest, passes = c
    if farthest != 1:
        raise ValueError("pixels are gathered from those not replaced yet, which holds for steps of one pixel")
    pixels = _truncated_gaussian(x, sigma)
    height, width = x.shape[:2]
    for _ in range(passes):
        rows, columns = np.mgrid[height - 1 : 1 : -1, width - 1 : 1 : -1]
        steps = rng.integers(-1, 1, size=(*rows.shape, 2))
        after = pixels.copy()
        after[rows, columns] = pixels[rows + steps[..., 1], columns + steps[..., 0]]
        pixels = after
    return gaussian(pixels / 255.0, sigma)


def _truncated_gaussian(x: Image, sigma: float) -> npt.NDArray[np.uint8]:
    """A Gaussian blur, truncated to 8 bits."""
    return np.asarray(gaussian(x, sigma) * 255).astype(np.uint8)


def motion_blur(x: Image, c: tuple[int, float], rng: np.random.Generator, *, rounded: bool = False) -> Pixels:
    """A moving camera; c is radius and sigma."""
    return motion(bytes_of(x), *c, float(rng.uniform(-45, 45)), rounded=rounded)


def zoom_blur(x: Image, factors: npt.NDArray[np.float64], rng: np.random.Generator) -> Pixels:
    """A zooming camera."""
    image = x.astype(np.float32)
    total = np.zeros_like(image)
    for factor in factors:
        total += clipped_zoom(image, float(factor))
    return np.asarray((image + total) / (len(factors) + 1))


def gaussian_blur(x: Image, sigma: float, rng: np.random.Generator) -> Pixels:
    """Normal blur."""
    return gaussian(x, sigma)


def _factors(end: float) -> npt.NDArray[np.float64]:
    # The official end points: rounding lets `arange` include the end in some of them, and that is in the benchmark.
    return np.arange(1, end, 0.01)


DEFOCUS_BLUR = Corruption("defocus_blur", ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), defocus_blur)
GLASS_BLUR = Corruption(
    "glass_blur", ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)), glass_blur
)
MOTION_BLUR = Corruption("motion_blur", ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), motion_blur, moves=True)
ZOOM_BLUR = Corruption(
    "zoom_blur", (_factors(1.06), _factors(1.11), _factors(1.16), _factors(1.21), _factors(1.26)), zoom_blur
)
GAUSSIAN_BLUR = Corruption("gaussian_blur", (0.4, 0.6, 0.7, 0.8, 1.0), gaussian_blur)
