r"""Filters that several corruptions share, from the definitions of the libraries that the official script calls.

* ``gaussian``: scikit-image's, which is SciPy's with edges repeated, cut off at 4 sigma.
* ``motion``: ImageMagick's ``MotionBlurImage``: the one-sided mean

  .. math:: \sum_{i=0}^{2r} k_i\, x(p + o_i), \qquad k_i \propto e^{-i^2/2\sigma^2}, \qquad
            o_i = \lceil i\,(\cos\theta, \sin\theta) - 1/2 \rceil

  with edges repeated and the result truncated to 8 bits. So ImageMagick 6.9.11 does: 98.6 to 100 % of its pixels are
  the floor of the sum, the others, at whole numbers, one level off; about half are the nearest whole number.
* ``clipped_zoom``: bilinear magnification of the middle, cut to the old size.
* ``mirrored``: OpenCV's correlation, with edges mirrored about the outermost pixel.
"""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["clipped_zoom", "gaussian", "mirrored", "motion"]

Array = npt.NDArray[Any]


def gaussian(
    x: Array, sigma: float, *, mode: Literal["nearest", "reflect"] = "nearest", truncate: float = 4.0
) -> Array:
    """Blur along the first two axes."""
    sigmas = (sigma, sigma, *[0.0] * (x.ndim - 2))
    return np.asarray(ndimage.gaussian_filter(x, sigmas, mode=mode, truncate=truncate))


def motion(
    x: npt.NDArray[np.uint8], radius: int, sigma: float, degrees: float, *, rounded: bool = False
) -> npt.NDArray[np.uint8]:
    """Motion blur of an 8-bit image, shape (H, W, ...).

    Arguments:
        x: The image.
        radius: In pixels.
        sigma: In pixels.
        degrees: The direction.
        rounded: Round to the nearest grey level instead of truncating, which is half a level brighter on average.
    """
    i = np.arange(2 * radius + 1)
    weights = np.exp(-(i**2) / (2 * sigma**2))
    angle = math.radians(degrees)
    right, down = (np.ceil(i * part - 0.5).astype(int) for part in (math.cos(angle), math.sin(angle)))
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    blurred = np.zeros(x.shape)
    for weight, dx, dy in zip(weights / weights.sum(), right, down, strict=True):
        row, column = np.clip(rows + dy, 0, len(rows) - 1), np.clip(columns + dx, 0, len(columns) - 1)
        blurred += weight * x[row[:, None], column[None]]
    # A sum of weights that add up to one falls short of a whole number by rounding errors alone.
    return np.floor(blurred + (0.5 if rounded else 1e-9)).astype(np.uint8)


def clipped_zoom(x: Array, factor: float) -> Array:
    """Return the middle of an image (H, W, C), magnified by ``factor`` of at least 1, at the old size."""
    middle = x
    for axis in (0, 1):
        crop = math.ceil(x.shape[axis] / factor)
        middle = _part(middle, axis, (x.shape[axis] - crop) // 2, crop)
    zoomed = np.asarray(ndimage.zoom(middle, (factor, factor, 1), order=1))
    for axis in (0, 1):
        zoomed = _part(zoomed, axis, (zoomed.shape[axis] - x.shape[axis]) // 2, x.shape[axis])
    return zoomed


def _part(x: Array, axis: int, start: int, length: int) -> Array:
    return x[start : start + length] if axis == 0 else x[:, start : start + length]


def mirrored(x: Array, kernel: Array) -> Array:
    """Correlation with a kernel in the first two axes, in float64, edges mirrored about the outermost pixel."""
    weights = np.asarray(kernel, dtype=np.float64).reshape(*kernel.shape, *[1] * (x.ndim - 2))
    return np.asarray(ndimage.correlate(x.astype(np.float64), weights, mode="mirror"))
