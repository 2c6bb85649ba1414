"""Differences with their intervals, one below another, on both sides of none."""

import math
from collections.abc import Sequence
from html import escape

from workflows.report.charts.drawing import Drawing, marker, name_of, wrapped
from workflows.report.charts.line import Point

__all__ = ["forest_chart"]

_WIDTH, _LEFT, _RIGHT, _ROW, _BOTTOM = 480, 14, 20, 42, 42
_LETTERS, _MOST = 46, 620
"""Names that are longer are two lines; width on a screen in pixels."""


def forest_chart(title: str, axis: str, lines: Sequence[tuple[str, Point]]) -> Drawing:
    """Return the figure: a difference in points along x, with its interval, a line each.

    Arguments:
        title: What it shows.
        axis: Title of the x axis.
        lines: Name of each difference, and it: ``y``, ``low`` and ``high`` in [-1, 1]; those whose interval leaves
            out 0 are filled, and those that are not finite left out.
    """
    lines = [(name, p) for name, p in lines if all(map(math.isfinite, (p.y, p.low, p.high)))]
    values = [0.0, *(value for _, point in lines for value in (point.y, point.low, point.high))]
    reach = max(values) - min(values)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if reach <= 6 * step or step == 0.5)
    first, last = min(-1, math.floor(min(values) / step + 1e-9)), max(1, math.ceil(max(values) / step - 1e-9))

    def px(value: float) -> float:
        return _LEFT + (value / step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    # Names stand beside the line of no difference where that leaves them room, and else cross it.
    left = px(0) + 8 if px(0) < _WIDTH / 4 else _LEFT

    names = [wrapped(name, _LETTERS) for name, _ in lines]
    base = sum(_ROW + 15 * (len(name) - 1) for name in names) + 8
    parts, notes = [], []
    for i in range(first, last + 1):
        x = px(i * step)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{base}"/>')
        label = f"{100 * i * step:+.0f}" if i else "0"
        parts.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<line class="line c0" x1="{px(0):.1f}" x2="{px(0):.1f}" y1="4" y2="{base}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{base + 35}" text-anchor="middle" class="axis">{escape(axis)}</text>')
    y = 32 - _ROW
    for name, (_, point) in zip(names, lines, strict=True):
        y += _ROW + 15 * (len(name) - 1)
        sure = point.low > 0 or point.high < 0
        colour = "c0" if not sure else "c1" if point.y > 0 else "c2"
        parts.append(name_of(name, left, y - 13, ' class="axis over"'))
        parts.append(
            f'<line class="bar {colour}" x1="{px(point.low):.1f}" x2="{px(point.high):.1f}" y1="{y}" y2="{y}"/>'
        )
        shape = 0 if not sure else 1 if point.y > 0 else 2
        parts.append(marker(shape, px(point.y), y, colour if sure else f"{colour} hollow", point.note))
        notes.append(point.note)
    return Drawing(title, _WIDTH, base + _BOTTOM, "".join(parts), notes=tuple(notes), most=_MOST)
