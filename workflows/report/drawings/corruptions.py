"""Accuracy under each corruption, as maps."""

import pandas as pd

from workflows.report.charts import Drawing, Tile, heat_map
from workflows.report.drawings.rows import Drawings, groups, percent
from workflows.tables.table import records

__all__ = ["corruption_maps"]


def corruption_maps(table: pd.DataFrame, gains: pd.DataFrame) -> Drawings:
    """Accuracy of each corruption and severity, one map per defence, then its gain over no defence."""
    where = ["dataset", "classifier", "origin", "seed", "defence"]
    for key, rows in groups(table, where):
        dataset, classifier, origin, seed, defence = key
        subject = f"{classifier} on {dataset}, {defence}, {origin}, seed {seed}"
        yield f"{subject}: accuracy, %", _map(rows, "accuracy", "accuracy, %"), rows
        if len(gains):
            gained = gains[(gains[where] == list(key)).all(axis=1)]
            if len(gained):
                yield (
                    f"{subject}: gain over no defence in points, bold where its 95 % interval leaves out 0",
                    _map(gained, "gain", "gain over no defence, points"),
                    gained,
                )


def _map(frame: pd.DataFrame, measure: str, title: str) -> Drawing:
    rows = records(frame)
    # Severities are numbers and the word "all" for their mean.
    severities = sorted({str(row["severity"]) for row in rows}, key=lambda text: (text == "all", text))
    corruptions = list(dict.fromkeys(row["corruption"] for row in rows))
    largest = max([0.05, *(abs(row[measure]) for row in rows)]) if measure == "gain" else 1.0
    tiles = {}
    for row in rows:
        value, low, high = row[measure], row["low"], row["high"]
        tooltip = f"{row['corruption']} {row['severity']}: {percent(value, low, high)}, {row['images']} images"
        tiles[row["corruption"], _column(str(row["severity"]))] = Tile(
            f"{100 * value:+.1f}" if measure == "gain" else f"{100 * value:.1f}",
            abs(value) / largest,
            tooltip.replace(" % ", " points ") if measure == "gain" else tooltip,
            colour=3 if value < 0 else 4,
            strong=measure == "gain" and (low > 0 or high < 0),
        )
    return heat_map(title, corruptions, [_column(name) for name in severities], tiles)


def _column(severity: str) -> str:
    return "mean" if severity == "all" else f"severity {severity}"
