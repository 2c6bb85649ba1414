"""Several accuracies of each of some names, one below another: what attacks take from a defence, at a glance."""

from collections.abc import Sequence
from dataclasses import dataclass

from workflows.report.charts.drawing import Drawing, Key, marker, name_of, wrapped

__all__ = ["Mark", "ranked_chart"]

_WIDTH, _LEFT, _RIGHT, _ROW, _BOTTOM = 480, 14, 26, 46, 42
_LETTERS = 46
"""Names that are longer are two lines."""


_MOST = 620
"""Width on a screen in pixels."""


@dataclass(frozen=True)
class Mark:
    """A value with its interval in [0, 1], and in words; its number is the place of its kind in the legend."""

    kind: int
    value: float
    low: float
    high: float
    note: str


def ranked_chart(title: str, kinds: Sequence[str], lines: Sequence[tuple[str, Sequence[Mark]]]) -> Drawing:
    """Return the figure: accuracy from 0 to 100 % along x, a line for each name.

    Arguments:
        title: What it shows.
        kinds: What the marks are, by number.
        lines: Name and marks of each line, from the top.
    """

    def px(value: float) -> float:
        return _LEFT + min(max(value, 0.0), 1.0) * (_WIDTH - _LEFT - _RIGHT)

    names = [wrapped(name, _LETTERS) for name, _ in lines]
    base = sum(_ROW + 15 * (len(name) - 1) for name in names) + 8
    parts = []
    for percent in range(0, 101, 20):
        x = px(percent / 100)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{base}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle">{percent}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{base + 35}" text-anchor="middle" class="axis">accuracy, %</text>')
    notes, y = [], 34 - _ROW
    for name, (_, marks) in zip(names, lines, strict=True):
        y += _ROW + 15 * (len(name) - 1)
        parts.append(name_of(name, _LEFT, y - 14, ' class="axis strong over"'))
        ends = [px(mark.value) for mark in marks]
        if len(ends) > 1:
            parts.append(f'<line class="line faded" x1="{min(ends):.1f}" x2="{max(ends):.1f}" y1="{y}" y2="{y}"/>')
        for mark in marks:
            low, high = px(mark.low), px(mark.high)
            parts.append(f'<line class="bar c{mark.kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
        for mark in marks:
            hollow = " hollow" if mark.kind == 0 else ""
            parts.append(marker(mark.kind, px(mark.value), y, f"c{mark.kind}{hollow}", mark.note))
            notes.append(mark.note)
    present = sorted({mark.kind for _, marks in lines for mark in marks})
    keys = [Key(kinds[kind], marker(kind, 12, 6, f"c{kind}{' hollow' if kind == 0 else ''}")) for kind in present]
    return Drawing(title, _WIDTH, base + _BOTTOM, "".join(parts), tuple(keys), tuple(notes), most=_MOST)
