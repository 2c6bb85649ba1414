"""Draw the figures of ``docs/architecture.md``: the house from the code's own imports, and the life of a unit.

    python -m scripts.architecture            # write docs/figures/*.svg
    python -m scripts.architecture --check    # exit 1 if the house is no longer what its figure shows

A room is a folder or module directly inside a package. The figure of the house carries what it shows as JSON in its
``metadata``, so that a test can hold it against the code without comparing pixels.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.imports import PACKAGES, house
from scripts.layers import Layers, Slot, floors, reduced

__all__ = ["Step", "house_data", "house_figure", "life_figure", "shown"]

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs/figures"

IDEAS = {
    "puregrid": "the front door: public names, loaded when used",
    "workflows": "what the driver does; a room imports from lower floors alone, arrows that others imply left out",
    "tasks": "what one worker does with one unit",
    "defense": "what stands between an image and the classifier's answer",
}

STYLE = """
  .paper { fill: #ffffff }
  .panel { fill: #f5f6f8; stroke: #d9dde3 }
  .room { fill: #ffffff; stroke: #3f6fb5; stroke-width: 1.4 }
  .leaf { fill: #ffffff; stroke: #aeb6c2 }
  .name, .text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1c2430 }
  .name { font-size: 14px; text-anchor: middle }
  .package { font-size: 18px; font-weight: 650; text-anchor: start }
  .soft { fill: #5b6675; font-size: 12px }
  .code { fill: #5b6675; font-size: 10.5px }
  .middle { text-anchor: middle }
  .end { text-anchor: end }
  .arrow { fill: none; stroke: #6d7b8f; stroke-width: 1.4 }
  .wide { fill: none; stroke: #3f6fb5; stroke-width: 3 }
  .dashed { stroke-dasharray: 5 4 }
  .tip { fill: #6d7b8f }
  .widetip { fill: #3f6fb5 }
"""
DARK = """
    .paper { fill: #12161c }
    .panel { fill: #1a2028; stroke: #313b48 }
    .room { fill: #222b37; stroke: #7fa9e8 }
    .leaf { fill: #222b37; stroke: #566273 }
    .name, .text { fill: #e6eaf0 }
    .soft, .code { fill: #9aa6b5 }
    .arrow { stroke: #8695a9 }
    .tip { fill: #8695a9 }
    .wide { stroke: #7fa9e8 }
    .widetip { fill: #7fa9e8 }
"""

BOX, PITCH, GAP = 34, 76, 28
"""Height of a box, distance of two floors, room between two boxes."""
WIDTH, MARGIN, TEXT = 980, 14, 210
"""Width of a figure, its margin, and the column of a panel that holds its name."""


def house_data(root: Path = ROOT) -> dict[str, Any]:
    """Return what the figure of the house shows.

    ``rooms`` are those of each package, ``floors`` those of ``workflows`` from the top, ``arrows`` its imports
    without those that others imply, ``packages`` which package imports which.
    """
    rooms: dict[str, dict[str, set[str]]] = {}
    between: set[tuple[str, str]] = set()
    for module, targets in house(root).items():
        package, _, rest = module.partition(".")
        room = rest.partition(".")[0]
        inside = rooms.setdefault(package, {})
        if room:
            inside.setdefault(room, set())
        for target in targets:
            other, _, inner = target.partition(".")
            there = inner.partition(".")[0]
            if other != package:
                between.add((package, other))
            elif room and there and there != room:
                inside[room].add(there)
    workflows = rooms["workflows"]
    height = floors(workflows)
    return {
        "rooms": {package: sorted(rooms[package]) for package in PACKAGES if package in rooms},
        "floors": [
            sorted(room for room in height if height[room] == floor) for floor in range(max(height.values()), -1, -1)
        ],
        "arrows": {room: sorted(targets) for room, targets in sorted(reduced(workflows).items()) if targets},
        "packages": sorted(map(list, between)),
    }


def shown(figure: str) -> dict[str, Any]:
    """Return the data that a figure of the house carries.

    Raises:
        ValueError: The figure carries none.
    """
    match = re.search(r'<metadata id="house">(.*?)</metadata>', figure, re.DOTALL)
    if match is None:
        raise ValueError("the figure carries no data: write it by python -m scripts.architecture")
    data: dict[str, Any] = json.loads(match[1])
    return data


def house_figure(data: dict[str, Any]) -> str:
    """Draw packages as panels: rooms of ``workflows`` on floors with arrows, those of the others side by side."""
    parts: list[str] = []
    y = float(MARGIN)
    for package, rooms in data["rooms"].items():
        if y > MARGIN:
            middle = (WIDTH + TEXT) / 2
            parts.append(_line([(middle, y), (middle, y + 34)], "wide", "widetip"))
            parts.append(_text(middle + 12, y + 21, "imports", "text soft"))
            y += 34
        draw = _floors if package == "workflows" else _rows
        inner, height = draw(data, rooms, y + 22)
        height = max(height + 44, 84)
        parts.append(
            f'<rect class="panel" x="{MARGIN}" y="{y:g}" width="{WIDTH - 2 * MARGIN}" height="{height:g}" rx="10"/>'
        )
        parts.append(_text(MARGIN + 18, y + 36, package, "text package"))
        parts += [
            _text(MARGIN + 18, y + 58 + 16 * index, line, "text soft")
            for index, line in enumerate(_wrapped(IDEAS[package], 27))
        ]
        parts += inner
        y += height
    carried = f'<metadata id="house">{json.dumps(data, separators=(",", ":"))}</metadata>'
    title = "The rooms of puregrid and what they import"
    return _svg(title, y + MARGIN, [carried, *parts])


def _floors(data: dict[str, Any], rooms: Sequence[str], top: float) -> tuple[list[str], float]:
    graph = {room: set(data["arrows"].get(room, ())) for room in rooms}
    layers = Layers(graph, {room: _box_width(room) for room in rooms}, GAP)
    left = MARGIN + TEXT + (WIDTH - 2 * MARGIN - TEXT - layers.width) / 2
    if left < MARGIN:
        raise ValueError(f"the widest floor needs {layers.width:.0f} pixels of {WIDTH}: raise WIDTH.")
    row = {slot: index for index, slots in enumerate(layers.rows) for slot in slots}

    def port(room: str, others: list[Slot], slot: Slot) -> float:
        """Where on a box's edge an arrow begins or ends: side by side, in the order of their other ends."""
        ordered = sorted(others, key=layers.x.__getitem__)
        step = min(18.0, (layers.widths[room] - 24) / max(len(ordered) - 1, 1))
        return layers.x[room] + (ordered.index(slot) - (len(ordered) - 1) / 2) * step

    parts = []
    for (source, target), route in sorted(layers.routes.items()):
        begin, end = port(source, layers.down[source], route[1]), port(target, layers.up[target], route[-2])
        points = [(left + begin, top + row[source] * PITCH + BOX)]
        for slot in route[1:-1]:
            at = top + row[slot] * PITCH
            points += [(left + layers.x[slot], at), (left + layers.x[slot], at + BOX)]
        points.append((left + end, top + row[target] * PITCH))
        parts.append(_line(points, "arrow", "tip"))
    parts += [_box(left + layers.x[room], top + row[room] * PITCH, room, "room") for room in rooms]
    return parts, (len(layers.rows) - 1) * PITCH + BOX


def _rows(data: dict[str, Any], rooms: Sequence[str], top: float) -> tuple[list[str], float]:
    lines: list[list[str]] = [[]]
    space = WIDTH - 2 * MARGIN - TEXT - 18
    for room in rooms:
        used = sum(_box_width(other) + 12 for other in lines[-1])
        if used + _box_width(room) > space:
            lines.append([])
        lines[-1].append(room)
    parts = []
    for index, line in enumerate(lines):
        x = float(MARGIN + TEXT)
        for room in line:
            width = _box_width(room)
            parts.append(_box(x + width / 2, top + index * (BOX + 12), room, "leaf"))
            x += width + 12
    return parts, len(lines) * (BOX + 12) - 12


class Step(NamedTuple):
    """A station in the life of a unit.

    Arguments:
        name: What it is called.
        code: The room that makes it.
        lane: Whose work it is.
        column: Place in the figure, from the left.
        row: Place in its lane, from the top.
    """

    name: str
    code: str
    lane: str
    column: int
    row: int = 0


LIFE = (
    Step("sweep file", "workflows/documents", "driver", 0),
    Step("cell", "workflows/grid", "driver", 1),
    Step("stage", "tasks/stages", "driver", 2),
    Step("unit", "workflows/planning", "driver", 3),
    Step("worker", "workflows/engine", "worker", 3),
    Step("rows", "workflows/store", "store", 3),
    Step("commit", "workflows/store", "store", 4),
    Step("frames", "workflows/results", "driver", 4),
    Step("Analysis", "workflows/analysis", "driver", 5),
    Step("table", "workflows/tables", "driver", 6),
    Step("report", "workflows/report", "driver", 6, 1),
    Step("MLflow", "workflows/tracking", "driver", 6, 2),
)


class Flow(NamedTuple):
    """An arrow between two stations.

    Arguments:
        source: Name of the station where it begins.
        target: Name of the station where it ends.
        label: What is written beside it.
        side: Pixels to the right of the middle, where two arrows lie side by side.
        dashed: Whether a run would be correct without it, or it is another unit's.
    """

    source: str
    target: str
    label: str = ""
    side: float = 0.0
    dashed: bool = False


FLOWS = (
    *(Flow(first, second) for first, second in (("sweep file", "cell"), ("cell", "stage"), ("stage", "unit"))),
    Flow("unit", "worker", "by Ray", -16),
    Flow("worker", "unit", "receipt", 16, True),
    Flow("worker", "rows", "writes", -16),
    Flow("rows", "worker", "inputs", 16, True),
    Flow("rows", "commit"),
    Flow("commit", "frames", "names the rows that count"),
    Flow("frames", "Analysis"),
    *(Flow("Analysis", rendering) for rendering in ("table", "report", "MLflow")),
)

LANES = {"driver": 3, "worker": 1, "store": 1}
"""Lanes from the top, with the rows that each holds."""

STATION, ROW, COLUMN = (96, 46), 58, 138
"""Size of a station, distance of two rows and of two columns."""


def life_figure() -> str:
    """Draw the stations of a unit from sweep file to table, in lanes of driver, worker and store."""
    width, height = STATION
    parts, tops, y = [], {}, float(MARGIN)
    for lane, rows in LANES.items():
        tall = 34 + rows * ROW
        parts.append(
            f'<rect class="panel" x="{MARGIN}" y="{y:g}" width="{WIDTH - 2 * MARGIN}" height="{tall}" rx="10"/>'
        )
        parts.append(_text(MARGIN + 14, y + 21, lane, "text soft"))
        tops[lane] = y + 32
        y += tall + 24
    place = {
        step.name: (MARGIN + 14 + width / 2 + step.column * COLUMN, tops[step.lane] + step.row * ROW + height / 2)
        for step in LIFE
    }
    for flow in FLOWS:
        (x1, y1), (x2, y2) = place[flow.source], place[flow.target]
        kind = "arrow dashed" if flow.dashed else "arrow"
        if x1 == x2:
            toward = 1 if y2 > y1 else -1
            ends = [(x1 + flow.side, y1 + toward * height / 2), (x2 + flow.side, y2 - toward * height / 2)]
            parts.append(_line(ends, kind, "tip", (0, toward)))
            # Between the lane where the arrow begins or ends and the next one down.
            at = max(y1, y2) - height / 2 - 44
            if flow.side < 0:
                parts.append(_text(x1 + flow.side - 8, at, flow.label, "text soft end"))
            else:
                parts.append(_text(x1 + flow.side + 8, at, flow.label, "text soft"))
        else:
            parts.append(_line([(x1 + width / 2, y1), (x2 - width / 2, y2)], kind, "tip", (1, 0)))
    for step in LIFE:
        x, middle = place[step.name]
        corner = f'x="{x - width / 2:g}" y="{middle - height / 2:g}"'
        parts.append(f'<rect class="room" {corner} width="{width}" height="{height}" rx="6"/>')
        parts.append(_text(x, middle - 2, step.name, "name"))
        parts.append(_text(x, middle + 14, step.code.removeprefix("workflows/"), "text code middle"))
    return _svg("The life of a unit, from sweep file to table", y - 24 + MARGIN, parts)


def _box_width(name: str) -> float:
    return 26 + 8.0 * len(name)


def _box(x: float, y: float, name: str, kind: str) -> str:
    width = _box_width(name)
    return (
        f'<rect class="{kind}" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX}" rx="6"/>'
        f'<text class="name" x="{x:.1f}" y="{y + BOX / 2 + 5:.1f}">{name}</text>'
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{text}</text>'


def _line(points: Sequence[tuple[float, float]], kind: str, tip: str, toward: tuple[float, float] = (0, 1)) -> str:
    """Return a smooth path that passes every point in one direction, with a tip at its end."""
    (x, y), *others = points
    dx, dy = toward
    end_x, end_y = others[-1]
    others[-1] = (end_x - 7 * dx, end_y - 7 * dy)
    path = [f"M{x:.1f} {y:.1f}"]
    for next_x, next_y in others:
        bend = 0.6 * (abs(next_x - x) if dx else abs(next_y - y))
        begin, end = (x + bend * dx, y + bend * dy), (next_x - bend * dx, next_y - bend * dy)
        path.append(f"C{begin[0]:.1f} {begin[1]:.1f} {end[0]:.1f} {end[1]:.1f} {next_x:.1f} {next_y:.1f}")
        x, y = next_x, next_y
    corners = [
        (end_x - 9 * dx - 4.5 * dy, end_y - 9 * dy - 4.5 * dx),
        (end_x - 9 * dx + 4.5 * dy, end_y - 9 * dy + 4.5 * dx),
        (end_x, end_y),
    ]
    triangle = " ".join(f"{corner_x:.1f},{corner_y:.1f}" for corner_x, corner_y in corners)
    return f'<path class="{kind}" d="{" ".join(path)}"/><polygon class="{tip}" points="{triangle}"/>'


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n"
        f"<style>{STYLE}  @media (prefers-color-scheme: dark) {{{DARK}  }}\n</style>\n"
        f'<rect class="paper" width="{WIDTH}" height="{height:g}"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def main(arguments: list[str]) -> int:
    """Write the figures, or with ``--check`` compare them; returns the exit status."""
    data, target = house_data(), FIGURES / "house.svg"
    if "--check" in arguments:
        if shown(target.read_text(encoding="utf-8")) == data:
            return 0
        print(f"{target.name} is not what the code imports: run python -m scripts.architecture", file=sys.stderr)
        return 1
    target.write_text(house_figure(data), encoding="utf-8")
    (FIGURES / "life-of-a-unit.svg").write_text(life_figure(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
