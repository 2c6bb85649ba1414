"""Figures as SVG: lines with interval bands, steps, points with error bars, and heat maps; no library, no script."""

from workflows.report.charts.drawing import DARK, LIGHT, Drawing, Key, style
from workflows.report.charts.heat import Tile, heat_map
from workflows.report.charts.line import Point, Series, line_chart

__all__ = ["DARK", "LIGHT", "Drawing", "Key", "Point", "Series", "Tile", "heat_map", "line_chart", "style"]
