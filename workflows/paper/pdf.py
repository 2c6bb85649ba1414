"""Figures as PDF: the SVG elements that our charts are drawn with, through matplotlib's writer, fonts embedded.

It knows the elements and style rules of :mod:`workflows.report.charts` and refuses all others: a figure that silently
loses a part is worse than none.
"""

from __future__ import annotations

import cmath
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from defense.packages import installed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Affine2D

__all__ = ["svg_to_pdf"]

_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?")
_INHERITED = ("fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-weight", "text-anchor")
_KNOWN = {
    *_INHERITED,
    "opacity",
    "fill-opacity",
    "stroke-opacity",
    "font-family",
    "stroke-linecap",
    "stroke-linejoin",
}
_TEXT_SCALE = 0.9
"""DejaVu Sans, which matplotlib brings and embeds, is wider than the Helvetica that the charts are laid out for."""


@dataclass(frozen=True)
class _Rule:
    """A style rule whose selector is a chain of classes and names of elements."""

    steps: tuple[str, ...]
    values: Mapping[str, str]
    place: int

    @property
    def weight(self) -> tuple[int, int, int]:
        parts = [part for step in self.steps for part in re.findall(r"\.?[\w-]+", step)]
        return sum(part[0] == "." for part in parts), sum(part[0] != "." for part in parts), self.place

    def matches(self, path: tuple[tuple[str, frozenset[str]], ...]) -> bool:
        """Whether an element fits whose ancestors and itself are ``path``."""
        if not _fits(self.steps[-1], *path[-1]):
            return False
        left = list(self.steps[:-1])
        for element in reversed(path[:-1]):
            if left and _fits(left[-1], *element):
                left.pop()
        return not left


def _fits(step: str, tag: str, classes: frozenset[str]) -> bool:
    parts = re.findall(r"\.?[\w-]+", step)
    return all(part[1:] in classes if part[0] == "." else part == tag for part in parts)


@dataclass
class _Sheet:
    rules: list[_Rule] = field(default_factory=list)

    def read(self, text: str) -> None:
        for place, (selectors, body) in enumerate(re.findall(r"([^{}]+)\{([^{}]*)\}", text)):
            values = dict(entry.split(":", 1) for entry in body.split(";") if ":" in entry)
            cleaned = {name.strip(): value.strip() for name, value in values.items()}
            for selector in selectors.split(","):
                self.rules.append(_Rule(tuple(selector.split()), cleaned, place))

    def of(self, path: tuple[tuple[str, frozenset[str]], ...]) -> dict[str, str]:
        found = sorted((rule for rule in self.rules if rule.matches(path)), key=lambda rule: rule.weight)
        return {name: value for rule in found for name, value in rule.values.items()}


def svg_to_pdf(svg: str) -> bytes:
    """Return a figure as a PDF file of one page, as large as the SVG says, at 72 units an inch.

    Arguments:
        svg: The text of a file that :meth:`workflows.report.charts.Drawing.file` returns.

    Raises:
        MissingPackage: matplotlib is not installed.
        ValueError: The SVG has an element that is not known here.
    """
    with installed("a figure as PDF"):
        import matplotlib as mpl
        from matplotlib.backends.backend_pdf import FigureCanvasPdf
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own drawing
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    page = _Page(axes, _Sheet(), (width, height))
    for element in root.iter():
        if _tag(element) == "style":
            page.sheet.read(element.text or "")
    page.draw(root, (), {"fill": "#000000", "stroke": "none", "font-size": "13"}, Affine2D())
    # Type 42 embeds TrueType as it is, which conferences ask for; no date, so that equal figures are equal files.
    with mpl.rc_context({"pdf.fonttype": 42}):
        canvas: Any = FigureCanvasPdf(figure)
        canvas.print_pdf(file := io.BytesIO(), metadata={"CreationDate": None})
    return file.getvalue()


