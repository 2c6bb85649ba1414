"""``puregrid compare``: two runs cell by cell, on the same images, and what differs in their specs.

All differences are second run minus first. Cells are matched in three rounds, each among what the rounds before left:

1. the same spec (data, weights by hash, every parameter, draws, seed, aggregation);
2. the same name in tables (data set, classifier, defence, attack, budget, seed): new weights or code, say;
3. the same kinds of data set, classifier, purifier and attack, the same norm, budget and seed, in the order of the
   grid, if both runs have equally many of them: another t* or number of steps, which is in the name.

A match of rounds 2 and 3 comes with every field that differs. Cells with other budgets never match.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from workflows.regression.snapshots import CellOutcome, Snapshot, paired_places
from workflows.statistics.exact_tests import McNemar, mcnemar
from workflows.statistics.multiplicity import holm
from workflows.statistics.paired import PairedDifference, paired_difference
from workflows.statistics.sequences import anytime_difference, evidence

__all__ = [
    "ANYTIME",
    "Change",
    "Comparison",
    "Match",
    "Sides",
    "changed_sides",
    "compare_runs",
    "match",
    "spec_changes",
]


ANYTIME = "anytime-valid 95 %"
"""What intervals promise where a run may have stopped early; elsewhere they hold at a fixed number of images."""


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
        """Whether the threat is another: attack, corruption or certificate."""
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
    """Return every field in which two specs differ, innermost fields by their paths."""
    left, right = dict(_leaves(first)), dict(_leaves(second))
    return tuple(
        Change(field, left.get(field), right.get(field))
        for field in dict.fromkeys([*left, *right])
        if left.get(field) != right.get(field)
    )


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key in value for leaf in _leaves(value[key], f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [leaf for i, item in enumerate(value) for leaf in _leaves(item, f"{path}[{i}]")]
    return [(path, value)]


@dataclass(frozen=True)
class Match:
    """A cell of one run and its counterpart, None on the side that has none."""

    first: CellOutcome | None
    second: CellOutcome | None
    changes: tuple[Change, ...] = ()

    @property
    def name(self) -> str:
        """Name of the cell in the second run, the newer one, if it is there."""
        cell = self.second or self.first
        assert cell is not None
        return cell.name


def match(first: Snapshot, second: Snapshot) -> list[Match]:
    """Pair the cells of two runs: those of the second in its order, then those that only the first has."""
    partner: dict[int, int] = {}  # by position in the second run, position in the first
    rounds: Sequence[Callable[[CellOutcome], Hashable]] = (
        lambda cell: cell.spec_id,
        lambda cell: cell.name,
        _place_in_grid,
    )
    for key in rounds:
        left, right = defaultdict(list), defaultdict(list)
        matched = set(partner.values())
        for i, cell in enumerate(first.cells):
            if i not in matched:
                left[key(cell)].append(i)
        for j, cell in enumerate(second.cells):
            if j not in partner:
                right[key(cell)].append(j)
        for value, places in right.items():
            if len(left[value]) == len(places):
                partner.update(zip(places, left[value], strict=True))
    matches = []
    for j, new in enumerate(second.cells):
        old = first.cells[partner[j]] if j in partner else None
        matches.append(Match(old, new, () if old is None else spec_changes(old.spec, new.spec)))
    matched = set(partner.values())
    return matches + [Match(cell, None) for i, cell in enumerate(first.cells) if i not in matched]


def _place_in_grid(cell: CellOutcome) -> Hashable:
    """Return what has to agree for two cells to have the same place in two grids."""
    spec = {**cell.spec, **(cell.spec.get("smoothed") or {})}
    source = spec.get("source") or {}
    threat = source.get("attack") or source.get("corruption") or spec.get("certificate") or {}
    parts = cell.name.split(" · ")
    classifier = parts[1] if len(parts) == 6 else ""  # tells two sets of weights of one architecture apart
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
        difference: The paired difference of :attr:`measure` on shared images; None where it cannot be computed.
        measure: What ``difference`` is of: Avg; of a certificate, right with radius 0 or more.
        further: The paired differences of a certificate's other measures, by name: right at some radii, ACR.
        answers: McNemar's test of right answers, by the cell's aggregation; where a run may have stopped early its p
            is the anytime-valid one, and intervals are confidence sequences (:mod:`workflows.statistics.sequences`).
        anytime: Whether that is so.
        p_holm: Its p, corrected for the number of cells.
        changes: Fields in which the specs differ.
        note: What prevents the comparison, or limits it.
    """

    cell: str
    difference: PairedDifference | None = None
    measure: str = "Avg"
    further: Mapping[str, PairedDifference] = field(default_factory=dict)
    answers: McNemar | None = None
    p_holm: float | None = None
    changes: tuple[Change, ...] = ()
    note: str = ""
    anytime: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON; ``difference`` is second minus first."""
        content: dict[str, Any] = {"cell": self.cell, "note": self.note}
        if self.difference is not None and self.answers is not None:
            content |= {
                "measure": self.measure,
                "images": self.difference.images,
                **_as_json(self.difference),
                "further": {name: _as_json(difference) for name, difference in self.further.items()},
                "right_only_in_first": self.answers.only_first,
                "right_only_in_second": self.answers.only_second,
                "p": self.answers.p,
                "p_holm": self.p_holm,
                **({"guarantee": ANYTIME} if self.anytime else {}),
            }
        return {**content, "changes": [asdict(change) for change in self.changes]}


def _as_json(difference: PairedDifference) -> dict[str, float]:
    return {
        "first": difference.first,
        "second": difference.second,
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
    }


def compare_runs(first: Snapshot, second: Snapshot) -> list[Comparison]:
    """Compare two runs, each cell on the images that both have judged."""
    comparisons = [_compare_cell(pair) for pair in match(first, second)]
    corrected = iter(holm([cell.answers.p for cell in comparisons if cell.answers is not None]))
    return [cell if cell.answers is None else replace(cell, p_holm=next(corrected)) for cell in comparisons]


def _compare_cell(pair: Match) -> Comparison:
    first, second = pair.first, pair.second
    if first is None or second is None:
        return Comparison(pair.name, note=f"only in the {'second' if first is None else 'first'} run")
    if first.data != second.data:
        return Comparison(pair.name, changes=pair.changes, note="judged on other images: the data sets differ")
    left, right, anytime = paired_places(first, second)
    if len(left) < 2:
        note = "only one image in common" if len(left) else "no images in common"
        return Comparison(pair.name, changes=pair.changes, note=note)
    notes = []
    if not len(left) == len(first.images) == len(second.images):
        notes.append(f"on {len(left)} shared images of {len(first.images)} and {len(second.images)}")
    if anytime:
        notes.append("confidence sequence")
    if not (first.complete and second.complete):
        notes.append("not complete")
    common = [name for name in second.values if name in first.values]
    if not common:
        return Comparison(pair.name, changes=pair.changes, note="no measure in common")
    compared = anytime_difference if anytime else paired_difference
    differences = {
        name: compared(first.values[name].values[left], second.values[name].values[right]) for name in common
    }
    main = common[0]
    answer = "answer" if "answer" in common else main
    is_right = [
        cell.values[answer].counts[places] == cell.values[answer].of
        for cell, places in ((first, left), (second, right))
    ]
    answers = mcnemar(*is_right)
    if anytime:
        answers = answers._replace(p=_anytime_p(*is_right))
    return Comparison(
        pair.name,
        differences[main],
        measure=main,
        further={name: difference for name, difference in differences.items() if name not in (main, "answer")},
        answers=answers,
        changes=pair.changes,
        note="; ".join(notes),
        anytime=anytime,
    )


@dataclass(frozen=True)
class Sides:
    """The images of a cell that are right in one run alone, by ascending id; of answers, as McNemar's test has them.

    Arguments:
        cell: Its name.
        names: What either run calls it.
        only_first: Ids of images right in the first run alone.
        only_second: Those right in the second alone.
        both: How many are right in both.
        neither: How many in neither.
    """

    cell: str
    names: tuple[str, str]
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    both: int
    neither: int


def changed_sides(first: Snapshot, second: Snapshot) -> list[Sides]:
    """Return which images changed sides in each cell that :func:`compare_runs` compares, in its order."""
    found = []
    for pair in match(first, second):
        one, other = pair.first, pair.second
        if one is None or other is None or one.data != other.data:
            continue
        left, right, _ = paired_places(one, other)
        common = [name for name in other.values if name in one.values]
        if len(left) < 2 or not common:
            continue
        answer = "answer" if "answer" in common else common[0]
        was, now = (
            cell.values[answer].counts[places] == cell.values[answer].of
            for cell, places in ((one, left), (other, right))
        )
        ids = np.asarray(one.images)[left]
        lost, won = ids[was & ~now], ids[~was & now]
        found.append(
            Sides(
                pair.name,
                (one.name, other.name),
                tuple(sorted(int(i) for i in lost)),
                tuple(sorted(int(i) for i in won)),
                int((was & now).sum()),
                int((~was & ~now).sum()),
            )
        )
    return found


def _anytime_p(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Two-sided p of the test that two sets of right answers differ, at any number of images."""
    up = (second.astype(np.float64) - first + 1) / 2
    return min(1.0, 2 * min(evidence(up, 0.5), evidence(1 - up, 0.5)))
