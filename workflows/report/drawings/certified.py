"""Certified accuracy against the radius.

The share of images certified at radius r, :math:`c(r)`, is a step function that falls behind the radius of each image
that is right; it is drawn at these radii, not at those of the table alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from workflows.report.charts import Point, Series, line_chart
from workflows.report.drawings.rows import Drawings, groups, percent
from workflows.results.certificates import envelope_frame, radii_of
from workflows.results.reader import Results
from workflows.statistics.proportions import wilson
from workflows.tables.table import records

__all__ = ["certified_curves"]

_MOST_RADII = 400
"""Of more distinct radii than this, evenly spaced ones are drawn: a screen has no more pixels."""

_WAY = ["dataset", "classifier", "family", "family_id", "base", "votes", "n", "alpha", "rule", "guarantee", "seed"]


def certified_curves(results: Results, table: pd.DataFrame) -> Drawings:
    """Certified accuracy at the radii of the rows, one line per sigma; dashed the best sigma at each radius."""
    cells = {cell.id: cell for cell in results.sweep.certified}
    for key, members in groups(table, _WAY):
        way = dict(zip(_WAY, key, strict=True))
        ordered = members.sort_values("sigma")
        rows = ((row, results.rows(cells[row["cell"]])) for row in records(ordered))
        judged = [
            (row, (images["prediction"] == images["label"]).to_numpy(), images["radius"].to_numpy(np.float64))
            for row, images in rows
        ]
        radii = _radii([radius[right] for _, right, radius in judged], radii_of(results))
        curves = pd.concat([_curve(row, right, radius, radii) for row, right, radius in judged], ignore_index=True)
        lines = [
            Series(
                f"sigma {row['sigma']:g}",
                _steps(curves[curves["cell"] == row["cell"]], radii_of(results)),
                kind="step",
                colour=1 + number,
            )
            for number, (row, _, _) in enumerate(judged)
        ]
        best = envelope_frame(curves)
        if len(best) and curves["images"].nunique() == 1:
            points = [Point(row["radius"], at := row["accuracy"], at, at, "") for row in records(best)]
            lines.append(Series("best sigma at each radius", points, kind="step", dashed=True, colour=0))
        ticks = [(radius, f"{radius:g}") for radius in radii_of(results)]
        drawing = line_chart(lines, "l_2 radius", "certified accuracy, %", ticks)
        extra = ", ".join([f"n = {way['n']}", way["guarantee"], f"seed {way['seed']}"])
        caption = f"{way['classifier']} on {way['dataset']}, {way['family']} ({way['base']}), {extra}"
        yield caption, drawing, curves


def _radii(radii: Sequence[npt.NDArray[np.float64]], grid: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the radii at which curves are drawn: those of all rows and of the table, thinned if there are many."""
    drawn = np.unique(np.concatenate([np.zeros(1), *radii]))
    if len(drawn) > _MOST_RADII:
        drawn = np.linspace(0, drawn[-1], _MOST_RADII)
    return np.unique(np.concatenate([drawn, np.asarray(grid)]))


def _curve(
    row: dict[str, Any], right: npt.NDArray[np.bool_], radius: npt.NDArray[np.float64], radii: npt.NDArray[np.float64]
) -> pd.DataFrame:
    n = len(radius)
    # Sorted once: how many right images have a radius of at least r.
    counts = np.count_nonzero(right) - np.searchsorted(np.sort(radius[right]), radii, side="left")
    shares = counts / n
    intervals = [wilson(float(share), n) for share in shares]
    names = ["cell", *_WAY, "defence", "sigma", "images"]
    return pd.DataFrame(
        {
            **{name: row[name] for name in names},
            "radius": radii,
            "accuracy": shares,
            "low": [low for low, _ in intervals],
            "high": [high for _, high in intervals],
        }
    )


def _steps(curve: pd.DataFrame, labelled: Sequence[float]) -> list[Point]:
    """Return the points at which a curve changes, and those of the table, which have dots."""
    points: list[Point] = []
    rows = records(curve)
    for i, row in enumerate(rows):
        value = row["accuracy"], row["low"], row["high"]
        text = f"{row['defence']}, sigma {row['sigma']:g}, radius {row['radius']:g}: {percent(*value)}"
        in_table = row["radius"] in labelled
        last = i + 1 == len(rows)
        if in_table or last or rows[i + 1]["accuracy"] != row["accuracy"]:
            points.append(Point(row["radius"], *value, text if in_table else ""))
    return points
