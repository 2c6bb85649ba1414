"""Scales: where a number lies on an axis, and which numbers stand beside it."""

import math
from collections.abc import Callable, Iterable, Sequence

from workflows.report.charts.drawing import text_width

__all__ = ["Place", "apart", "decades", "share_axis", "x_scale"]

Place = Callable[[float], float]

_LEAST = 0.10
"""Height of the y axis at least: ten points. Closer values are equal for all that a few hundred images can say."""


def share_axis(values: Iterable[float]) -> tuple[float, float, list[float]]:
    """Return the ends and ticks of an axis of shares, of which 0.92 and 0.99 are to be told apart.

    It is the whole [0, 1] if the values take more than 60 % of it; else it is cut to them, in whole ticks.

    Arguments:
        values: What it has to show, with their intervals, in [0, 1].
    """
    shown = [min(max(value, 0.0), 1.0) for value in values if not math.isnan(value)]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    if high - low < _LEAST:
        low, high = max(0.0, min(low, high - _LEAST)), min(1.0, max(high, low + _LEAST))
    if high - low > 0.6:
        low, high = 0.0, 1.0
    step = next(step for step in (0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 6 or step == 0.2)
    first, last = math.floor(low / step + 1e-9), min(math.ceil(high / step - 1e-9), round(1 / step))
    return first * step, last * step, [i * step for i in range(first, last + 1)]


def x_scale(places: Sequence[float], left: float, right: float, *, logarithmic: bool) -> Place:
    """Return the scale from the smallest of some places to the largest.

    Arguments:
        places: Values.
        left: Where the axis begins, in pixels.
        right: Where it ends.
        logarithmic: Whether distances are those of logarithms; nothing is then at the very ends.
    """
    low, high = min(places), max(places)
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
        margin = 0.06 * ((high - low) or 1.0)
        low, high = low - margin, high + margin
    span = (high - low) or 1.0

    def place(x: float) -> float:
        return left + ((math.log10(x) if logarithmic else x) - low) / span * (right - left)

    return place


def decades(low: float, high: float) -> list[tuple[float, str]]:
    """Return ticks of a logarithmic axis: 1, 2 and 5 times powers of ten, or these powers alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    places = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    left = max(x for x in places if x <= low)
    right = min(x for x in places if x >= high)
    return [(x, f"{x:,.12g}") for x in places if left <= x <= right]


def apart(ticks: Iterable[tuple[float, str]], place: Place, width: float) -> list[tuple[float, str, float]]:
    """Return ticks with the middle of their labels: those that touch no label before them, all within the canvas.

    Arguments:
        ticks: Places and labels.
        place: The scale.
        width: Of the canvas, which no label leaves.
    """
    shown: list[tuple[float, str, float]] = []
    end = -width
    for x, label in ticks:
        half = text_width(label) / 2 + 3
        middle = min(max(place(x), half), width - half)
        if middle - half >= end:
            shown.append((x, label, middle))
            end = middle + half
    return shown
