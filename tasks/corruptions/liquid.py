r"""How light plays on drops: the relief that water spatter has in the official script.

Edges (Canny, IEEE PAMI 1986) of the drops, distance to the nearest edge, cut at 20 pixels, smoothed, equalised, lit
from one side and smoothed again. Each piece is OpenCV's: 8-bit images in between, Sobel gradients with edges
repeated and :math:`|g_x| + |g_y|` as their size, and distances counted in steps of 1, 1.4 and 2.1969 to the
neighbours beside, diagonal, and a knight's move away (Borgefors, CVGIP 1986).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tasks.corruptions.filters import mirrored

__all__ = ["canny", "distance", "equalised", "relief"]

Bytes = npt.NDArray[np.uint8]

_LOW, _HIGH = 50, 150
_TAN_22 = round((2**0.5 - 1) * 2**15)
_BESIDE, _DIAGONAL, _KNIGHT = 1.0, 1.4, 2.1969
_LIGHT = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def relief(drops: Bytes) -> npt.NDArray[np.float32]:
    """Brightness on the drops, 0 to 255, shape (H, W)."""
    height = np.minimum(distance(canny(drops)), 20).astype(np.float32)
    smooth = _box(height).astype(np.float32).astype(np.uint8)
    lit = np.clip(mirrored(equalised(smooth), _LIGHT), 0, 255).astype(np.uint8)
    return np.rint(_box(lit)).astype(np.float32)


def canny(x: Bytes) -> npt.NDArray[np.bool_]:
    """Edges: local maxima of the gradient above 50 that touch, by others, one above 150."""
    grey = x.astype(np.int64)
    gx, gy = ndimage.sobel(grey, 1, mode="nearest"), ndimage.sobel(grey, 0, mode="nearest")
    size = np.pad(np.abs(gx) + np.abs(gy), 1)

    def beside(dy: int, dx: int) -> npt.NDArray[Any]:
        return size[1 + dy : size.shape[0] - 1 + dy, 1 + dx : size.shape[1] - 1 + dx]

    magnitude = beside(0, 0)
    across, up = np.abs(gx) * _TAN_22, np.abs(gy) << 15
    horizontal = up < across
    vertical = up > across + (np.abs(gx) << 16)
    falling = (gx ^ gy) < 0
    diagonal = np.where(
        falling,
        (magnitude > beside(-1, 1)) & (magnitude > beside(1, -1)),
        (magnitude > beside(-1, -1)) & (magnitude > beside(1, 1)),
    )
    straight = np.where(
        horizontal,
        (magnitude > beside(0, -1)) & (magnitude >= beside(0, 1)),
        (magnitude > beside(-1, 0)) & (magnitude >= beside(1, 0)),
    )
    thin = (magnitude > _LOW) & np.where(horizontal | vertical, straight, diagonal)
    part, _ = ndimage.label(thin, np.ones((3, 3)))
    return thin & np.isin(part, np.unique(part[thin & (magnitude > _HIGH)]))


def distance(edges: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Least sum of steps to an edge, shape (H, W); infinite where there is none."""
    rows, columns = np.nonzero(edges)
    if len(rows) == 0:
        return np.full(edges.shape, np.inf)
    y, x = np.mgrid[: edges.shape[0], : edges.shape[1]]
    dy, dx = np.abs(y[..., None] - rows), np.abs(x[..., None] - columns)
    far, near = np.maximum(dx, dy), np.minimum(dx, dy)
    # A shortest way takes at most two kinds of step: straight ones and knight's, or knight's and diagonal ones.
    flat = near * _KNIGHT + (far - 2 * near) * _BESIDE
    steep = (far - near) * _KNIGHT + (2 * near - far) * _DIAGONAL
    return np.asarray(np.where(far >= 2 * near, flat, steep).min(-1))


def equalised(x: Bytes) -> Bytes:
    """Histogram equalisation: the darkest level that occurs becomes 0, and equal shares of pixels follow."""
    count = np.bincount(x.ravel(), minlength=256)
    darkest = int(x.min())
    rest = x.size - int(count[darkest])
    if rest == 0:
        return x
    count[darkest] = 0
    return np.asarray(np.rint(np.cumsum(count) * (255 / rest)).astype(np.uint8)[x])


def _box(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return mirrored(x, np.ones((3, 3))) / 9
