"""Images in a terminal: two pixels a character, the upper half block in the colour of one on that of the other."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workflows.images.pictures import Pixels, smaller

__all__ = ["blocks", "side_by_side"]

_EDGE = 32
"""Columns of an image at most; smaller ones are drawn as large as whole factors make them."""

_CUBE = (0, 95, 135, 175, 215, 255)
"""Levels of the 216 colours that terminals without true colour have."""


def blocks(image: Pixels, *, true_colour: bool = True, edge: int = _EDGE) -> list[str]:
    """Return the lines of an image of shape (C, H, W) in [0, 1], with escapes; two rows of pixels a line.

    Arguments:
        image: The image; 1 or 3 channels.
        true_colour: Whether the terminal has 24-bit colours, else 256.
        edge: Columns at most.
    """
    image = smaller(image, -(-max(image.shape[1:]) // edge))
    factor = max(1, edge // (2 * max(image.shape[1:])))
    image = image.repeat(factor, 1).repeat(factor, 2)
    levels = np.round(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.int64)
    pixels = np.broadcast_to(levels, (3, *levels.shape[1:])).transpose(1, 2, 0)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        parts = [
            f"\x1b[38;{_colour(above, true_colour)};48;{_colour(below, true_colour)}m▀"
            for above, below in zip(upper, lower, strict=True)
        ]
        lines.append("".join(parts) + "\x1b[0m")
    return lines


def _colour(pixel: npt.NDArray[np.int64], true_colour: bool) -> str:
    red, green, blue = (int(level) for level in pixel)
    if true_colour:
        return f"2;{red};{green};{blue}"
    r, g, b = (min(range(6), key=lambda i: abs(_CUBE[i] - level)) for level in (red, green, blue))
    return f"5;{16 + 36 * r + 6 * g + b}"


def side_by_side(
    images: Sequence[tuple[str, Pixels]], width: int, *, true_colour: bool = True, edge: int = _EDGE
) -> list[str]:
    """Return lines of several images with a title above each, as many in a row as fit.

    Arguments:
        images: Titles, without control characters, and images.
        width: Columns of the terminal.
        true_colour: See :func:`blocks`.
        edge: See :func:`blocks`.
    """
    drawn = [(title, blocks(image, true_colour=true_colour, edge=edge)) for title, image in images]
    columns = max((lines[0].count("▀") for _, lines in drawn), default=0)
    columns = max(columns, 16)
    count = max(1, (width + 2) // (columns + 2))
    found: list[str] = []
    for begin in range(0, len(drawn), count):
        row = drawn[begin : begin + count]
        found.append("  ".join(f"{title[:columns]:<{columns}}" for title, _ in row).rstrip())
        for i in range(max(len(lines) for _, lines in row)):
            parts = []
            for _, lines in row:
                line = lines[i] if i < len(lines) else ""
                parts.append(line + " " * (columns - line.count("▀")))
            found.append("  ".join(parts).rstrip())
        found.append("")
    return found
