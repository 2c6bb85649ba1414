"""``puregrid compare``: two runs cell by cell, on the same images, and what differs in their specs.

Cells are matched in three rounds, each among what the rounds before have left:

1. the same spec (data, weights by hash, every parameter, draws, seed, aggregation);
2. the same name in tables (data set, classifier, defence, attack, budget, seed): new weights or code, say;
3. the same kinds of data set, classifier, purifier and attack, the same norm, budget and seed, in the order of the
   grid, if both runs have equally many of them: another t* or number of steps, which is in the name.

A match of rounds 2 and 3 comes with every field that differs. Cells with other budgets never match.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from workflows.regression.snapshots import Outcome, Snapshot
from workflows.statistics.paired import Drop, holm, mcnemar, paired_drop

__all__ = ["Change", "Comparison", "Match", "compare", "comparison_text", "match", "spec_changes", "table"]


@dataclass(frozen=True)
class Change:
    """One field in which two specs differ.

    Arguments:
        field: Its path, like ``purifier.t_star`` or ``source.attack.steps``.
        first: Its value in the first run, None where there is no such field.
        second: In the second.
    """

    field: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"{self.field} {_short(self.first)} -> {_short(self.second)}"

    @property
    def of_threat(self) -> bool:
        """Whether the defence is up against something else: another attack, corruption or certificate."""
        # What an attack knows of the defence changes with the defence: that is no change of the attack.
        path = self.field.split(".")
        if path[0] == "certificate" or path[:2] == ["smoothed", "sigma"]:
            return True
        return path[0] == "source" and not any(part.split("[")[0] in _OF_DEFENCE for part in path)


_OF_DEFENCE = {"classifier", "purifier", "dataset", "compute", "version", "seed"}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if len(text) == 64 else text if len(text) <= 40 else f"{text[:37]}..."


def spec_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Change, ...]:
    """Every field in which two specs differ, innermost fields by their paths."""
    left, right = dict(_flat(first)), dict(_flat(second))
    return tuple(
        Change(field, left.get(field), right.get(field))
        for field in dict.fromkeys([*left, *right])
        if left.get(field) != right.get(field)
    )


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key in value for leaf in _flat(value[key], f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [leaf for i, item in enumerate(value) for leaf in _flat(item, f"{path}[{i}]")]
    return [(path, value)]


@dataclass(frozen=True)
class Match:
    """A cell of one run and its counterpart, None on the side that has none."""

    first: Outcome | None
    second: Outcome | None
    changes: tuple[Change, ...] = ()

    @property
    def name(self) -> str:
        """Of the second run, since that is the newer one."""
        cell = self.second or self.first
        assert cell is not None
        return cell.name


def match(first: Snapshot, second: Snapshot) -> list[Match]:
    """Pair the cells of two runs: those of the second in its order, then what only the first has."""
    partner: dict[int, int] = {}
    rounds: Sequence[Callable[[Outcome], Hashable]] = (
        lambda cell: cell.spec_id,
        lambda cell: cell.name,
        _kind,
    )
    for key in rounds:
        left, right = defaultdict(list), defaultdict(list)
        taken = set(partner.values())
        for i, cell in enumerate(first.cells):
            if i not in taken:
                left[key(cell)].append(i)
        for j, cell in enumerate(second.cells):
            if j not in partner:
                right[key(cell)].append(j)
        for value, places in right.items():
            if len(left[value]) == len(places):
                partner.update(zip(places, left[value], strict=True))
    found = []
    for j, new in enumerate(second.cells):
        old = first.cells[partner[j]] if j in partner else None
        found.append(Match(old, new, () if old is None else spec_changes(old.spec, new.spec)))
    matched = set(partner.values())
    return found + [Match(cell, None) for i, cell in enumerate(first.cells) if i not in matched]


def _kind(cell: Outcome) -> Hashable:
    """What has to agree for two cells to have the same place in two grids."""
    spec = {**cell.spec, **(cell.spec.get("smoothed") or {})}
    source = spec.get("source") or {}
    threat = source.get("attack") or source.get("corruption") or spec.get("certificate") or {}
    part = cell.name.split(" · ")
    classifier = part[1] if len(part) == 6 else ""  # tells two sets of weights of one architecture apart
    return (
        spec.get("stage"),
        (spec.get("dataset") or {}).get("dataset"),
        (spec.get("classifier") or {}).get("classifier"),
        classifier,
        (spec.get("purifier") or {}).get("purifier"),
        *(json.dumps(threat.get(key)) for key in ("attack", "corruption", "severity", "norm", "eps", "sigma")),
        json.dumps(sorted(source)),
        spec.get("seed"),
    )


@dataclass(frozen=True)
class Comparison:
    """Two runs in one cell.

    Arguments:
        cell: Its name.
        avg: Drop of Avg (of a certificate: right at radius 0) from the first to the second run on shared images; None
            where there is nothing to compare.
        measure: What ``avg`` is of.
        further: The drops of a certificate's other measures, by name: right at some radii, ACR.
        only_first: Images that only the first answers rightly, by the aggregated answer.
        only_second: That only the second does.
        p: McNemar's exact test of these two numbers.
        p_holm: Corrected for the number of cells.
        changes: Fields in which the specs differ.
        note: What stands in the way, or limits the comparison.
    """

    cell: str
    avg: Drop | None = None
    only_first: int = 0
    only_second: int = 0
    p: float | None = None
    p_holm: float | None = None
    measure: str = "Avg"
    further: Mapping[str, Drop] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON; ``difference`` is second minus first."""
        found: dict[str, Any] = {"cell": self.cell, "note": self.note}
        if self.avg is not None:
            found |= {
                "measure": self.measure,
                "images": self.avg.images,
                **_difference(self.avg),
                "further": {name: _difference(drop) for name, drop in self.further.items()},
                "right_only_in_first": self.only_first,
                "right_only_in_second": self.only_second,
                "p": self.p,
                "p_holm": self.p_holm,
            }
        return {**found, "changes": [asdict(change) for change in self.changes]}