@dataclass
class _Page:
    axes: Axes
    sheet: _Sheet
    size: tuple[float, float]
    order: int = 0

    def draw(
        self,
        element: ElementTree.Element,
        above: tuple[tuple[str, frozenset[str]], ...],
        inherited: Mapping[str, str],
        transform: Affine2D,
    ) -> None:
        """Draw an element and what is in it."""
        tag = _tag(element)
        if tag in ("title", "desc", "style"):
            return
        path = (*above, (tag, frozenset(element.get("class", "").split())))
        own = {name: value for name, value in element.attrib.items() if name in _KNOWN}
        given = dict(entry.split(":", 1) for entry in element.get("style", "").split(";") if ":" in entry)
        style = {**inherited, **own, **self.sheet.of(path), **{k.strip(): v.strip() for k, v in given.items()}}
        if style.get("display") == "none":
            return
        placed = _transformed(element.get("transform", ""), transform)
        if tag in ("svg", "g"):
            handed = {name: style[name] for name in _INHERITED if name in style}
            faded = float(style.get("opacity", "1")) * float(inherited.get("group-opacity", "1"))
            for child in element:
                self.draw(child, path, {**handed, "group-opacity": str(faded)}, placed)
        elif tag == "text":
            self._text(element, style, placed)
        else:
            self._shape(tag, element, style, placed)

    def _shape(self, tag: str, element: ElementTree.Element, style: Mapping[str, str], transform: Affine2D) -> None:
        from matplotlib.patches import PathPatch

        shape = _path(tag, element, self.size)
        opacity = float(style.get("opacity", "1")) * float(style.get("group-opacity", "1"))
        fill = "none" if tag in ("line", "polyline") else style["fill"]
        dashes = [float(n) for n in _NUMBER.findall(style.get("stroke-dasharray", ""))]
        self.order += 1
        self.axes.add_patch(
            PathPatch(
                shape,
                transform=transform + self.axes.transData,
                facecolor=fill,
                edgecolor=style["stroke"],
                linewidth=float(style.get("stroke-width", "1").removesuffix("px")),
                linestyle=(0, dashes) if dashes else "solid",
                alpha=opacity,
                zorder=self.order,
                clip_on=False,
            )
        )

    def _text(self, element: ElementTree.Element, style: Mapping[str, str], transform: Affine2D) -> None:
        x, y = transform.transform((float(element.get("x", "0")), float(element.get("y", "0"))))
        turned = transform.transform((1, 0)) - transform.transform((0, 0))
        anchors = {"start": "left", "middle": "center", "end": "right"}
        self.order += 1
        self.axes.text(
            x,
            y,
            "".join(element.itertext()).replace("$", r"\$"),
            color=style["fill"],
            fontsize=_TEXT_SCALE * float(style["font-size"].removesuffix("px")),
            fontweight="bold" if style.get("font-weight") in ("700", "bold", "600") else "normal",
            horizontalalignment=anchors[style.get("text-anchor", "start")],
            verticalalignment="baseline",
            rotation=-math.degrees(math.atan2(turned[1], turned[0])),
            rotation_mode="anchor",
            alpha=float(style.get("opacity", "1")) * float(style.get("group-opacity", "1")),
            zorder=self.order,
        )


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _transformed(text: str, before: Affine2D) -> Affine2D:
    """A transform of SVG, applied before the one of what the element is in."""
    from matplotlib.transforms import Affine2D

    own = Affine2D()
    for name, arguments in reversed(re.findall(r"(\w+)\(([^)]*)\)", text)):
        numbers = [float(number) for number in _NUMBER.findall(arguments)]
        if name == "translate":
            own.translate(numbers[0], numbers[1] if len(numbers) > 1 else 0)
        elif name == "rotate":
            x, y = numbers[1:] or (0.0, 0.0)
            own.rotate_deg_around(x, y, numbers[0])
        elif name == "scale":
            own.scale(numbers[0], numbers[-1])
        else:
            raise ValueError(f"a figure has the transform {name!r}, which is not known here")
    return Affine2D((own + before).get_matrix())


def _path(tag: str, element: ElementTree.Element, size: tuple[float, float]) -> Any:
    from matplotlib.path import Path

    def number(name: str, whole: float = 0.0) -> float:
        text = element.get(name, "0")
        return whole * float(text[:-1]) / 100 if text.endswith("%") else float(text)

    if tag == "rect":
        x, y, w, h = number("x"), number("y"), number("width", size[0]), number("height", size[1])
        return Path([(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)], closed=True)
    if tag == "circle":
        return Path.circle((number("cx"), number("cy")), number("r"))
    if tag == "line":
        return Path([(number("x1"), number("y1")), (number("x2"), number("y2"))])
    if tag in ("polyline", "polygon"):
        values = [float(value) for value in _NUMBER.findall(element.get("points", ""))]
        corners = list(zip(values[::2], values[1::2], strict=True))
        return Path([*corners, corners[0]], closed=True) if tag == "polygon" else Path(corners)
    if tag == "path":
        vertices, codes = zip(*_steps(element.get("d", "")), strict=True)
        return Path(vertices, codes)
    raise ValueError(f"a figure has the element {tag!r}, which is not known here")


def _steps(text: str) -> Iterator[tuple[tuple[float, float], int]]:
    """Corners of a path of straight lines, with matplotlib's codes."""
    from matplotlib.path import Path

    x = y = 0.0
    start = (0.0, 0.0)
    for letter, arguments in re.findall(r"([A-Za-z])([^A-Za-z]*)", text):
        numbers = [float(value) for value in _NUMBER.findall(arguments)]
        relative = letter.islower()
        kind = letter.upper()
        if kind == "Z":
            yield start, int(Path.CLOSEPOLY)
            x, y = start
        elif kind in ("H", "V"):
            for value in numbers:
                x, y = (value + x * relative, y) if kind == "H" else (x, value + y * relative)
                yield (x, y), int(Path.LINETO)
        elif kind in ("M", "L"):
            for place, (dx, dy) in enumerate(zip(numbers[::2], numbers[1::2], strict=True)):
                x, y = dx + x * relative, dy + y * relative
                moves = kind == "M" and place == 0
                start = (x, y) if moves else start
                yield (x, y), int(Path.MOVETO if moves else Path.LINETO)
        elif kind == "A":
            for i in range(0, len(numbers), 7):
                radius, _, _, large, sweep, dx, dy = numbers[i : i + 7]
                end = (dx + x * relative, dy + y * relative)
                for corner in _arc((x, y), end, radius, bool(large), bool(sweep)):
                    yield corner, int(Path.LINETO)
                x, y = end
        else:
            raise ValueError(f"a figure has a path with {letter!r}, which is not known here")


def _arc(
    begin: tuple[float, float], end: tuple[float, float], radius: float, large: bool, sweep: bool
) -> Iterator[tuple[float, float]]:
    """Corners on an arc of a circle; SVG 1.1, F.6.5, with both radii alike."""
    half = complex(*end) - complex(*begin)
    radius = max(radius, abs(half) / 2)
    height = math.sqrt(max(radius**2 - abs(half) ** 2 / 4, 0.0))
    normal = 1j * half / abs(half) if half else 0
    centre = (complex(*begin) + complex(*end)) / 2 + normal * height * (-1 if large == sweep else 1)
    first, last = (cmath.phase(complex(*point) - centre) for point in (begin, end))
    turn = (last - first) % (2 * math.pi) if sweep else -((first - last) % (2 * math.pi))
    steps = 24
    for place in range(1, steps + 1):
        point = centre + cmath.rect(radius, first + turn * place / steps)
        yield point.real, point.imag
