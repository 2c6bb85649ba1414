r"""What software does to images.

* contrast: :math:`(x - \bar x)\,c + \bar x`, with the mean of each channel
* elastic: a random affine map that moves three points by up to c3, then displacements that are uniform noise in
  [-1, 1], smoothed by sigma c2 and scaled by c1: of standard deviation :math:`c_1/(\sqrt{12\pi}\,c_2)` in the
  middle of a large image
* pixelate: to a share c of the width and height and back, each by box filter
* jpeg: saved with quality c (chroma halved) and read
* saturate: :math:`S' = c_1 S + c_2` in HSV

Elastic lengths are shares of the image's longer side, which is 32 pixels in CIFAR.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from scipy import ndimage

from tasks.corruptions.base import Corruption, Image, Pixels, bytes_of
from tasks.corruptions.filters import gaussian

__all__ = ["CONTRAST", "ELASTIC_TRANSFORM", "JPEG_COMPRESSION", "PIXELATE", "SATURATE"]


def contrast(x: Image, share: float, rng: np.random.Generator) -> Pixels:
    """Less contrast."""
    mean = np.mean(x, axis=(0, 1), keepdims=True)
    return np.asarray((x - mean) * share + mean)


def elastic_transform(x: Image, c: tuple[float, float, float], rng: np.random.Generator) -> Pixels:
    """Stretched; c is scale, sigma and affine step. Bilinear, at exact places where OpenCV rounds to 1/32 pixel."""
    height, width = x.shape[:2]
    scale, sigma, step = (parameter * max(height, width) for parameter in c)
    warped = _affine(x.astype(np.float32), rng.uniform(-step, step, (3, 2)))
    right, down = (
        (gaussian(rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3) * scale).astype(np.float32)
        for _ in range(2)
    )
    rows, columns = np.mgrid[:height, :width]
    where = np.stack([rows + down, columns + right])
    channels = [
        ndimage.map_coordinates(channel, where, order=1, mode="reflect") for channel in np.moveaxis(warped, 2, 0)
    ]
    return np.stack(channels, 2)


def _affine(x: npt.NDArray[np.float32], steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the image under the affine map that moves three corners of its middle third by ``steps`` (x, y)."""
    height, width = x.shape[:2]
    middle, side = np.array([width // 2, height // 2]), min(height, width) // 3
    before = middle + side * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + steps
    # From a point of the result to the one that it shows.
    back = np.linalg.solve(np.column_stack([after, np.ones(3)]), before.astype(np.float64))
    rows, columns = np.mgrid[:height, :width]
    shown = np.stack([columns, rows, np.ones_like(rows)], -1) @ back
    where = np.stack([shown[..., 1], shown[..., 0]])
    channels = [ndimage.map_coordinates(channel, where, order=1, mode="mirror") for channel in np.moveaxis(x, 2, 0)]
    return np.stack(channels, 2)


def pixelate(x: Image, share: float, rng: np.random.Generator) -> Pixels:
    """Fewer pixels."""
    height, width = x.shape[:2]
    small = _pillow(x).resize((int(width * share), int(height * share)), Pillow.Resampling.BOX)
    return _from_pillow(small.resize((width, height), Pillow.Resampling.BOX))


def jpeg_compression(x: Image, quality: int, rng: np.random.Generator) -> Pixels:
    """JPEG and back."""
    file = io.BytesIO()
    _pillow(x).save(file, "JPEG", quality=quality)
    return _from_pillow(Pillow.open(file))


def _pillow(x: Image) -> Pillow.Image:
    return Pillow.fromarray(np.ascontiguousarray(bytes_of(x).squeeze(2) if x.shape[2] == 1 else bytes_of(x)))


def _from_pillow(image: Pillow.Image) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def saturate(x: Image, c: tuple[float, float], rng: np.random.Generator) -> Pixels:
    r"""More or less colour: with V and hue kept, :math:`x' = V - (V - x)\,S'/S`; grey has hue 0, which is red."""
    value = x.max(2, keepdims=True)
    gap = value - x
    old = np.divide(gap.max(2, keepdims=True), value, out=np.zeros_like(value), where=value > 0)
    new = np.clip(old * c[0] + c[1], 0, 1)
    red = value * np.array([0.0, 1.0, 1.0])
    full = np.where(old > 0, np.divide(gap, old, out=np.zeros_like(x), where=old > 0), red)
    return np.asarray(value - full * new)


CONTRAST = Corruption("contrast", (0.75, 0.5, 0.4, 0.3, 0.15), contrast)
ELASTIC_TRANSFORM = Corruption(
    "elastic_transform",
    ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    elastic_transform,
)
PIXELATE = Corruption("pixelate", (0.95, 0.9, 0.85, 0.75, 0.65), pixelate)
JPEG_COMPRESSION = Corruption("jpeg_compression", (80, 65, 58, 50, 40), jpeg_compression)
SATURATE = Corruption("saturate", ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), saturate, coloured=True)
