"""Images in a terminal that has sixel graphics: real pixels, six rows of them a line.

A sixel is a character ``?`` to ``~``: 63 plus a bit for each of six pixels below each other that have the colour
chosen before. ``!N`` repeats one, ``$`` goes back to the left for the next colour, ``-`` down to the next six rows
(DEC VT340 Text Programming, chapter 14). There are 256 colours, in per cent: images with more get the nearest ones.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
from PIL import Image

from workflows.images.pictures import Pixels, smaller

__all__ = ["sixel", "sixels_side_by_side"]

_EDGE = 160
"""Pixels along the longer edge of an image at most; smaller ones are drawn as large as whole factors make them."""

_GAP = 2
"""Columns between images."""


def sixel(image: npt.NDArray[np.uint8], drawn: npt.NDArray[np.bool_] | None = None) -> str:
    """Return an image as one sixel sequence, with its escapes.

    Arguments:
        image: Colours, shape (H, W, 3).
        drawn: Which pixels are drawn, shape (H, W); others stay as they are on the screen. All by default.
    """
    height, width = image.shape[:2]
    drawn = np.ones((height, width), dtype=bool) if drawn is None else drawn
    picture = Image.fromarray(image).quantize(256, dither=Image.Dither.NONE)
    palette = np.asarray(picture.getpalette(), dtype=np.int64).reshape(-1, 3)
    colours = np.where(drawn, np.asarray(picture, dtype=np.int64), -1)
    parts = [f'\x1bP0;1;0q"1;1;{width};{height}']
    for colour in np.unique(colours[drawn]):
        red, green, blue = np.round(palette[colour] * 100 / 255).astype(int)
        parts.append(f"#{colour};2;{red};{green};{blue}")
    weights = 1 << np.arange(6)
    for top in range(0, height, 6):
        band = colours[top : top + 6]
        lines = []
        for colour in np.unique(band[band >= 0]):
            bits = (weights[: len(band), None] * (band == colour)).sum(0)
            runs = ((chr(63 + bit), len(list(run))) for bit, run in groupby(bits.tolist()))
            said = "".join(letter * count if count < 4 else f"!{count}{letter}" for letter, count in runs)
            lines.append(f"#{colour}{said}")
        parts.append("$".join(lines) + "-")
    return "".join(parts) + "\x1b\\"


def sixels_side_by_side(
    images: Sequence[tuple[str, Pixels]], width: int, cell: tuple[int, int], *, edge: int = _EDGE
) -> list[str]:
    """Return lines of several images with a title above each, as many in a row as fit.

    Arguments:
        images: Titles, without control characters, and images of shape (C, H, W) in [0, 1]; 1 or 3 channels.
        width: Columns of the terminal.
        cell: Width and height of a character in pixels.
        edge: Pixels along the longer edge of an image.
    """
    pictures = [(title, _levels(image, edge)) for title, image in images]
    # Titles stand in columns of characters, so images begin at whole ones.
    columns = max([16, *(-(-picture.shape[1] // cell[0]) for _, picture in pictures)])
    count = max(1, (width + _GAP) // (columns + _GAP))
    lines: list[str] = []
    for begin in range(0, len(pictures), count):
        row = pictures[begin : begin + count]
        lines.append((" " * _GAP).join(f"{title[:columns]:<{columns}}" for title, _ in row).rstrip())
        height = max(picture.shape[0] for _, picture in row)
        canvas = np.zeros((height, (columns + _GAP) * cell[0] * len(row), 3), dtype=np.uint8)
        drawn = np.zeros(canvas.shape[:2], dtype=bool)
        for place, (_, picture) in enumerate(row):
            left = place * (columns + _GAP) * cell[0]
            canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
            drawn[: picture.shape[0], left : left + picture.shape[1]] = True
        lines += [sixel(canvas, drawn), ""]
    return lines


def _levels(image: Pixels, edge: int) -> npt.NDArray[np.uint8]:
    """Return an image of about so many pixels along its longer edge, shape (H, W, 3)."""
    image = smaller(image, -(-max(image.shape[1:]) // edge))
    factor = max(1, edge // max(image.shape[1:]))
    image = image.repeat(factor, 1).repeat(factor, 2)
    levels = np.round(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels, (3, *levels.shape[1:])).transpose(1, 2, 0))
