"""Accuracy against how hard an attack tries."""

import pandas as pd

from tasks.attacks.budgets import format_eps
from workflows.report.charts import Point, Series, line_chart
from workflows.report.drawings.rows import Drawings, groups, percent
from workflows.tables.effort import AXIS_NAMES
from workflows.tables.table import records

__all__ = ["convergence_curves"]


def convergence_curves(frame: pd.DataFrame) -> Drawings:
    """Accuracy against steps, draws, restarts and selection draws: one figure per attack, one line per defence."""
    judged = frame[frame["avg"].notna()]
    for (dataset, classifier, attack, eps, seed, axis), members in groups(
        judged, ["dataset", "classifier", "attack", "eps", "seed", "axis"]
    ):
        values = sorted(set(members["value"]))
        if len(values) < 2:
            continue
        lines = []
        for (name,), line in groups(members, ["defence"]):
            points = []
            for row in records(line):
                shown = row["avg"], row["avg_low"], row["avg_high"]
                told = f"{name}, {row['value']} {AXIS_NAMES[axis]}: {percent(*shown)}; {row['state']}"
                points.append(Point(float(row["value"]), *shown, told.removesuffix("; ")))
            lines.append(Series(name, points))
        ticks = [(value, str(value)) for value in values]
        drawing = line_chart(lines, AXIS_NAMES[axis], "accuracy, %", ticks, logarithmic=True)
        yield f"{classifier} on {dataset}, {attack} eps {format_eps(eps)}, seed {seed}", drawing, members
