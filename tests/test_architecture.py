"""The figures of docs/architecture.md show what the code imports, and the page names every room."""

from __future__ import annotations

import copy
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from scripts.architecture import FLOWS, LIFE, house_data, house_figure, life_figure, shown
from scripts.layers import Layers, floors, reduced

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs/figures/house.svg"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return house_data()


def test_the_committed_figure_shows_the_floors_and_arrows_of_the_code(data: dict[str, Any]) -> None:
    assert shown(FIGURE.read_text()) == data, "run python -m scripts.architecture"


def test_the_data_are_those_of_a_house_whose_imports_are_known(tmp_path: Path) -> None:
    for name, text in {
        "workflows/__init__.py": "",
        "workflows/cli/__init__.py": "",
        "workflows/cli/run.py": "import workflows.grid.load, workflows.store, tasks.compute",
        "workflows/grid/__init__.py": "",
        "workflows/grid/load.py": "def f():\n    from workflows.store import Store\n    import defense.spec",
        "workflows/store/__init__.py": "class Store: ...",
        "workflows/audit/__init__.py": "import workflows.grid.load",
        "tasks/__init__.py": "",
        "tasks/compute.py": "",
        "defense/__init__.py": "",
        "defense/spec.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert house_data(tmp_path) == {
        "rooms": {"workflows": ["audit", "cli", "grid", "store"], "tasks": ["compute"], "defense": ["spec"]},
        "floors": [["audit", "cli"], ["grid"], ["store"]],
        # cli imports the store too, which grid implies.
        "arrows": {"audit": ["grid"], "cli": ["grid"], "grid": ["store"]},
        "packages": [["workflows", "defense"], ["workflows", "tasks"]],
    }


def test_an_import_that_is_new_makes_the_figure_stale(data: dict[str, Any]) -> None:
    changed = copy.deepcopy(data)
    changed["arrows"]["statistics"] = ["store"]
    assert shown(house_figure(changed)) == changed != data
    with pytest.raises(ValueError, match=r"python -m scripts\.architecture"):
        shown("<svg></svg>")


def test_every_room_is_drawn_once_and_every_arrow_runs_down_inside_the_picture(data: dict[str, Any]) -> None:
    picture = ElementTree.fromstring(house_figure(data))
    names = [text.text for text in picture.iter(f"{SVG}text") if text.get("class") == "name"]
    assert sorted(names) == sorted(room for rooms in data["rooms"].values() for room in rooms)
    width, height = (float(number) for number in picture.attrib["viewBox"].split()[2:])
    boxes = [
        [float(box.attrib[side]) for side in ("x", "y", "width", "height")]
        for box in picture.iter(f"{SVG}rect")
        if box.get("class") in ("room", "leaf")
    ]
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    for index, (x, y, w, h) in enumerate(boxes):
        for other_x, other_y, other_w, other_h in boxes[index + 1 :]:
            apart = x + w < other_x or other_x + other_w < x or y + h < other_y or other_y + other_h < y
            assert apart, f"two boxes overlap at {x}, {y}"
    arrows = [path.attrib["d"] for path in picture.iter(f"{SVG}path") if path.get("class") == "arrow"]
    assert len(arrows) == sum(map(len, data["arrows"].values()))
    for arrow in arrows:
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", arrow)]
        assert numbers[1] < numbers[-1]


def test_the_reduction_keeps_what_can_be_reached_and_floors_fall_along_every_arrow() -> None:
    rng = random.Random(3)
    names = [f"room{number}" for number in range(14)]
    for _ in range(20):
        graph = {
            name: {other for other in names[index + 1 :] if rng.random() < 0.3} for index, name in enumerate(names)
        }
        few, floor = reduced(graph), floors(graph)

        def reached(arrows: dict[str, set[str]], name: str) -> set[str]:
            return set().union(*({target} | reached(arrows, target) for target in arrows[name]))

        for name in names:
            assert few[name] <= graph[name] and reached(few, name) == reached(graph, name)
            assert all(floor[target] < floor[name] for target in graph[name])
            for target in few[name]:
                without = {**few, name: few[name] - {target}}
                assert target not in reached(without, name), "an arrow that others imply is kept"
        layers = Layers(graph, dict.fromkeys(names, 80.0), 20.0)
        for row in layers.rows:
            for left, right in pairwise(row):
                room = (layers._width(left) + layers._width(right)) / 2 + 20
                assert layers.x[right] - layers.x[left] >= room - 1e-6


def test_the_life_of_a_unit_goes_through_rooms_that_exist() -> None:
    assert (ROOT / "docs/figures/life-of-a-unit.svg").read_text() == life_figure()
    names = [step.name for step in LIFE]
    assert len(set(names)) == len(names)
    assert all((ROOT / step.code / "__init__.py").is_file() for step in LIFE)
    assert {end for flow in FLOWS for end in (flow.source, flow.target)} == set(names)
    page = (ROOT / "docs/architecture.md").read_text()
    assert all(step.code in page for step in LIFE if step.lane != "store" and step.column < 6)


def test_the_page_names_every_room_once_and_no_other(data: dict[str, Any]) -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.split("| room of `workflows` |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == data["rooms"]["workflows"]
    for where in re.findall(r"\| `([\w/]+(?:\.py)?)/?`(?:,.*)? \|$", page.split("## Where to look")[1], re.MULTILINE):
        assert (ROOT / where).exists(), where


@pytest.mark.parametrize("name", ["house", "life-of-a-unit"])
def test_a_figure_has_colours_for_light_and_dark(name: str) -> None:
    text = (ROOT / f"docs/figures/{name}.svg").read_text()
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    classes = set(re.findall(r'class="([\w ]+)"', text.split("</style>")[1]))
    used = {name for names in classes for name in names.split()} - {"package", "middle", "end", "dashed"}
    coloured = re.findall(r"\.(\w+)(?=[^{}]*\{[^}]*(?:fill|stroke):)", dark.split("</style>")[0])
    assert used <= set(coloured), used - set(coloured)
    assert all(f".{name}" in light for name in used)
