"""A drawing that a page shows inline, coloured by its style sheet, or that is saved as an SVG file of its own.

On a page, colours are CSS variables, so that it can be light or dark. Files have them written out, on white: programs
that turn SVG into PDF know neither variables nor the preference of the reader.

A line has its colour and its shape: six of each, so that neither has to be told from the other alone. The colours are
apart in the sight of people with any of the three colour-vision deficiencies, which a test computes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape

__all__ = [
    "COLOURS",
    "DARK",
    "LIGHT",
    "Drawing",
    "Key",
    "Panels",
    "marker",
    "name_of",
    "style",
    "text_width",
    "wrapped",
]

COLOURS = 6
"""Lines with a colour; more are grey."""

_NAMES = (
    *("ink", "soft", "paper", "card", "rule", "link", "error", "warning", "note", "faded"),
    *(f"c{i}" for i in range(COLOURS)),
)
LIGHT = dict(
    zip(
        _NAMES,
        (
            *(
                "#1c2430",
                "#566070",
                "#fcfcfa",
                "#ffffff",
                "#dfe3e8",
                "#1f5f9f",
                "#a82a38",
                "#9a4a0a",
                "#5a6068",
                "#a9b0ba",
            ),
            *("#39424e", "#2920ff", "#e3339b", "#b18e00", "#528ffa", "#7c6002"),
        ),
        strict=True,
    )
)
DARK = dict(
    zip(
        _NAMES,
        (
            *(
                "#e6e9ee",
                "#9aa5b4",
                "#14181e",
                "#1b2129",
                "#323b47",
                "#7fbcf5",
                "#f2929b",
                "#f0a066",
                "#b3b9c2",
                "#59626f",
            ),
            *("#d5dae2", "#b622ff", "#ee0f06", "#fba14b", "#8fa6ee", "#148485"),
        ),
        strict=True,
    )
)

_NARROW = 500
"""Drawings that are this wide at most are not much reduced on a phone."""

_SHAPES = (
    "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0z",  # circle
    "M-3.8-3.8h7.6v7.6h-7.6z",  # square
    "M0-5.2L5 4.2H-5z",  # triangle
    "M0-5.4L5.4 0L0 5.4L-5.4 0z",  # diamond
    "M0 5.2L5-4.2H-5z",  # triangle on its tip
    "M-1.7-5h3.4v3.3H5v3.4H1.7V5h-3.4V1.7H-5v-3.4h3.3z",  # plus
)


def marker(shape: int, x: float, y: float, classes: str, note: str = "") -> str:
    """Return the mark of a value: circle, square, triangle, diamond, inverted triangle, plus, and again.

    Arguments:
        shape: Number of the shape.
        x: Its place.
        y: Its place.
        classes: Its CSS classes.
        note: The text on hover; "" for none.
    """
    title = f"><title>{escape(note)}</title></path>" if note else "/>"
    path = _SHAPES[shape % len(_SHAPES)]
    return f'<path class="dot {classes}" transform="translate({x:.1f} {y:.1f})" d="{path}"{title}'


def text_width(text: str, size: float = 13.0) -> float:
    """Return about how wide a text is in pixels, rather more than less."""
    return 0.58 * size * len(text)


def wrapped(text: str, most: int) -> tuple[str, ...]:
    """Return a name as one line, or as two of about the same length where it is longer than that many letters."""
    spaces = [place for place, letter in enumerate(text) if letter == " "]
    if len(text) <= most or not spaces:
        return (text,)
    middle = min(spaces, key=lambda place: abs(2 * place + 1 - len(text)))
    return text[:middle], text[middle + 1 :]


def name_of(lines: Sequence[str], x: float, y: float, rest: str) -> str:
    """Return a text of one or more lines, 15 pixels apart."""
    if len(lines) == 1:
        return f'<text x="{x:.1f}" y="{y:.1f}"{rest}>{escape(lines[0])}</text>'
    first = y - 15 * (len(lines) - 1)
    # The space between the lines is at the side to which they are not aligned, where nobody sees it.
    before, after = (" ", "") if 'text-anchor="end"' in rest else ("", " ")
    parts = [
        f'<tspan x="{x:.1f}" y="{first + 15 * i:.1f}">{before * (i > 0)}{escape(line)}{after}</tspan>'
        for i, line in enumerate(lines)
    ]
    return f"<text{rest}>{''.join(parts)}</text>"


def style(colours: Mapping[str, str]) -> str:
    """Return the style sheet of drawings.

    Arguments:
        colours: The values of :data:`LIGHT`'s names, as colours or ``var(--name)``.
    """
    rules = [
        f".chart text {{ fill: {colours['soft']}; }} .chart .axis {{ fill: {colours['ink']}; }}",
        f".grid {{ stroke: {colours['rule']}; }} .line, .bar {{ fill: none; stroke-width: 2.2; }}",
        ".bar { stroke-width: 1.4; } .band { opacity: .13; stroke: none; } .dot { stroke-width: 1.6; }",
        f".dot.dot.hollow {{ fill: {colours['card']}; }} .chart .strong {{ font-weight: 700; }}",
        # Names of lines stand over the grid.
        f".chart .over {{ paint-order: stroke; stroke: {colours['card']}; stroke-width: 4px; }}",
        f".chart .value {{ fill: {colours['ink']}; }}",
    ]
    for name, colour in [*((f"c{i}", colours[f"c{i}"]) for i in range(COLOURS)), ("faded", colours["faded"])]:
        rules.append(f".line.{name}, .bar.{name}, .dot.{name} {{ stroke: {colour}; }}")
        rules.append(f".band.{name}, .dot.{name}, .tile.{name} {{ fill: {colour}; }}")
    rules.append(".line.faded { stroke-width: 1.2; }")
    return "\n".join(rules)


@dataclass(frozen=True)
class Key:
    """An entry of a legend.

    Arguments:
        name: What it says.
        mark: SVG of a sample, 24 wide and 12 high.
        group: Number of the lines that it shows and hides; None for none.
        faded: Whether it stands with those that are not in colour.
    """

    name: str
    mark: str
    group: int | None = None
    faded: bool = False

    def html(self) -> str:
        """Return the entry; one of a group is a box that shows and hides its lines, without a script."""
        swatch = f'<svg viewBox="0 0 24 12" class="swatch" aria-hidden="true">{self.mark}</svg>{escape(self.name)}'
        if self.group is None:
            return f'<span class="key">{swatch}</span>'
        return f'<label class="key"><input type="checkbox" class="k{self.group}" checked="" />{swatch}</label>'


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Arguments:
        title: What it shows, for those who do not see it.
        width: Width of the canvas.
        height: Height of the canvas.
        body: Its SVG elements.
        keys: Its legend.
        notes: Every value that it shows, in words.
        least: Width in pixels below which a screen scrolls it instead of making it smaller; 0 for never.
        most: Width in pixels above which a screen does not make it larger; 0 for never.
    """

    title: str
    width: int
    height: int
    body: str
    keys: Sequence[Key] = ()
    notes: Sequence[str] = ()
    least: int = 0
    most: int = 0

    def inline(self) -> str:
        """Return an SVG element for a page that has :func:`style`."""
        sizes = [f"{end}-width: {size}px" for end, size in (("min", self.least), ("max", self.most)) if size]
        sized = f' style="{"; ".join(sizes)}"' if sizes else ""
        narrow = ' data-narrow=""' if self.width <= _NARROW else ""
        svg = (
            f'<svg class="chart"{narrow} viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(self.title)}"{sized}>'
            f"{self.body}</svg>"
        )
        if not self.least:
            return svg
        return f'<div class="wide" tabindex="0" role="group" aria-label="{escape(self.title)}">{svg}</div>'

    def legend(self) -> str:
        """Return the legend as HTML, which breaks lines on narrow screens as SVG cannot; "" without entries."""
        return _legend(self.keys)

    def file(self) -> str:
        """Return an SVG file with its legend, on white."""
        return _file(self.title, self.width, self.height, self.body, self.keys)