def _difference(drop: Drop) -> dict[str, float]:
    return {
        "first": drop.before,
        "second": drop.now,
        "difference": drop.now - drop.before,
        "low": -drop.high,
        "high": -drop.low,
    }


def compare(first: Snapshot, second: Snapshot) -> list[Comparison]:
    """Compare two runs, each cell on the images that both have judged."""
    found = [_compared(pair) for pair in match(first, second)]
    corrected = iter(holm([one.p for one in found if one.p is not None]))
    return [one if one.p is None else replace(one, p_holm=next(corrected)) for one in found]


def _compared(pair: Match) -> Comparison:
    a, b = pair.first, pair.second
    if a is None or b is None:
        return Comparison(pair.name, note=f"only in the {'second' if a is None else 'first'} run")
    if a.data != b.data:
        return Comparison(pair.name, changes=pair.changes, note="judged on other images: the data sets differ")
    shared, left, right = np.intersect1d(a.images, b.images, assume_unique=True, return_indices=True)
    if len(shared) < 2:
        return Comparison(pair.name, changes=pair.changes, note="no images in common")
    notes = []
    if not len(shared) == len(a.images) == len(b.images):
        notes.append(f"on {len(shared)} shared images of {len(a.images)} and {len(b.images)}")
    if not (a.complete and b.complete):
        notes.append("not complete")
    common = [name for name in b.values if name in a.values]
    if not common:
        return Comparison(pair.name, changes=pair.changes, note="no measure in common")
    drops = {name: paired_drop(a.values[name].values[left], b.values[name].values[right]) for name in common}
    main = common[0]
    answer = "answer" if "answer" in a.values and "answer" in b.values else main
    one, two = (cell.values[answer].counts[at] == cell.values[answer].of for cell, at in ((a, left), (b, right)))
    only = int((one & ~two).sum()), int((two & ~one).sum())
    return Comparison(
        pair.name,
        drops[main],
        *only,
        p=mcnemar(one, two),
        measure=main,
        further={name: drop for name, drop in drops.items() if name not in (main, "answer")},
        changes=pair.changes,
        note="; ".join(notes),
    )


def comparison_text(comparisons: Sequence[Comparison], first: str, second: str) -> str:
    """For people: a line a cell, then what changed, equal changes of several cells once."""
    lines = []
    for one in comparisons:
        if one.avg is None:
            lines.append([one.cell, *"-------", one.note])
            continue
        answers = [f"{one.only_first}, {one.only_second}", f"{one.p_holm:.2g}"]
        lines.append([one.cell, one.measure, *_numbers(one.avg), *answers, one.note])
        lines += [[one.cell, name, *_numbers(drop), "-", "-", ""] for name, drop in one.further.items()]
    names = ["cell", "measure", "images", "first", "second", "second - first"]
    names += ["right only in 1st, 2nd", "p (Holm)", "note"]
    if not any(line[-1] for line in lines):
        names, lines = names[:-1], [line[:-1] for line in lines]
    title = "accuracy in %, difference with its paired 95 % interval; p of McNemar's exact test on answers"
    parts = [f"first:  {first}\nsecond: {second}\n", table(title, names, lines), changes_text(comparisons)]
    return "\n".join(part for part in parts if part)


def _numbers(drop: Drop) -> list[str]:
    return [
        str(drop.images),
        f"{100 * drop.before:.1f}",
        f"{100 * drop.now:.1f}",
        f"{100 * (drop.now - drop.before):+.1f} [{-100 * drop.high:+.1f}, {-100 * drop.low:+.1f}]",
    ]


def changes_text(found: Sequence[Any]) -> str:
    """What changed, with the number of cells that share it; found: anything with ``cell`` and ``changes``."""
    groups: dict[str, list[str]] = {}
    for one in found:
        for change in one.changes:
            groups.setdefault(str(change), []).append(one.cell)
    if not groups:
        return ""
    lines = [
        f"  {what}   ({cells[0] if len(cells) == 1 else f'{len(cells)} of {len(found)} cells'})"
        for what, cells in groups.items()
    ]
    return "\n".join(["specs differ:", *lines]) + "\n"


def table(title: str, names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in plain text, as wide as it gets."""
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for name in names:
        text = name in {"cell", "note", "verdict", "why", "measure"}
        grid.add_column(name, justify="left" if text else "right", no_wrap=True)
    for line in lines:
        grid.add_row(*line)
    console = Console(width=10_000, no_color=True, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
