"""Figures put values where they are: places on the canvas are inverted and compared."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from workflows.report.charts import DARK, LIGHT, Point, Series, Tile, heat_map, line_chart, style

X0, X1, Y0, Y1 = 56, 624, 312, 16


def corners(svg: str, tag: str = "polyline") -> list[tuple[float, float]]:
    """Places of the first line or band, as x in [0, 1] of the axis and y in [0, 1]."""
    found = re.search(rf'<{tag} class="[^"]+" points="([^"]+)"', svg)
    assert found is not None
    pairs = [tuple(map(float, pair.split(","))) for pair in found[1].split()]
    return [(round((x - X0) / (X1 - X0), 3), round((Y0 - y) / (Y0 - Y1), 3)) for x, y in pairs]


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
    one, ten, thousand = (float(x) for x in re.findall(r'<circle class="dot c0" cx="([\d.]+)"', svg))
    assert thousand - ten == pytest.approx(2 * (ten - one), abs=0.2)
    assert re.findall(r'text-anchor="middle">([\d,]+)<', svg) == ["1", "10", "100", "1,000"]
    bars = re.findall(r'<line class="bar c0" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', svg)
    assert [(a == b, (Y0 - float(c)) / (Y0 - Y1), (Y0 - float(d)) / (Y0 - Y1)) for a, b, c, d in bars] == [
        (True, pytest.approx(0.4, abs=1e-3), pytest.approx(0.6, abs=1e-3))
    ] * 3


def test_ticks_of_a_short_logarithmic_axis_do_not_reach_beyond_the_data() -> None:
    line = Series("s", [Point(x, 0.5, 0.4, 0.6, "p") for x in (3, 40)], kind="points")
    svg = line_chart([line], "e", "y", logarithmic=True).inline()
    assert re.findall(r'text-anchor="middle">([\d,]+)<', svg) == ["2", "5", "10", "20", "50"]


def test_points_at_one_place_do_not_hide_each_other() -> None:
    lines = [Series(name, [Point(5, 0.9, 0.8, 1, name)], kind="points") for name in "abc"]
    svg = line_chart(lines, "e", "y", logarithmic=True).inline()
    a, b, c = (float(x) for x in re.findall(r'<circle class="dot c\d" cx="([\d.]+)"', svg))
    assert c - b == pytest.approx(9, abs=0.2) and b - a == pytest.approx(9, abs=0.2)


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


def test_the_ninth_line_differs_from_the_first() -> None:
    lines = [Series(str(i), exact((0.0, 1.0), (1.0, 0.0))) for i in range(9)]
    drawing = line_chart(lines, "x", "y")
    first, ninth = drawing.keys[0].mark, drawing.keys[8].mark
    assert 'class="line c0"' in first and 'class="line c0"' in ninth and first != ninth


def test_tiles_are_as_strong_as_their_numbers() -> None:
    tiles = {("a", "x"): Tile("1.0", 1.0, "n"), ("b", "x"): Tile("0.5", 0.5, "n", colour=1, strong=True)}
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
    for number in range(2):  # the colours of tiles, at their strongest
        mixed = [
            round(0.56 * int(scheme[f"c{number}"][i : i + 2], 16) + 0.44 * int(card[i : i + 2], 16))
            for i in (1, 3, 5)
        ]
        assert contrast("#" + "".join(f"{part:02x}" for part in mixed), ink) > 3.5
    assert "var(--c3)" in style({name: f"var(--{name})" for name in scheme})
