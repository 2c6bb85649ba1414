"""Accuracy against a number: lines or steps with interval bands, or points with error bars."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from workflows.report.charts.drawing import COLOURS, Drawing, Key

__all__ = ["Point", "Series", "line_chart"]

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 48
_DODGE = 9
"""Distance of points at one place, which would hide each other."""

Place = Callable[[float], float]


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
        colour: Number of its colour; by position where it is None.
        hollow: Whether its dots are.
    """

    name: str
    points: Sequence[Point]
    dashed: bool = False
    kind: Literal["line", "step", "points"] = "line"
    colour: int | None = None
    hollow: bool = False


def line_chart(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    ticks: Sequence[tuple[float, str]] = (),
    *,
    logarithmic: bool = False,
) -> Drawing:
    """Return the figure.

    Arguments:
        series: The lines; from the ninth on, colours come again, dashed.
        x_title: Title of the x axis.
        y_title: Title of the y axis, which runs from 0 to 100 %.
        ticks: Places on the x axis with their labels; labels that would touch are left out. On a logarithmic axis
            they are 1, 2 and 5 times powers of ten, or these powers alone.
        logarithmic: Whether x is.
    """
    values = [point.x for line in series for point in line.points]
    if logarithmic:
        ticks = _decades(min(values), max(values))
    px, inside = _scale([*values, *(x for x, _ in ticks)], logarithmic), _WIDTH - _LEFT - _RIGHT
    parts = list(_axes(px, x_title, y_title, _apart(ticks, px, inside)))
    crowd: Counter[float] = Counter(p.x for line in series if line.kind == "points" for p in line.points)
    placed: Counter[float] = Counter()
    keys: list[Key] = []
    for index, line in enumerate(series):
        number = index if line.colour is None else line.colour
        colour = f"c{number % COLOURS}"
        dashes = ' stroke-dasharray="6 4"' if line.dashed or number >= COLOURS else ""
        if line.kind == "points":
            shifts = []
            for point in line.points:
                shifts.append(_DODGE * (placed[point.x] - (crowd[point.x] - 1) / 2))
                placed[point.x] += 1
            parts += [_bar(px(p.x) + shift, p, colour) for p, shift in zip(line.points, shifts, strict=True)]
            mark = f'<circle class="{_dot(line, colour)}" cx="12" cy="4" r="3.4"/>'
        else:
            shifts = [0.0] * len(line.points)
            parts += [_band(line, px, colour), _path(line, px, colour, dashes)]
            mark = f'<line class="line {colour}" x1="0" x2="24" y1="4" y2="4"{dashes}/>'
        parts += [
            f'<circle class="{_dot(line, colour)}" cx="{px(p.x) + shift:.1f}" cy="{_py(p.y):.1f}" r="4">'
            f"<title>{escape(p.note)}</title></circle>"
            for p, shift in zip(line.points, shifts, strict=True)
            if p.note
        ]
        if line.name:
            keys.append(Key(line.name, mark))
    return Drawing(f"{y_title} against {x_title}", _WIDTH, _HEIGHT, "".join(parts), tuple(keys))


def _py(y: float) -> float:
    return _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM)


def _scale(places: Sequence[float], logarithmic: bool) -> Place:
    low, high = min(places), max(places)
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
        margin = 0.06 * ((high - low) or 1.0)  # nothing is beyond the axis' ends, and points stand clear of them
        low, high = low - margin, high + margin
    span = (high - low) or 1.0

    def px(x: float) -> float:
        value = math.log10(x) if logarithmic else x
        return _LEFT + (value - low) / span * (_WIDTH - _LEFT - _RIGHT)

    return px


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    places = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    left = max(x for x in places if x <= low)
    right = min(x for x in places if x >= high)
    return [(x, f"{x:,.12g}") for x in places if left <= x <= right]


def _apart(ticks: Iterable[tuple[float, str]], px: Place, width: float) -> list[tuple[float, str]]:
    """Return the ticks whose labels do not touch those before them."""
    shown: list[tuple[float, str]] = []
    end = -width
    for x, label in ticks:
        half = 3.8 * len(label) + 4
        if px(x) - half >= end:
            shown.append((x, label))
            end = px(x) + half
    return shown


def _axes(px: Place, x_title: str, y_title: str, ticks: Iterable[tuple[float, str]]) -> Iterable[str]:
    for percent in range(0, 101, 20):
        y = _py(percent / 100)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{percent}</text>'
    for x, label in ticks:
        yield f'<text x="{px(x):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{escape(label)}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle" class="axis">{escape(x_title)}</text>'
    yield (
        f'<text transform="translate(14 {(_HEIGHT - _BOTTOM + _TOP) / 2}) rotate(-90)" text-anchor="middle" '
        f'class="axis">{escape(y_title)}</text>'
    )


def _dot(line: Series, colour: str) -> str:
    return f"dot {colour}{' hollow' * line.hollow}"


def _corners(line: Series, values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the corners of a line: its points; for steps also the falls."""
    places = [point.x for point in line.points]
    if line.kind == "line":
        return list(zip(places, values, strict=True))
    corners = [(places[0], values[0])]
    for (left, right), value in zip(pairwise(places), values[1:], strict=True):
        corners += [(left, value), (right, value)]
    return corners


def _text(corners: Iterable[tuple[float, float]], px: Place) -> str:
    return " ".join(f"{px(x):.1f},{_py(y):.1f}" for x, y in corners)


def _path(line: Series, px: Place, colour: str, dashes: str) -> str:
    corners = _corners(line, [point.y for point in line.points])
    return f'<polyline class="line {colour}" points="{_text(corners, px)}"{dashes}/>'


def _band(line: Series, px: Place, colour: str) -> str:
    upper = _corners(line, [point.high for point in line.points])
    lower = _corners(line, [point.low for point in line.points])[::-1]
    return "" if upper == lower[::-1] else f'<polygon class="band {colour}" points="{_text(upper + lower, px)}"/>'


def _bar(x: float, point: Point, colour: str) -> str:
    return (
        f'<line class="bar {colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{_py(point.low):.1f}" y2="{_py(point.high):.1f}"/>'
    )
