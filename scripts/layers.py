"""Place the nodes of a graph without circles on floors, so that every arrow points down and few cross.

Floors are longest paths to the ground. Arrows that others imply are left out (the transitive reduction). An arrow
over several floors gets a waypoint on each; waypoints and nodes are ordered by the barycentres of their neighbours
(Sugiyama, Tagawa and Toda 1981).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Layers", "floors", "reduced"]

Graph = Mapping[str, set[str]]


def floors(graph: Graph) -> dict[str, int]:
    """Return the floor of each node: 0 if it points at nothing, else one above the highest that it points at."""
    placed: dict[str, int] = {}

    def floor(node: str) -> int:
        if node not in placed:
            placed[node] = 1 + max((floor(target) for target in graph[node]), default=-1)
        return placed[node]

    for node in graph:
        floor(node)
    return placed


def reduced(graph: Graph) -> dict[str, set[str]]:
    """Return the graph without the arrows whose target can be reached through another one."""
    below: dict[str, set[str]] = {}
    for node in sorted(graph, key=floors(graph).__getitem__):
        below[node] = graph[node].union(*(below[target] for target in graph[node]))
    return {
        node: {target for target in targets if not any(target in below[other] for other in targets - {target})}
        for node, targets in graph.items()
    }


@dataclass(frozen=True)
class Waypoint:
    """Where an arrow passes a floor on which it does not end."""

    source: str
    target: str
    floor: int


Slot = str | Waypoint


class Layers:
    """Nodes and waypoints in rows from the top floor down, ordered and with an x of their centre each.

    Arguments:
        graph: Nodes with what they point at, without circles.
        widths: Width of each node's box.
        gap: Least room between two boxes.
    """

    def __init__(self, graph: Graph, widths: Mapping[str, float], gap: float) -> None:
        self.floor = floors(graph)
        self.arrows = {node: sorted(targets) for node, targets in reduced(graph).items()}
        self.widths = widths
        self.gap = gap
        self.routes = {(node, target): self._route(node, target) for node in graph for target in self.arrows[node]}
        self.rows = self._rows()
        self._order()
        self.x = self._place()

    def _route(self, source: str, target: str) -> list[Slot]:
        between = range(self.floor[source] - 1, self.floor[target], -1)
        return [source, *(Waypoint(source, target, floor) for floor in between), target]

    def _rows(self) -> list[list[Slot]]:
        rows: list[list[Slot]] = [[] for _ in range(1 + max(self.floor.values()))]
        for node in sorted(self.floor):
            rows[self.floor[node]].append(node)
        for route in self.routes.values():
            for slot in route[1:-1]:
                assert isinstance(slot, Waypoint)
                rows[slot.floor].append(slot)
        self.up: dict[Slot, list[Slot]] = {slot: [] for row in rows for slot in row}
        self.down: dict[Slot, list[Slot]] = {slot: [] for row in rows for slot in row}
        for route in self.routes.values():
            for above, below in pairwise(route):
                self.down[above].append(below)
                self.up[below].append(above)
        return rows[::-1]

    def _order(self) -> None:
        best, fewest = [list(row) for row in self.rows], self._crossings()
        for sweep in range(24):
            downward = sweep % 2 == 0
            neighbours = self.up if downward else self.down
            for row in self.rows if downward else self.rows[::-1]:
                position = {slot: index for line in self.rows for index, slot in enumerate(line)}
                before = {slot: index for index, slot in enumerate(row)}

                def barycentre(
                    slot: Slot,
                    near: dict[Slot, list[Slot]] = neighbours,
                    at: dict[Slot, int] = position,
                    was: dict[Slot, int] = before,
                ) -> tuple[float, int]:
                    known = [at[other] for other in near[slot]]
                    return (sum(known) / len(known) if known else was[slot], was[slot])

                row.sort(key=barycentre)
            if (crossings := self._crossings()) < fewest:
                best, fewest = [list(row) for row in self.rows], crossings
        self.rows = best

    def _crossings(self) -> int:
        total = 0
        for upper, lower in pairwise(self.rows):
            position = {slot: index for index, slot in enumerate(lower)}
            ends = [
                position[target] for slot in upper for target in sorted(self.down[slot], key=position.__getitem__)
            ]
            total += sum(first > second for index, first in enumerate(ends) for second in ends[index + 1 :])
        return total

    def _width(self, slot: Slot) -> float:
        return self.widths[slot] if isinstance(slot, str) else 10.0

    def _place(self) -> dict[Slot, float]:
        x: dict[Slot, float] = {}
        for row in self.rows:
            x |= self._spread(row, [0.0] * len(row))
        for sweep in range(40):
            near = self.up if sweep % 2 == 0 else self.down
            for row in self.rows if sweep % 2 == 0 else self.rows[::-1]:
                both = [near[slot] or self.up[slot] or self.down[slot] for slot in row]
                wishes = [
                    sum(x[other] for other in others) / len(others) if others else x[slot]
                    for slot, others in zip(row, both, strict=True)
                ]
                x |= self._spread(row, wishes)
        left = min(x[slot] - self._width(slot) / 2 for slot in x)
        return {slot: value - left for slot, value in x.items()}

    def _spread(self, row: Sequence[Slot], wishes: Sequence[float]) -> dict[Slot, float]:
        """Least-squares positions near the wishes that keep the order and the gaps (pool adjacent violators)."""
        offsets = [0.0]
        for left, right in pairwise(row):
            offsets.append(offsets[-1] + (self._width(left) + self._width(right)) / 2 + self.gap)
        pools: list[list[float]] = []
        for wish, offset in zip(wishes, offsets, strict=True):
            pools.append([wish - offset])
            while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
                last = pools.pop()
                pools[-1] += last
        starts = [_mean(pool) for pool in pools for _ in pool]
        return {slot: start + offset for slot, start, offset in zip(row, starts, offsets, strict=True)}

    @property
    def width(self) -> float:
        """Width of the widest floor."""
        return max(self.x[slot] + self._width(slot) / 2 for slot in self.x)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
