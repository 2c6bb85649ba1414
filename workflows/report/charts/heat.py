"""Heat maps: the stronger the colour, the larger the number beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from workflows.report.charts.drawing import Drawing

__all__ = ["Tile", "heat_map"]

_WIDTH, _LEFT, _TOP, _ROW, _GAP = 640, 196, 30, 28, 2


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
    colour: int = 0
    strong: bool = False


def heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], tiles: Mapping[tuple[str, str], Tile]
) -> Drawing:
    """Return the figure.

    Arguments:
        title: What it shows.
        rows: Names of the rows.
        columns: Names of the columns.
        tiles: The numbers, by row and column; places without one stay empty.
    """
    width = (_WIDTH - _LEFT) / max(len(columns), 4)
    parts = [
        f'<text x="{_LEFT + (j + 0.5) * width:.1f}" y="{_TOP - 10}" text-anchor="middle">{escape(name)}</text>'
        for j, name in enumerate(columns)
    ]
    for i, row in enumerate(rows):
        y = _TOP + i * _ROW
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 19}" text-anchor="end" class="axis">{escape(row)}</text>')
        for j, column in enumerate(columns):
            tile = tiles.get((row, column))
            if tile is not None:
                parts.append(_tile(tile, _LEFT + j * width, y, width))
    return Drawing(title, _WIDTH, _TOP + len(rows) * _ROW + 6, "".join(parts))


def _tile(tile: Tile, x: float, y: float, width: float) -> str:
    # No stronger than leaves the number readable, on light pages and on dark ones.
    opacity = 0.04 + 0.52 * min(max(tile.strength, 0.0), 1.0)
    return (
        f'<g><title>{escape(tile.note)}</title><rect class="tile c{tile.colour}" x="{x:.1f}" y="{y}" '
        f'width="{width - _GAP:.1f}" height="{_ROW - _GAP}" rx="3" fill-opacity="{opacity:.2f}"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + 19}" text-anchor="middle" class="value{" strong" * tile.strong}">'
        f"{escape(tile.text)}</text></g>"
    )
