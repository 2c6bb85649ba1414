"""Figures put values where they are: places on the canvas are inverted and compared."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from workflows.report.charts import (
    DARK,
    LIGHT,
    Drawing,
    Mark,
    Panels,
    Point,
    Series,
    Tile,
    forest_chart,
    heat_map,
    line_chart,
    ranked_chart,
    style,
)
from workflows.report.charts.drawing import text_width
from workflows.report.charts.scale import share_axis

X0, X1, Y0, Y1 = 56, 624, 312, 16


def corners(svg: str, tag: str = "polyline") -> list[tuple[float, float]]:
    """Places of the first line or band, as x in [0, 1] of the axis and y in [0, 1]."""
    found = re.search(rf'<{tag} class="[^"]+" points="([^"]+)"', svg)
    assert found is not None
    pairs = [tuple(map(float, pair.split(","))) for pair in found[1].split()]
    return [(round((x - X0) / (X1 - X0), 3), round((Y0 - y) / (Y0 - Y1), 3)) for x, y in pairs]


def marks(svg: str, classes: str = r"c\d") -> list[tuple[float, float]]:
    """Places of the marks of a class, in pixels."""
    found = re.findall(rf'class="dot {classes}" transform="translate\(([\d.]+) ([\d.]+)\)"', svg)
    return [(float(x), float(y)) for x, y in found]


def exact(*values: tuple[float, float]) -> list[Point]:
    return [Point(x, y, y, y, "") for x, y in values]


def test_a_step_holds_the_value_of_the_next_point_and_falls_behind_each() -> None:
    points = exact((0.0, 1.0), (0.25, 1.0), (0.5, 0.5), (1.0, 0.0))
    svg = line_chart([Series("s", points, kind="step")], "r", "y").inline()
    # At 0.25 it is 1 still; just behind it is 0.5, up to and with 0.5; then 0.
    assert corners(svg) == [(0, 1), (0, 1), (0.25, 1), (0.25, 0.5), (0.5, 0.5), (0.5, 0), (1, 0)]
    assert "polygon" not in svg  # no interval, no band


def test_a_band_lies_between_low_and_high() -> None:
    points = [Point(0, 0.5, 0.25, 0.75, ""), Point(1, 1.0, 0.5, 1.0, "")]
    svg = line_chart([Series("s", points)], "x", "y").inline()
    assert corners(svg, "polygon") == [(0, 0.75), (1, 1), (1, 0.5), (0, 0.25)]


def test_a_logarithmic_axis_puts_decades_at_equal_distances() -> None:
    points = [Point(x, 0.5, 0.4, 0.6, f"at {x}") for x in (1, 10, 1000)]
    svg = line_chart([Series("s", points, kind="points")], "evaluations", "y", logarithmic=True).inline()
    one, ten, thousand = (x for x, _ in marks(svg))
    assert thousand - ten == pytest.approx(2 * (ten - one), abs=0.2)
    assert re.findall(r'text-anchor="middle">([\d,]+)<', svg) == ["1", "10", "100", "1,000"]
    bars = re.findall(r'<line class="bar c0" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', svg)
    assert re.findall(r'text-anchor="end">(\d+)<', svg) == ["40", "45", "50", "55", "60"]
    assert [(a == b, (Y0 - float(c)) / (Y0 - Y1), (Y0 - float(d)) / (Y0 - Y1)) for a, b, c, d in bars] == [
        (True, pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-3))
    ] * 3


def test_ticks_of_a_short_logarithmic_axis_do_not_reach_beyond_the_data() -> None:
    line = Series("s", [Point(x, 0.5, 0.4, 0.6, "p") for x in (3, 40)], kind="points")
    svg = line_chart([line], "e", "y", logarithmic=True).inline()
    assert re.findall(r'text-anchor="middle">([\d,]+)<', svg) == ["2", "5", "10", "20", "50"]


def test_no_point_is_moved_sideways_and_shapes_differ() -> None:
    lines = [Series(name, [Point(5, 0.9, 0.8, 1, name)], kind="points") for name in "abcdef"]
    svg = line_chart(lines, "e", "y", logarithmic=True).inline()
    assert len(set(marks(svg))) == 1 and len(marks(svg)) == 6
    assert len(set(re.findall(r' d="([^"]+)"', svg))) == 6


def test_labels_that_would_touch_are_left_out_and_the_first_stays() -> None:
    ticks = [(float(i), f"{i}/255") for i in range(100)]
    svg = line_chart([Series("s", exact((0.0, 1.0), (99.0, 0.0)))], "eps", "y", ticks).inline()
    labels = re.findall(r'x="([\d.]+)" y="330" text-anchor="middle">([^<]+)<', svg)
    places = [float(x) for x, _ in labels]
    assert labels[0][1] == "0/255" and 5 < len(labels) < 20
    assert min(b - a for a, b in pairwise(places)) >= 40


def test_names_are_text_wherever_they_stand() -> None:
    name = '<b onclick="x">&amp;'
    line = line_chart([Series(name, [Point(0, 1, 1, 1, name), Point(1, 0, 0, 0, name)])], name, name, [(0, name)])
    heat = heat_map(name, [name], [name], {(name, name): Tile(name, 0.5, name)})
    for text in (line.inline(), line.legend(), line.file(), heat.inline(), heat.file()):
        assert "<b" not in text
        assert name in "".join(ElementTree.fromstring(text).itertext())


def test_a_file_needs_no_style_sheet_and_holds_its_legend() -> None:
    drawing = line_chart([Series("first", exact((0.0, 1.0), (1.0, 0.0))), Series("", exact((0.0, 0.5)))], "x", "y")
    file = drawing.file()
    assert "var(" not in file and "http" not in file.replace("http://www.w3.org/2000/svg", "")
    root = ElementTree.fromstring(file)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and int(root.get("height", "0")) >= 360 + 20
    assert [key.name for key in drawing.keys] == ["first"] and ">first<" in file
    assert f".line.c0, .bar.c0, .dot.c0 {{ stroke: {LIGHT['c0']}; }}" in file
    assert LIGHT.keys() == DARK.keys() and not set(LIGHT.values()) & set(DARK.values())


def test_at_most_six_lines_have_a_colour_and_a_band_and_the_legend_hides_each() -> None:
    lines = [Series(str(i), [Point(0, 1, 0.9, 1, "a"), Point(1, 0.2, 0.1, 0.3, "b")]) for i in range(9)]
    drawing = line_chart(lines, "x", "y")
    svg = drawing.inline()
    assert len(re.findall(r'<polygon class="band c\d"', svg)) == svg.count("<polygon") == 6
    assert svg.count('<polyline class="line faded"') == 3
    # Grey lines lie below those in colour.
    assert svg.rindex("line faded") < svg.index("line c0")
    legend = drawing.legend()
    assert re.findall(r'<input type="checkbox" class="k(\d)"', legend) == [str(i) for i in range(9)]
    assert sorted(re.findall(r'<g class="s(\d)">', svg)) == [str(i) for i in range(9)]
    assert "3 more, in grey" in legend


def test_92_and_99_are_apart_and_a_wide_range_is_whole() -> None:
    for values, ends in (
        ((0.92, 0.99), (0.88, 1.0)),
        ((0.97, 0.99), (0.88, 1.0)),
        ((0.0, 1.0), (0.0, 1.0)),
        ((0.3, 0.99), (0.0, 1.0)),
        ((0.0, 0.01), (0.0, 0.1)),
        ((0.5, 0.5), (0.4, 0.6)),
    ):
        low, high, ticks = share_axis(values)
        assert (low, high) == pytest.approx(ends), values
        assert (ticks[0], ticks[-1]) == pytest.approx(ends) and 2 <= len(ticks) <= 8
    points = [Point(0, 0.92, 0.91, 0.93, "a"), Point(1, 0.99, 0.98, 1, "b")]
    (_, low), (_, high) = marks(line_chart([Series("s", points)], "x", "y").inline())
    assert low - high > 100


def test_panels_share_their_axes_and_one_legend() -> None:
    first = [Series("a", exact((0.0, 0.95), (1.0, 0.9)))]
    second = [Series("a", exact((0.0, 0.2), (2.0, 0.1)))]
    every = [*first, *second]
    panels = Panels(
        "t", [(n, line_chart(lines, "x", "y", beside=every)) for n, lines in (("p", first), ("q", second))]
    )
    assert [key.name for key in panels.keys] == ["a"]
    one, other = (re.findall(r'text-anchor="end">(\d+)<', drawing.inline()) for _, drawing in panels.members)
    assert one == other == ["0", "20", "40", "60", "80", "100"]
    root = ElementTree.fromstring(panels.file())
    assert int(root.get("width", "0")) == 2 * 640 and "".join(root.itertext()).count("p") >= 1
    assert ElementTree.fromstring(panels.inline()).get("class") == "panels"


def within(drawing: Drawing) -> None:
    """No label leaves the canvas, by the width that it has at most."""
    for text in ElementTree.fromstring(f"<svg>{drawing.body}</svg>").iter("text"):
        x, turned = text.get("x"), text.get("transform")
        if x is None or turned is not None:
            continue
        wide = text_width(text.text or "")
        left = float(x) - {"end": wide, "middle": wide / 2}.get(text.get("text-anchor", "start"), 0)
        assert left >= -1 and left + wide <= drawing.width + 1, text.text


def test_no_label_is_clipped() -> None:
    ticks = [(0.0, "0"), (0.123456, "0.123456789"), (1.0, "1.0000000001")]
    within(line_chart([Series("s", exact((0.0, 1.0), (1.0, 0.0)))], "x", "y", ticks))
    costs = [Series("s", [Point(x, 0.5, 0.4, 0.6, "p") for x in (3, 123_456)], kind="points")]
    within(line_chart(costs, "e", "y", logarithmic=True))
    long = "a defence with a very long name that nobody would shorten (t_star=150, steps=20)"
    tiles = {(long, "c"): Tile("99.9", 0.9, "n")}
    within(heat_map("t", [long, "b"], ["c", "adaptive: pgd-20 linf exact eot 20 8/255"], tiles))


def test_a_ranked_chart_puts_each_kind_where_its_value_is() -> None:
    lines = [
        ("none", [Mark(0, 1.0, 0.9, 1.0, "clean 100"), Mark(2, 0.0, 0.0, 0.1, "strongest 0")]),
        ("b", [Mark(2, 0.5, 0.4, 0.6, "strongest 50")]),
    ]
    drawing = ranked_chart("t", ("clean", "static", "strongest"), lines)
    svg = drawing.inline()
    (left, y), (middle, below) = marks(svg, "c2")
    ((right, same),) = marks(svg, "c0 hollow")
    assert middle == pytest.approx((left + right) / 2) and same == y < below
    assert [key.name for key in drawing.keys] == ["clean", "strongest"]
    assert list(drawing.notes) == ["clean 100", "strongest 0", "strongest 50"]


def test_differences_are_on_their_side_of_none() -> None:
    up, down, unsure = (
        Point(0, 0.04, 0.01, 0.07, "u"),
        Point(0, -0.04, -0.06, -0.02, "d"),
        Point(0, 0, -0.01, 0.01, "n"),
    )
    svg = forest_chart("t", "points", [("a", up), ("b", down), ("c", unsure)]).inline()
    ((right, _),), ((left, _),), ((zero, _),) = marks(svg, "c1"), marks(svg, "c2"), marks(svg, "c0 hollow")
    assert right - zero == pytest.approx(zero - left, abs=0.2) and right > zero


def test_an_axis_of_differences_reaches_as_far_as_they_do_on_either_side() -> None:
    much, little = Point(0, 0.95, 0.93, 0.97, "m"), Point(0, -0.02, -0.04, -0.01, "l")
    svg = forest_chart("t", "points", [("much", much), ("little", little)]).inline()
    ticks = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="\d+" text-anchor="middle">[-+\d]+</text>', svg)]
    names = re.findall(r'text-anchor="middle">([-+\d]+)</text>', svg)
    assert names == ["-20", "0", "+20", "+40", "+60", "+80", "+100"]
    ((mark, _),) = marks(svg, "c1")
    assert mark == pytest.approx(ticks[1] + 0.95 * (ticks[6] - ticks[1]), abs=0.2)
    # The line of none is at the left: names begin beside it, and do not cross it.
    assert all(float(x) > ticks[1] for x in re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="axis over">', svg))


def test_a_difference_that_is_not_finite_has_no_mark() -> None:
    nan, inf = Point(0, math.nan, math.nan, math.nan, "n"), Point(0, 0.1, -math.inf, math.inf, "i")
    svg = forest_chart(
        "t", "points", [("none", nan), ("wide", inf), ("b", Point(0, -0.04, -0.06, -0.02, "d"))]
    ).inline()
    assert len(marks(svg, "c2")) == 1 and "nan" not in svg and "inf" not in svg and "wide" not in svg


def test_tiles_are_as_strong_as_their_numbers() -> None:
    tiles = {("a", "x"): Tile("1.0", 1.0, "n", colour=0), ("b", "x"): Tile("0.5", 0.5, "n", colour=1, strong=True)}
    svg = heat_map("t", ["a", "b", "c"], ["x", "y"], tiles).inline()
    found = re.findall(r'<rect class="tile c(\d)" x="([\d.]+)" y="(\d+)".*?fill-opacity="([\d.]+)"/>', svg)
    assert [(colour, y) for colour, _, y, _ in found] == [("0", "30"), ("1", "58")]
    assert float(found[0][3]) - 0.04 == pytest.approx(2 * (float(found[1][3]) - 0.04), abs=0.01)
    assert svg.count("value strong") == 1 and svg.count("<rect") == 2


def contrast(one: str, two: str) -> float:
    """WCAG 2.1 contrast of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_text_can_be_read_in_either_scheme(scheme: dict[str, str]) -> None:
    for ground in ("paper", "card"):
        assert contrast(scheme["ink"], scheme[ground]) > 7 and contrast(scheme["soft"], scheme[ground]) > 4.5
    card, ink = scheme["card"], scheme["ink"]
    for name in ("link", "error", "warning", "note"):
        assert contrast(scheme[name], card) > 4.5 and contrast(scheme[name], scheme["paper"]) > 4.5
    for number in range(6):
        assert contrast(scheme[f"c{number}"], card) > 3
    for number in (1, 3, 4):  # the colours of tiles, at their strongest
        mixed = [
            round(0.40 * int(scheme[f"c{number}"][i : i + 2], 16) + 0.60 * int(card[i : i + 2], 16))
            for i in (1, 3, 5)
        ]
        assert contrast("#" + "".join(f"{part:02x}" for part in mixed), ink) > 4.5
    assert "var(--c3)" in style({name: f"var(--{name})" for name in scheme})


# Linear RGB of the three dichromacies, severity 1 (Machado, Oliveira and Fernandes 2009, table 1), and OKLab
# (Ottosson 2020), in which a distance of 0.02 is just noticeable.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def smallest_difference(colours: list[str]) -> float:
    """The smallest OKLab distance of two colours to anybody."""
    levels = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    found = []
    for matrix in VISION.values():
        seen = np.clip(linear @ np.transpose(matrix), 0, 1)
        lab = np.cbrt(seen @ np.transpose(LMS)) @ np.transpose(LAB)
        found += [float(np.linalg.norm(lab[i] - lab[j])) for i in range(len(lab)) for j in range(i)]
    return min(found)


@pytest.mark.parametrize(("scheme", "least"), [(LIGHT, 0.155), (DARK, 0.155)])
def test_lines_differ_to_people_with_any_colour_vision(scheme: dict[str, str], least: float) -> None:
    assert smallest_difference([scheme[f"c{number}"] for number in range(6)]) > least
    # Okabe and Ito's first six colours reach half of that, which also shows that the measure can fail.
    assert smallest_difference(["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9"]) < 0.08
