"""The house: imports run one way between the packages, between the rooms of ``workflows``, and in no circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.imports import PACKAGES, house

ROOT = Path(__file__).parents[1]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("leaderboard",),
    ("regression",),
    ("paper",),
    ("report", "tracking"),
    ("formats",),
    ("analysis",),
    ("published",),
    ("tables",),
    ("audit", "engine", "images"),
    ("results",),
    ("preflight",),
    ("planning", "training", "writing"),
    ("grid", "monitoring"),
    ("assets",),
    ("documents", "statistics", "store"),
)
"""The rooms of ``workflows``: one imports from lower floors alone."""

FLOOR = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def upward(arrows: dict[str, set[str]]) -> list[str]:
    """Imports that run up, or sideways between two rooms of one floor."""
    found = []
    for module, targets in arrows.items():
        for target in targets:
            here, there = module.split("."), target.split(".")
            if here[0] != there[0]:
                wrong = PACKAGES.index(there[0]) < PACKAGES.index(here[0])
            elif here[0] == "workflows" and len(here) > 1 and len(there) > 1 and here[1] != there[1]:
                wrong = FLOOR[there[1]] >= FLOOR[here[1]]
            else:
                wrong = False
            if wrong:
                found.append(f"{module} imports {target}")
    return sorted(found)


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a loop (Tarjan); a package's face imports what it hands on."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for target in arrows[module]:
            if target not in arrows:
                continue
            if target not in order:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], order[target])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in arrows:
        if module not in order:
            visit(module)
    return found


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    return house(ROOT)


def test_every_room_has_a_floor_and_says_its_idea(arrows: dict[str, set[str]]) -> None:
    rooms = {module.split(".")[1] for module in arrows if module.startswith("workflows.")}
    assert rooms <= set(FLOOR)
    for room in rooms:
        text = (ROOT / "workflows" / room / "__init__.py").read_text(encoding="utf-8")
        assert len(ast.get_docstring(ast.parse(text)) or "") > 60, room


def test_imports_run_down(arrows: dict[str, set[str]]) -> None:
    assert upward(arrows) == []


def test_no_circle(arrows: dict[str, set[str]]) -> None:
    assert circles(arrows) == []


def test_a_room_has_few_files() -> None:
    for room in FLOOR:
        if not (ROOT / "workflows" / room).is_dir():
            continue
        files = [path for path in (ROOT / "workflows" / room).glob("*.py") if path.name != "__init__.py"]
        assert 1 <= len(files) <= 10, f"{room} has {len(files)} modules"


def test_an_arrow_that_is_turned_round_is_found(tmp_path: Path) -> None:
    for name, text in {
        "workflows/__init__.py": "",
        "workflows/store/__init__.py": "",
        "workflows/store/files.py": "def f():\n    from workflows.engine import run",
        "workflows/engine/__init__.py": "",
        "workflows/engine/run.py": "from workflows.store import files\nimport tasks.compute",
        "workflows/report/__init__.py": "",
        "workflows/report/page.py": "import workflows.tracking.track",
        "workflows/tracking/__init__.py": "",
        "workflows/tracking/track.py": "",
        "tasks/__init__.py": "",
        "tasks/compute.py": "",
        "defense/__init__.py": "",
        "defense/spec.py": "from tasks.compute import Context",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    arrows = house(tmp_path)
    assert upward(arrows) == [
        "defense.spec imports tasks.compute",
        "workflows.report.page imports workflows.tracking.track",
        "workflows.store.files imports workflows.engine.run",
    ]
    assert circles(arrows) == [["workflows.engine.run", "workflows.store.files"]]
