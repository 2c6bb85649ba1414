r"""Weather.

* snow: normal noise, magnified, its bright part blurred along the fall and added twice, the second time turned by
  180 degrees, to an image that was whitened
* frost: :math:`c_1 x + c_2 f` with f a random piece of a photograph of frost, which comes with the official script
  and not with this program
* fog: :math:`(x + c_1 p)\,\max x / (\max x + c_1)` with p a plasma fractal in [0, 1], the smoother the greater c2
  (diamond-square on a torus: midpoints are the mean of four neighbours and uniform noise)
* brightness: :math:`V + c` in HSV
* spatter: drops where blurred noise exceeds a threshold, lit as water (severity 1 to 3) or brown as mud (4 and 5)

Lengths are in pixels. The fractal is that of a 32 x 32 image, of which smaller images see a corner.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from defense.errors import InvalidInput
from defense.files import found
from tasks.corruptions.base import Corruption, Image, Pixels, bytes_of
from tasks.corruptions.filters import clipped_zoom, gaussian, motion
from tasks.corruptions.liquid import relief

__all__ = ["BRIGHTNESS", "FOG", "FROST", "FROST_FILES", "SNOW", "SPATTER", "Photographs"]

FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The photographs that the official script uses. It names a sixth, but draws from five."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255


@dataclass(frozen=True)
class Photographs:
    """Photographs of frost at a fifth of their size.

    Arguments:
        pixels: 8-bit images, shape (H, W, 3) each.
        digest: sha256 of the files' bytes, one after the other.
    """

    pixels: tuple[npt.NDArray[np.uint8], ...]
    digest: str

    @classmethod
    def read(cls, folder: str | Path) -> Photographs:
        """Read :data:`FROST_FILES`; remembered for the folder.

        Raises:
            InvalidInput: A file is missing or no image.
        """
        return _read(str(Path(folder).resolve()))


@lru_cache(maxsize=4)
def _read(folder: str) -> Photographs:
    pixels, content = [], hashlib.sha256()
    for name in FROST_FILES:
        path = Path(folder) / name
        try:
            content.update(found(path, "photograph").read_bytes())
            with Pillow.open(path) as image:
                # Bilinear reduction to a fifth, as OpenCV does it, meets every fifth pixel exactly.
                pixels.append(np.asarray(image.convert("RGB"))[2::5, 2::5])
        except Exception as error:  # Pillow's plugins raise what they like
            raise InvalidInput(
                f"frost needs the photograph {str(path)!r}, which cannot be read ({error}). The five "
                f"({', '.join(FROST_FILES)}) lie in ImageNet-C/create_c of the repository hendrycks/robustness."
            ) from error
    return Photographs(tuple(pixels), content.hexdigest())


def snow(
    x: Image,
    c: tuple[float, float, float, float, int, float, float],
    rng: np.random.Generator,
    *,
    rounded: bool = False,
) -> Pixels:
    """Snowfall; c is mean, deviation, magnification and threshold of flakes, their blur, the share of the image."""
    mean, std, factor, threshold, radius, sigma, share = c
    image = x.astype(np.float32)
    flakes = clipped_zoom(rng.normal(mean, std, x.shape[:2])[..., None], factor)
    flakes[flakes < threshold] = 0
    drops = (np.clip(flakes, 0, 1) * 255).astype(np.uint8)
    fallen = motion(drops, radius, sigma, float(rng.uniform(-135, -45)), rounded=rounded)
    layer = fallen / 255.0
    grey = image if x.shape[2] == 1 else (image @ _LUMA)[..., None]
    whitened = share * image + (1 - share) * np.maximum(image, grey * 1.5 + 0.5)
    return np.asarray(whitened + layer + np.rot90(layer, 2))


def frost(x: Image, c: tuple[float, float], rng: np.random.Generator, photographs: Photographs) -> Pixels:
    """Frost on the lens."""
    photograph = photographs.pixels[rng.integers(len(photographs.pixels))]
    room = [large - small for large, small in zip(photograph.shape, x.shape, strict=False)]
    if min(room[:2]) < 1:
        raise InvalidInput(
            f"frost cuts {x.shape[0]}x{x.shape[1]} pixels from photographs reduced to a fifth, and one of them is "
            f"only {photograph.shape[0]}x{photograph.shape[1]} then: give the official ones."
        )
    top, left = int(rng.integers(room[0])), int(rng.integers(room[1]))
    piece = photograph[top : top + x.shape[0], left : left + x.shape[1]]
    # In 8-bit units, where c2 * f is often whole and must not be truncated to the level below.
    return np.clip(c[0] * bytes_of(x) + c[1] * piece, 0, 255).astype(np.uint8)


def fog(x: Image, c: tuple[float, float], rng: np.random.Generator) -> Pixels:
    """Fog; c is its weight and the decay of its roughness from scale to scale."""
    height, width = x.shape[:2]
    side = max(32, 1 << (max(height, width) - 1).bit_length())
    brightest = x.max()
    foggy = x + c[0] * plasma(side, c[1], rng)[:height, :width, None]
    return np.asarray(foggy * brightest / (brightest + c[0]))


def plasma(side: int, decay: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Plasma fractal in [0, 1], shape (side, side), side a power of 2; noise falls by decay^2 from scale to scale."""
    field = np.zeros((side, side))
    step, rough = side, 100.0

    def noisy(total: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return total / 4 + rough * rng.uniform(-rough, rough, total.shape)

    while step >= 2:
        half = step // 2
        corner = field[::step, ::step]
        rows = corner + np.roll(corner, -1, 0)
        field[half::step, half::step] = centre = noisy(rows + np.roll(rows, -1, 1))
        field[::step, half::step] = noisy(centre + np.roll(centre, 1, 0) + corner + np.roll(corner, -1, 1))
        field[half::step, ::step] = noisy(centre + np.roll(centre, 1, 1) + corner + np.roll(corner, -1, 0))
        step, rough = half, rough / decay
    field -= field.min()
    return np.asarray(field / field.max())


def brightness(x: Image, shift: float, rng: np.random.Generator) -> Pixels:
    """Brighter: with hue and saturation kept, channels keep their ratios, and black becomes grey."""
    value = x.max(2, keepdims=True)
    ratio = np.divide(x, value, out=np.ones_like(x), where=value > 0)
    return np.asarray(ratio * np.clip(value + shift, 0, 1))


def spatter(x: Image, c: tuple[float, float, float, float, float, int], rng: np.random.Generator) -> Pixels:
    """Drops on the lens; c is mean, deviation and blur of the noise, threshold, strength or softness, 1 for mud."""
    mean, std, sigma, threshold, strength, mud = c
    image = x.astype(np.float32)
    liquid = gaussian(rng.normal(mean, std, x.shape[:2]), sigma)
    liquid[liquid < threshold] = 0
    if mud:
        cover = gaussian((liquid > threshold).astype(np.float32), strength)[..., None]
        cover[cover < 0.8] = 0
        return np.asarray(image * (1 - cover) + _MUD * cover)
    drops = (liquid * 255).astype(np.uint8)
    shine = drops * relief(drops)
    # Where no drop fell, the official script divides 0 by 0.
    if shine.max() > 0:
        shine = shine / shine.max() * np.float32(strength)
    return np.asarray(image + shine[..., None] * _WATER.astype(np.float32))


SNOW = Corruption(
    "snow",
    (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    snow,
    moves=True,
)
FROST = Corruption(
    "frost", ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)), frost, coloured=True, photographs=True
)
FOG = Corruption("fog", ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), fog)
BRIGHTNESS = Corruption("brightness", (0.05, 0.1, 0.15, 0.2, 0.3), brightness)
SPATTER = Corruption(
    "spatter",
    (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    spatter,
    coloured=True,
)
