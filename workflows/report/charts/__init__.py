"""Figures as SVG: lines with interval bands, steps, points with error bars, and heat maps; no library, no script."""

from workflows.report.charts.drawing import DARK, LIGHT, Drawing, Panels, style
from workflows.report.charts.forest import forest_chart
from workflows.report.charts.heat import Tile, heat_map
from workflows.report.charts.line import Point, Series, line_chart
from workflows.report.charts.ranked import Mark, ranked_chart

__all__ = [
    "DARK",
    "LIGHT",
    "Drawing",
    "Mark",
    "Panels",
    "Point",
    "Series",
    "Tile",
    "forest_chart",
    "heat_map",
    "line_chart",
    "ranked_chart",
    "style",
]
