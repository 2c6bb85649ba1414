"""Pixels as pictures: PNG files, differences around grey, fewer pixels.

A difference d is shown as :math:`1/2 + k d`, grey where nothing changed, with one factor k for all that are compared:
the largest of 1/2, 1, 2, 5, 10, 20 and 50 at which no pixel is cut.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["LARGEST", "Pixels", "amplified", "png", "smaller"]

Pixels = npt.NDArray[np.float32]

LARGEST = 112
"""Images with more pixels along an edge are made smaller by a whole factor."""

FACTORS = (50, 20, 10, 5, 2, 1, 0.5)


def amplified(difference: Pixels) -> tuple[Pixels, float]:
    """Return differences as images around grey, and the largest factor that cuts nothing."""
    largest = float(np.abs(difference).max(initial=0.0))
    factor = next((k for k in FACTORS if k * largest <= 0.5), FACTORS[-1])
    image: Pixels = np.clip(np.float32(0.5) + np.float32(factor) * difference, 0, 1)
    return image, factor


def smaller(image: Pixels, factor: int) -> Pixels:
    """Return means over squares, shape (C, H // factor, W // factor); what is left over at the edges is cut."""
    if factor == 1:
        return image
    c, h, w = image.shape[0], image.shape[1] // factor, image.shape[2] // factor
    cut = image[:, : h * factor, : w * factor].reshape(c, h, factor, w, factor)
    mean: Pixels = cut.mean((2, 4), dtype=np.float32)
    return mean


def png(image: Pixels) -> bytes:
    """Return an image of shape (C, H, W) in [0, 1] as a PNG file, rounded to 8 bits; C is 1 or 3."""
    levels = np.round(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(sink, "PNG", optimize=True)
    return sink.getvalue()
