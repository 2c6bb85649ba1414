"""Heat maps: the stronger the colour, the larger the number beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from workflows.report.charts.drawing import Drawing, text_width

__all__ = ["Tile", "heat_map"]

_WIDTH, _ROW, _GAP, _TILE = 640, 28, 2, 56
_SINE = 0.77
"""Of the angle by which long names of columns are turned, 50 degrees."""


@dataclass(frozen=True)
class Tile:
    """A number of the map.

    Arguments:
        text: The number, as short as it can be.
        strength: How strong its colour is, in [0, 1].
        note: The text on hover.
        colour: Number of its colour.
        strong: Whether it is written in bold.
    """

    text: str
    strength: float
    note: str
    colour: int = 1
    strong: bool = False


def heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], tiles: Mapping[tuple[str, str], Tile]
) -> Drawing:
    """Return the figure, as wide as the names of its rows and its columns need.

    Arguments:
        title: What it shows.
        rows: Names of the rows.
        columns: Names of the columns; turned where they are wider than a tile.
        tiles: The numbers, by row and column; places without one stay empty.
    """
    left = int(max(map(text_width, rows), default=0)) + 14
    wide = max(map(text_width, columns), default=0) + 8
    width = max((_WIDTH - left) / max(len(columns), 4), _TILE)
    turned = wide > width
    top = int(_SINE * wide) + 18 if turned else 30
    # The last name leans over the edge of its tile.
    over = int(0.64 * wide - width / 2) if turned else 0
    parts = []
    for j, name in enumerate(columns):
        x, y = left + (j + 0.5) * width, top - 10
        turn = f' transform="rotate(-50 {x:.1f} {y})"' if turned else ""
        anchor = "start" if turned else "middle"
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{turn}>{escape(name)}</text>')
    notes = []
    for i, row in enumerate(rows):
        y = top + i * _ROW
        parts.append(f'<text x="{left - 10}" y="{y + 19}" text-anchor="end" class="axis">{escape(row)}</text>')
        for j, column in enumerate(columns):
            tile = tiles.get((row, column))
            if tile is not None:
                parts.append(_tile(tile, left + j * width, y, width))
                notes.append(tile.note)
    whole = int(left + width * len(columns) + max(over, 0) + 4)
    least = int(0.85 * whole) if whole > 360 else 0
    return Drawing(title, whole, top + len(rows) * _ROW + 6, "".join(parts), notes=tuple(notes), least=least)


def _tile(tile: Tile, x: float, y: float, width: float) -> str:
    # No stronger than leaves the number readable, on light pages and on dark ones.
    opacity = 0.04 + 0.36 * min(max(tile.strength, 0.0), 1.0)
    return (
        f'<g><title>{escape(tile.note)}</title><rect class="tile c{tile.colour}" x="{x:.1f}" y="{y}" '
        f'width="{width - _GAP:.1f}" height="{_ROW - _GAP}" rx="3" fill-opacity="{opacity:.2f}"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + 19}" text-anchor="middle" class="value{" strong" * tile.strong}">'
        f"{escape(tile.text)}</text></g>"
    )
