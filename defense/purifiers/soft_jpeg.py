r"""JPEG as a function that can be differentiated.

.. math:: x \to \text{YCbCr} \to \text{chroma halved} \to C B C^\top \to Q \cdot r(\cdot / Q) \to C^\top (\cdot)\, C
          \to \text{chroma doubled} \to \text{RGB},

per block B of 8 x 8 pixels, with C the orthonormal discrete cosine transform, Q the tables of ITU-T T.81 (annex K)
scaled by the quality as libjpeg does, and r a rounding (Shin and Song, NIPS 2017 workshop; theirs is
:func:`defense.purifiers.soft.soft_round`). Chroma is averaged over 2 x 2 pixels and interpolated back bilinearly,
which is libjpeg's own ("fancy") upsampling. The roundings to 8 bits before and after, and the clamping to
[0, 255], are left out. With ``torch.round`` for r, the values are those of the codec within a grey level or so on
average.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from defense.purifiers.soft import soft_round

__all__ = ["quantisation_table", "soft_jpeg"]

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@lru_cache
def quantisation_table(quality: int, *, chroma: bool) -> tuple[tuple[int, ...], ...]:
    """Return the steps of the 64 coefficients, row by row, 1 to 255.

    Arguments:
        quality: As libjpeg counts it, 1 to 100.
        chroma: The table of Cb and Cr.
    """
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = _CHROMINANCE if chroma else _LUMINANCE
    return tuple(tuple(min(max((step * scale + 50) // 100, 1), 255) for step in row) for row in table)


def soft_jpeg(x: Tensor, quality: int, rounding: Callable[[Tensor], Tensor] = soft_round) -> Tensor:
    """Compress and decompress.

    Arguments:
        x: Images in [0, 1], shape (B, C, H, W), C = 1 or 3.
        quality: 1 to 100.
        rounding: What stands for rounding a coefficient.

    Returns:
        Images, shape (B, C, H, W), not clamped.
    """
    levels = 255 * x
    if x.shape[1] == 1:
        return (_channel(levels - 128, quality, False, rounding) + 128) / 255
    ycc = torch.einsum("ij,bjhw->bihw", x.new_tensor(_TO_YCBCR), levels)
    luma = _channel(ycc[:, :1] - 128, quality, False, rounding) + 128
    height, width = x.shape[2:]
    even = F.pad(ycc[:, 1:], (0, width % 2, 0, height % 2), mode="replicate")
    small = _channel(F.avg_pool2d(even, 2), quality, True, rounding)
    chroma = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)[:, :, :height, :width]
    return torch.einsum("ij,bjhw->bihw", x.new_tensor(_TO_RGB), torch.cat([luma, chroma], 1)) / 255


def _channel(x: Tensor, quality: int, chroma: bool, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Code the blocks of each channel, values about 0, shape (B, C, H, W)."""
    height, width = x.shape[2:]
    whole = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = whole.unfold(2, 8, 8).unfold(3, 8, 8)
    cosines, table = _cosines().to(x), x.new_tensor(quantisation_table(quality, chroma=chroma))
    coded = table * rounding(cosines @ blocks @ cosines.T / table)
    decoded = (cosines.T @ coded @ cosines).permute(0, 1, 2, 4, 3, 5).reshape(whole.shape)
    return decoded[:, :, :height, :width]


@lru_cache
def _cosines() -> Tensor:
    k, n = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    basis = torch.cos((2 * n + 1) * k * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis
