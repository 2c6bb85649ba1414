"""``puregrid check``: did a sweep get worse than its baseline by more than a stated margin?

For every cell the accuracy on each image is paired with the baseline's on the same image. Its **drop** is the paired
difference before minus now. A cell has **regressed** if

* a drop above the margin is significant: p of :func:`workflows.statistics.paired.safe_t_test` is at most alpha,
  corrected by Holm over all tests, so that a sweep in which nothing changed raises an alarm in at most a share alpha
  of the runs (a non-inferiority test: a drop has to be shown); or
* its defence asks a network more often for one answer than before, by more than the cost margin: counts are exact.
  Seconds count only on request, because they depend on the machine too.

It **holds** only where a drop would have been found. A cell is **unknown** if it has no counterpart, is on other
images, is incomplete, is aggregated otherwise or under another attack, or has too few images to show a drop of a
stated size in 80 % of the runs. Other weights, t* or code are what a check is for: they are reported, and judged.

Where either run may have stopped early (``precision`` in its sweep), drops are on the images of both, in the order in
which images come; p is that of a betting martingale and the interval a confidence sequence
(:mod:`workflows.statistics.sequences`), which hold at whatever image a run stops. The cell then holds if that
interval excludes a drop of the stated size.

The check judges Avg, the aggregated answer where several draws make one, and certified accuracy at some radii; see
:func:`measures`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from defense.errors import InvalidInput
from workflows.regression.compare import ANYTIME, Change, Match, match
from workflows.regression.snapshots import CellOutcome, Snapshot, paired_places
from workflows.statistics.multiplicity import holm
from workflows.statistics.paired import PairedDifference, paired_difference, safe_t_test
from workflows.statistics.power import detectable
from workflows.statistics.sequences import anytime_difference, evidence

__all__ = ["CellVerdict", "Gate", "Judgement", "Verdict", "check", "junit", "measures", "verdict_of"]

Verdict = Literal["holds", "regressed", "unknown"]


@dataclass(frozen=True)
class Gate:
    """What counts as worse.

    Arguments:
        margin: Drop in accuracy that is tolerated, in [0, 1).
        alpha: Chance of any false alarm in a sweep in which no cell dropped by more than the margin, in (0, 0.5).
        detect: A drop that must be found in 80 % of the runs for a cell to hold, in (margin, 1].
        cost_margin: Tolerated growth of network evaluations per answer, as a share: 0.1 for 10 %.
        seconds_margin: The same for seconds per image; None not to judge them.

    Raises:
        InvalidInput: One of them is out of range.
    """

    margin: float = 0.01
    alpha: float = 0.05
    detect: float = 0.2
    cost_margin: float = 0.0
    seconds_margin: float | None = None

    def __post_init__(self) -> None:
        for name, ok, wanted in (
            ("margin", 0 <= self.margin < 1, "a drop of at least 0 and below 1, like 0.01 for one point"),
            ("alpha", 0 < self.alpha < 0.5, "above 0 and below 0.5"),
            ("detect", self.margin < self.detect <= 1, f"above the margin, {self.margin:g}, and at most 1"),
            ("cost-margin", self.cost_margin >= 0, "a share of at least 0, like 0.1 for 10 %"),
            ("seconds-margin", (self.seconds_margin or 0) >= 0, "a share of at least 0, like 0.2 for 20 %"),
        ):
            if not ok:
                raise InvalidInput(
                    f"{getattr(self, name.replace('-', '_'))} is invalid: it must be {wanted}.", where=f"--{name}"
                )


@dataclass(frozen=True)
class Judgement:
    """One measure of one cell.

    Arguments:
        measure: Its name.
        drop: The paired difference from now (``first``) to before (``second``): positive where accuracy fell.
        p: p of the test that the drop is at most the margin.
        p_holm: p corrected for the number of tests of the sweep.
        detectable: The smallest drop that is found in 80 % of the runs; None if not even the largest is.
        regressed: Whether the drop is significantly above the margin.
        anytime: Whether p and interval hold at any number of images; nothing is then ``detectable`` beforehand.
    """

    measure: str
    drop: PairedDifference
    p: float
    p_holm: float
    detectable: float | None
    regressed: bool
    anytime: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        drop = self.drop
        return {
            "measure": self.measure,
            "drop": {
                "before": drop.second,
                "now": drop.first,
                "low": drop.low,
                "high": drop.high,
                "p": self.p,
                "images": drop.images,
                "worse": drop.rose,
                "better": drop.fell,
                "spread": drop.spread,
                "value": drop.value,
            },
            "p_holm": self.p_holm,
            "detectable": self.detectable,
            "regressed": self.regressed,
            **({"guarantee": ANYTIME} if self.anytime else {}),
        }


@dataclass(frozen=True)
class CellVerdict:
    """The verdict on one cell.

    Arguments:
        cell: Its name: data set, classifier, defence, attack, budget, seed.
        verdict: ``holds``, ``regressed`` or ``unknown``.
        why: The reason in words, with the numbers.
        judged: One judgement a measure; none where runs cannot be paired.
        changes: Fields in which the specs differ.
        cost: Before and now, by network.
        seconds: Per image, before and now.
    """

    cell: str
    verdict: Verdict
    why: str
    judged: tuple[Judgement, ...] = ()
    changes: tuple[Change, ...] = ()
    cost: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seconds: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "judged": [judgement.as_dict() for judgement in self.judged]}


def measures(cell: CellOutcome) -> list[str]:
    """Return the measures by which a cell is judged.

    An answer of one draw is Avg with more noise, so that it is judged only where several draws make it. All measures
    of certificates are judged.
    """
    single = cell.spec.get("aggregation") == "single"
    return [name for name in cell.values if not (single and name == "answer")]


def check(before: Snapshot, now: Snapshot, gate: Gate) -> list[CellVerdict]:
    """Compare every cell of a sweep with a baseline.

    Returns:
        A verdict a cell of the sweep, in its order, then of cells that only the baseline has.

    Raises:
        InvalidInput: The baseline has no cell.
    """
    if not before.cells:
        raise InvalidInput("it holds no cell: there is nothing to compare with.", where=f"--baseline {before.source}")
    pairs = match(before, now)
    obstacles = [_obstacle(pair) for pair in pairs]
    drops: dict[tuple[int, str], PairedDifference] = {}
    p: dict[tuple[int, str], float] = {}
    anytime: set[int] = set()
    for place, (pair, obstacle) in enumerate(zip(pairs, obstacles, strict=True)):
        if obstacle is None and pair.first is not None and pair.second is not None:
            left, right, stops = paired_places(pair.first, pair.second)
            if stops:
                anytime.add(place)
            for name in measures(pair.second):
                old, new = pair.first.values[name].values[left], pair.second.values[name].values[right]
                drops[place, name] = anytime_difference(new, old) if stops else paired_difference(new, old)
                p[place, name] = _p(old - new, gate.margin, anytime=stops)
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    level = gate.alpha / max(len(drops), 1)  # the first step of Holm: a single cell that drops must pass it
    judged: dict[int, list[Judgement]] = {}
    for (place, name), drop in drops.items():
        # `detectable` adds the spread that the drop itself causes.
        unrelated = max(drop.spread**2 - abs(drop.value) * (1 - abs(drop.value)), 0.0) ** 0.5
        smallest = None if place in anytime else detectable(drop.images, unrelated, level, gate.margin)
        p_holm = corrected[place, name]
        regressed, stops = p_holm <= gate.alpha, place in anytime
        judgement = Judgement(name, drop, p[place, name], p_holm, smallest, regressed, stops)
        judged.setdefault(place, []).append(judgement)
    return [
        CellVerdict(pair.name, "unknown", obstacle, changes=pair.changes)
        if obstacle is not None
        else _verdict(pair, tuple(judged[place]), gate)
        for place, (pair, obstacle) in enumerate(zip(pairs, obstacles, strict=True))
    ]


def _p(drop: npt.NDArray[np.float64], margin: float, *, anytime: bool) -> float:
    """One-sided p of the test that the mean drop is at most the margin, of one drop per image."""
    return evidence((drop + 1) / 2, (margin + 1) / 2) if anytime else float(safe_t_test(drop[None], margin)[0])


def _obstacle(pair: Match) -> str | None:
    """Return why two runs of a cell cannot be compared, None if they can."""
    before, now = pair.first, pair.second
    if before is None:
        return "the baseline has no such cell"
    if now is None:
        return "the sweep has no such cell any more: put it back, or promote a new baseline"
    named = (("the baseline", before), ("this run", now))
    # At any number of images a verdict is valid: how many there will be does not matter.
    missing = [name for name, cell in named if not (cell.complete or (cell.anytime and cell.images))]
    if missing:
        return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not complete"
    left, _, stops = paired_places(before, now)
    if before.data != now.data or (before.images != now.images and not stops):
        return f"judged on other images: {_images(before)} before, {_images(now)} now"
    if before.spec.get("aggregation") != now.spec.get("aggregation"):
        return f"draws are aggregated by {before.spec.get('aggregation')} before, {now.spec.get('aggregation')} now"
    unpaired = sorted(set(measures(before)) ^ set(measures(now)))
    if unpaired:
        return f"other statistics: only one of the runs has {', '.join(unpaired)}"
    if len(left) < 2:
        return "too few images: one has no spread"
    return None


def _images(cell: CellOutcome) -> str:
    return f"{len(cell.images)} of data {cell.data[:8]}, ids {cell.images[0]} to {cell.images[-1]}"


def _verdict(pair: Match, judged: tuple[Judgement, ...], gate: Gate) -> CellVerdict:
    before, now = pair.first, pair.second
    assert before is not None and now is not None
    names = [name for name in now.cost if name in before.cost]
    cost = {name: (before.cost[name], now.cost[name]) for name in names}
    seconds = None if before.seconds is None or now.seconds is None else (before.seconds, now.seconds)
    worse = [_describe(judgement) for judgement in judged if judgement.regressed]
    for name, (old, new) in cost.items():
        if new > old * (1 + gate.cost_margin) + 1e-9:
            worse.append(f"{name} evaluations per answer rose from {old:g} to {new:g}")
    doubts = []
    if gate.seconds_margin is not None:
        if seconds is None:
            doubts.append("the baseline or this run has no record of its seconds")
        elif seconds[1] > seconds[0] * (1 + gate.seconds_margin):
            worse.append(f"seconds per image rose from {seconds[0]:.3g} to {seconds[1]:.3g}")
    threat = [change for change in pair.changes if change.of_threat]
    if threat:
        doubts.append(f"it is under another threat ({', '.join(map(str, threat))})")
    for judgement in judged:
        smallest = judgement.detectable
        if judgement.anytime:
            if judgement.drop.high >= gate.detect:
                doubts.append(
                    f"not decided: on {judgement.drop.images} images a drop of {judgement.measure} by up to "
                    f"{100 * judgement.drop.high:.1f} points is possible, and {100 * gate.detect:.1f} must be "
                    "excluded (--detect); a stricter `precision` takes more images"
                )
                break
            continue
        if smallest is None or smallest > gate.detect:
            seen = "no drop at all" if smallest is None else f"drops of {100 * smallest:.1f} points"
            doubts.append(
                f"too few images: {judgement.drop.images} show {seen} in 80 % of the runs, not of "
                f"{100 * gate.detect:.1f} (--detect)"
            )
            break
    verdict: Verdict = "regressed" if worse else "unknown" if doubts else "holds"
    why = worse + doubts or [_describe(judged[0])]
    return CellVerdict(pair.name, verdict, "; ".join(why), judged, pair.changes, cost, seconds)


def _describe(judgement: Judgement) -> str:
    drop = judgement.drop
    return (
        f"{judgement.measure} {100 * drop.second:.1f} % before, {100 * drop.first:.1f} % now on {drop.images} images"
        f": {drop.rose} worse, {drop.fell} better, dropped by {100 * drop.value:+.1f} points "
        f"[{100 * drop.low:+.1f}, {100 * drop.high:+.1f}], p {judgement.p_holm:.2g}"
    )


def verdict_of(verdicts: Sequence[CellVerdict]) -> Verdict:
    """Return the verdict of the sweep: regressed if any cell is, else unknown if any cell is."""
    kinds = {cell.verdict for cell in verdicts}
    return "regressed" if "regressed" in kinds else "unknown" if "unknown" in kinds else "holds"


def junit(verdicts: Sequence[CellVerdict], sweep: str) -> str:
    """Write JUnit XML, a test case a cell: *regressed* is a failure, *unknown* an error."""
    counts = {kind: str(sum(cell.verdict == kind for cell in verdicts)) for kind in ("regressed", "unknown")}
    totals = {"tests": str(len(verdicts)), "failures": counts["regressed"], "errors": counts["unknown"]}
    suites = ElementTree.Element("testsuites", {"name": "puregrid check", **totals})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": sweep, **totals, "skipped": "0"})
    for cell in verdicts:
        case = ElementTree.SubElement(suite, "testcase", {"classname": sweep, "name": cell.cell})
        if cell.verdict != "holds":
            tag = "failure" if cell.verdict == "regressed" else "error"
            ElementTree.SubElement(case, tag, {"message": cell.why, "type": cell.verdict}).text = cell.why
        output = [cell.why, *(f"changed: {change}" for change in cell.changes)]
        ElementTree.SubElement(case, "system-out").text = "\n".join(output)
    ElementTree.indent(suites, " ")
    raw: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return raw.decode() + "\n"
