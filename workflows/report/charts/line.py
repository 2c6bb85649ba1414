"""Accuracy against a number: lines or steps with interval bands, or points with error bars.

Every mark is where its value is: points of equal x and y lie on each other, told apart by shape and colour.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from workflows.report.charts.drawing import COLOURS, Drawing, Key, marker
from workflows.report.charts.scale import Place, apart, decades, share_axis, x_scale

__all__ = ["Point", "Series", "line_chart"]

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 48


@dataclass(frozen=True)
class Point:
    """A value with its interval, all in [0, 1] on the y axis, and the text on hover; no dot where that is ""."""

    x: float
    y: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Series:
    """Points of one name, by rising x.

    Arguments:
        name: Its name; "" is in no legend.
        points: The points.
        dashed: Whether its line is dashed.
        kind: ``line`` joins the points; ``step`` holds a point's value from the point before it, as the share of
            images with at least some radius does; ``points`` has error bars instead.
        colour: Number of its colour and shape; by position where it is None. From the seventh on they are grey,
            without a band.
        hollow: Whether its dots are.
        group: Number under which the legend shows and hides it; None for its colour's.
    """

    name: str
    points: Sequence[Point]
    dashed: bool = False
    kind: Literal["line", "step", "points"] = "line"
    colour: int | None = None
    hollow: bool = False
    group: int | None = None


@dataclass(frozen=True)
class _Canvas:
    px: Place
    low: float
    high: float
    width: int
    height: int

    def py(self, y: float) -> float:
        share = (y - self.low) / ((self.high - self.low) or 1.0)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)


def line_chart(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    ticks: Sequence[tuple[float, str]] = (),
    *,
    logarithmic: bool = False,
    beside: Sequence[Series] = (),
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Drawing:
    """Return the figure.

    Arguments:
        series: The lines; those in colour are drawn over those in grey.
        x_title: Title of the x axis.
        y_title: Title of the y axis, in %; :func:`workflows.report.charts.scale.share_axis` says from where to where.
        ticks: Places on the x axis with their labels; labels that would touch are left out. On a logarithmic axis
            they are 1, 2 and 5 times powers of ten, or these powers alone.
        logarithmic: Whether x is.
        beside: Lines of other panels, whose axes this one shares.
        size: Width and height of the canvas.
    """
    every = [point for line in (*series, *beside) for point in line.points]
    xs = [point.x for point in every]
    if logarithmic:
        ticks = decades(min(xs), max(xs))
    low, high, levels = share_axis(value for point in every for value in (point.y, point.low, point.high))
    width, height = size
    px = x_scale([*xs, *(x for x, _ in ticks)], _LEFT, width - _RIGHT, logarithmic=logarithmic)
    canvas = _Canvas(px, low, high, width, height)
    parts = list(_axes(canvas, x_title, y_title, levels, apart(ticks, px, width)))
    drawn: list[tuple[bool, str]] = []
    keys: list[Key] = []
    for index, line in enumerate(series):
        number = index if line.colour is None else line.colour
        faded = number >= COLOURS
        colour = "faded" if faded else f"c{number}"
        group = number if line.group is None else line.group
        drawn.append((not faded, f'<g class="s{group}">{_drawn(line, canvas, colour, number)}</g>'))
        if line.name:
            keys.append(Key(line.name, _sample(line, colour, number), group, faded))
    parts += [text for _, text in sorted(drawn, key=lambda pair: pair[0])]
    notes = [point.note for line in series for point in line.points if point.note]
    title = f"{y_title} against {x_title}"
    return Drawing(title, width, height, "".join(parts), tuple(keys), tuple(notes))


def _drawn(line: Series, canvas: _Canvas, colour: str, number: int) -> str:
    dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
    parts = []
    if line.kind == "points":
        parts += [_bar(point, canvas, colour) for point in line.points]
    else:
        parts += ["" if colour == "faded" else _band(line, canvas, colour), _path(line, canvas, colour, dashes)]
    classes = f"{colour}{' hollow' * line.hollow}"
    parts += [
        marker(number, canvas.px(point.x), canvas.py(point.y), classes, point.note)
        for point in line.points
        if point.note
    ]
    return "".join(parts)


def _sample(line: Series, colour: str, number: int) -> str:
    dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
    stroke = "" if line.kind == "points" else f'<line class="line {colour}" x1="0" x2="24" y1="6" y2="6"{dashes}/>'
    dot = "" if line.kind == "step" else marker(number, 12, 6, f"{colour}{' hollow' * line.hollow}")
    return stroke + dot


def _axes(
    canvas: _Canvas, x_title: str, y_title: str, levels: Iterable[float], ticks: Iterable[tuple[float, str, float]]
) -> Iterable[str]:
    right, base = canvas.width - _RIGHT, canvas.height - _BOTTOM
    for level in levels:
        y = canvas.py(level)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * level:.0f}</text>'
    for x, label, middle in ticks:
        at = canvas.px(x)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{base}" y2="{base + 5}"/>'
        yield f'<text x="{middle:.1f}" y="{base + 18}" text-anchor="middle">{escape(label)}</text>'
    middle = (_LEFT + right) / 2
    yield f'<text x="{middle}" y="{canvas.height - 8}" text-anchor="middle" class="axis">{escape(x_title)}</text>'
    yield (
        f'<text transform="translate(14 {(base + _TOP) / 2}) rotate(-90)" text-anchor="middle" '
        f'class="axis">{escape(y_title)}</text>'
    )


def _corners(line: Series, values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the corners of a line: its points; for steps also the falls."""
    places = [point.x for point in line.points]
    if line.kind == "line":
        return list(zip(places, values, strict=True))
    corners = [(places[0], values[0])]
    for (left, right), value in zip(pairwise(places), values[1:], strict=True):
        corners += [(left, value), (right, value)]
    return corners


def _text(corners: Iterable[tuple[float, float]], canvas: _Canvas) -> str:
    return " ".join(f"{canvas.px(x):.1f},{canvas.py(y):.1f}" for x, y in corners)


def _path(line: Series, canvas: _Canvas, colour: str, dashes: str) -> str:
    corners = _corners(line, [point.y for point in line.points])
    return f'<polyline class="line {colour}" points="{_text(corners, canvas)}"{dashes}/>'


def _band(line: Series, canvas: _Canvas, colour: str) -> str:
    upper = _corners(line, [point.high for point in line.points])
    lower = _corners(line, [point.low for point in line.points])[::-1]
    return "" if upper == lower[::-1] else f'<polygon class="band {colour}" points="{_text(upper + lower, canvas)}"/>'


def _bar(point: Point, canvas: _Canvas, colour: str) -> str:
    x = canvas.px(point.x)
    return (
        f'<line class="bar {colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{canvas.py(point.low):.1f}" '
        f'y2="{canvas.py(point.high):.1f}"/>'
    )
