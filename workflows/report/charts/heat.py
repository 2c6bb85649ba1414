"""Heat maps: the stronger the colour, the larger the number beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from workflows.report.charts.drawing import Drawing, name_of, text_width, wrapped

__all__ = ["Tile", "heat_map"]

_WIDTH, _ROW, _GAP, _TILE, _WIDEST = 640, 28, 2, 56, 64
_LETTERS = 30
"""Names that are longer are two lines."""
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
    names, heads = [wrapped(row, _LETTERS) for row in rows], [wrapped(column, _LETTERS) for column in columns]
    high = _ROW + 8 * any(len(name) > 1 for name in names)
    left = int(max((text_width(line) for name in names for line in name), default=0)) + 14
    wide = max((text_width(line) for head in heads for line in head), default=0) + 8
    width = min(max((_WIDTH - left) / max(len(columns), 4), _TILE), _WIDEST)
    turned = wide > width
    # Two lines that are not turned, above each other; of turned ones the last leans over the edge of its tile.
    top = int(_SINE * wide) + 28 if turned else 15 + 15 * max(map(len, heads), default=1)
    over = int(0.64 * wide - width / 2) + 12 if turned else 0
    parts = []
    for j, head in enumerate(heads):
        x, y = left + (j + 0.5) * width, top - 10
        turn = f' transform="rotate(-50 {x:.1f} {y})"' if turned else ""
        anchor = "start" if turned else "middle"
        parts.append(name_of(head, x, y, f' text-anchor="{anchor}"{turn}'))
    notes = []
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = top + i * high
        middle = y + high / 2 + 4 + 7.5 * (len(name) - 1)
        parts.append(name_of(name, left - 10, middle, ' text-anchor="end" class="axis"'))
        for j, column in enumerate(columns):
            tile = tiles.get((row, column))
            if tile is not None:
                parts.append(_tile(tile, left + j * width, y, width, high))
                notes.append(tile.note)
    whole = int(left + width * len(columns) + max(over, 0) + 4)
    least = int(0.75 * whole) if whole > 360 else 0
    height = top + len(rows) * high + 6
    return Drawing(title, whole, height, "".join(parts), notes=tuple(notes), least=least, most=int(1.2 * whole))


def _tile(tile: Tile, x: float, y: float, width: float, high: float) -> str:
    # No stronger than leaves the number readable, on light pages and on dark ones.
    opacity = 0.04 + 0.36 * min(max(tile.strength, 0.0), 1.0)
    return (
        f'<g><title>{escape(tile.note)}</title><rect class="tile c{tile.colour}" x="{x:.1f}" y="{y}" '
        f'width="{width - _GAP:.1f}" height="{high - _GAP}" rx="3" fill-opacity="{opacity:.2f}"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + high / 2 + 5:.0f}" text-anchor="middle" '
        f'class="value{" strong" * tile.strong}">'
        f"{escape(tile.text)}</text></g>"
    )
