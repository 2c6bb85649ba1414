"""A drawing that a page shows inline, coloured by its style sheet, or that is saved as an SVG file of its own.

On a page, colours are CSS variables, so that it can be light or dark. Files have them written out, on white: programs
that turn SVG into PDF know neither variables nor the preference of the reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["DARK", "LIGHT", "Drawing", "Key", "style"]

COLOURS = 8

LIGHT = {
    "ink": "#1c2430",
    "soft": "#566070",
    "paper": "#fcfcfa",
    "card": "#ffffff",
    "rule": "#dfe3e8",
    **dict(
        zip(
            (f"c{i}" for i in range(COLOURS)),
            ("#2f6fb0", "#c2571a", "#2e8b57", "#8e4fb0", "#b03a48", "#77713a", "#20818c", "#6b6f76"),
            strict=True,
        )
    ),
}
DARK = {
    "ink": "#e6e9ee",
    "soft": "#9aa5b4",
    "paper": "#14181e",
    "card": "#1b2129",
    "rule": "#323b47",
    **dict(
        zip(
            (f"c{i}" for i in range(COLOURS)),
            ("#6db0f2", "#f29a5c", "#68c795", "#c491e6", "#ee7c89", "#c4bd78", "#62c3cf", "#a9afb8"),
            strict=True,
        )
    ),
}


def style(colours: Mapping[str, str]) -> str:
    """Return the style sheet of drawings.

    Arguments:
        colours: The values of :data:`LIGHT`'s names, as colours or ``var(--name)``.
    """
    rules = [
        f".chart text {{ fill: {colours['soft']}; }} .chart .axis {{ fill: {colours['ink']}; }}",
        f".grid {{ stroke: {colours['rule']}; }} .line, .bar {{ fill: none; stroke-width: 2.2; }}",
        ".bar { stroke-width: 1.4; } .band { opacity: .14; stroke: none; } .dot { stroke-width: 2; }",
        f".chart .dot.hollow {{ fill: {colours['card']}; }} .chart .strong {{ font-weight: 700; }}",
        f".chart .value {{ fill: {colours['ink']}; }}",
    ]
    for i in range(COLOURS):
        colour = colours[f"c{i}"]
        rules.append(f".line.c{i}, .bar.c{i}, .dot.c{i} {{ stroke: {colour}; }}")
        rules.append(f".band.c{i}, .dot.c{i}, .tile.c{i} {{ fill: {colour}; }}")
    return "\n".join(rules)


@dataclass(frozen=True)
class Key:
    """An entry of a legend.

    Arguments:
        name: What it says.
        mark: SVG of a sample, 24 wide and 8 high.
    """

    name: str
    mark: str


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Arguments:
        title: What it shows, for those who do not see it.
        width: Width of the canvas.
        height: Height of the canvas.
        body: Its SVG elements.
        keys: Its legend.
    """

    title: str
    width: int
    height: int
    body: str
    keys: Sequence[Key] = ()

    def inline(self) -> str:
        """Return an SVG element for a page that has :func:`style`."""
        return (
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(self.title)}">{self.body}</svg>'
        )

    def legend(self) -> str:
        """Return the legend as HTML, which breaks lines on narrow screens as SVG cannot; "" without entries."""
        keys = "".join(
            f'<span class="key"><svg viewBox="0 0 24 8" class="swatch">{key.mark}</svg>{escape(key.name)}</span>'
            for key in self.keys
        )
        return f'<div class="legend">{keys}</div>' if keys else ""

    def file(self) -> str:
        """Return an SVG file with its legend, on white."""
        height = self.height + 20 * len(self.keys) + (8 if self.keys else 0)
        legend = "".join(
            f'<g transform="translate(56 {self.height + 20 * i + 6})">{key.mark}</g>'
            f'<text x="88" y="{self.height + 20 * i + 14}" class="axis">{escape(key.name)}</text>'
            for i, key in enumerate(self.keys)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{self.width}" height="{height}" '
            f'viewBox="0 0 {self.width} {height}" font-family="Helvetica, Arial, sans-serif" font-size="13">\n'
            f"<title>{escape(self.title)}</title>\n<style>{style(LIGHT)}</style>\n"
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n{self.body}{legend}</svg>\n'
        )