@dataclass(frozen=True)
class Panels:
    """Several drawings of one kind and one legend: small multiples.

    Arguments:
        title: What they show.
        members: The title of each, and it.
    """

    title: str
    members: Sequence[tuple[str, Drawing]]

    @cached_property
    def keys(self) -> Sequence[Key]:
        """The legend of all, each entry once."""
        found: dict[tuple[str, int | None], Key] = {}
        for _, drawing in self.members:
            for key in drawing.keys:
                found.setdefault((key.name, key.group), key)
        return tuple(sorted(found.values(), key=lambda key: (key.faded, key.group is None)))

    @property
    def notes(self) -> Sequence[str]:
        """Every value, in words."""
        return [note for _, drawing in self.members for note in drawing.notes]

    def inline(self) -> str:
        """See :class:`Drawing`."""
        parts = [
            f'<div class="panel"><p class="panel-title">{escape(title)}</p>{drawing.inline()}</div>'
            for title, drawing in self.members
        ]
        return f'<div class="panels">{"".join(parts)}</div>'

    def legend(self) -> str:
        """See :class:`Drawing`."""
        return _legend(self.keys)

    def file(self) -> str:
        """See :class:`Drawing`; three in a row."""
        width = max(drawing.width for _, drawing in self.members)
        height = max(drawing.height for _, drawing in self.members) + 24
        columns = min(3, len(self.members))
        body = "".join(
            f'<g transform="translate({i % columns * width} {i // columns * height})">'
            f'<text x="16" y="16" class="axis strong">{escape(title)}</text>'
            f'<g transform="translate(0 24)">{drawing.body}</g></g>'
            for i, (title, drawing) in enumerate(self.members)
        )
        rows = -(-len(self.members) // columns)
        return _file(self.title, columns * width, rows * height, body, self.keys)


def _legend(keys: Sequence[Key]) -> str:
    if not keys:
        return ""
    shown = "".join(key.html() for key in keys if not key.faded)
    faded = [key for key in keys if key.faded]
    more = ""
    if faded:
        grey = "".join(key.html() for key in faded)
        more = (
            f'<details class="more-keys"><summary>{len(faded)} more, in grey</summary>'
            f'<div class="legend">{grey}</div></details>'
        )
    return f'<div class="legend" role="group" aria-label="legend">{shown}</div>{more}'


def _file(title: str, width: int, height: int, body: str, keys: Sequence[Key]) -> str:
    total = height + 20 * len(keys) + (8 if keys else 0)
    legend = "".join(
        f'<g transform="translate(56 {height + 20 * i + 4})">{key.mark}</g>'
        f'<text x="88" y="{height + 20 * i + 14}" class="axis">{escape(key.name)}</text>'
        for i, key in enumerate(keys)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" width="{width}" height="{total}" '
        f'viewBox="0 0 {width} {total}" font-family="Helvetica, Arial, sans-serif" font-size="13">\n'
        f"<title>{escape(title)}</title>\n<style>{style(LIGHT)}</style>\n"
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}{legend}</svg>\n'
    )
