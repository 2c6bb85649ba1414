"""``puregrid check``: did a sweep get worse than its baseline by more than a stated margin?

For every cell the accuracy on each image is paired with the baseline's on the same image. A cell has **regressed** if

* a drop above the margin is significant: :func:`workflows.statistics.paired.drop_p` below alpha, corrected by Holm
  over all tests, so that a sweep in which nothing changed raises an alarm in at most a share alpha of the runs; or
* its defence asks a network more often for one answer than before, by more than the cost margin: counts are exact.
  Seconds count only on request, since they are the machine's too.

It **holds** only where that could have been found out: cells without a counterpart or on other images, incomplete
ones, cells aggregated otherwise, under another attack, or with too few images to see a drop of a stated size in 80 %
of the runs are **unknown**. Other weights, depths or code are what a check is for: they are reported, and judged.

Judged are Avg, the aggregated answer where several draws make one, and certified accuracy at some radii; see
:func:`measures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree

from defense.errors import InvalidInput
from workflows.regression.compare import Change, Match, changes_text, match, table
from workflows.regression.snapshots import Outcome, Snapshot
from workflows.statistics.paired import Drop, detectable, holm, paired_drop

__all__ = ["CellVerdict", "Gate", "Judgement", "Verdict", "check", "check_text", "junit", "measures", "verdict_of"]

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
                    f"{getattr(self, name.replace('-', '_'))} cannot be it: it is {wanted}.", where=f"--{name}"
                )


@dataclass(frozen=True)
class Judgement:
    """One measure of one cell.

    Arguments:
        measure: Its name.
        drop: The paired comparison.
        p_holm: Corrected for the number of tests of the sweep.
        detectable: The smallest drop found in 80 % of the runs; None if there is none.
        regressed: Whether the drop is significantly above the margin.
    """

    measure: str
    drop: Drop
    p_holm: float
    detectable: float | None
    regressed: bool


@dataclass(frozen=True)
class CellVerdict:
    """What can be said of one cell.

    Arguments:
        cell: Its name: data set, classifier, defence, attack, budget, seed.
        verdict: ``holds``, ``regressed`` or ``unknown``.
        why: In words, with the numbers.
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
        found = asdict(self)
        for each, one in zip(found["judged"], self.judged, strict=True):
            each["drop"]["value"] = one.drop.value
        return found


def measures(cell: Outcome) -> list[str]:
    """The measures by which a cell is judged.

    An answer of one draw is Avg with more noise, so that it is judged only where several draws make it. Measures of
    other stages are judged as they come.
    """
    single = cell.spec.get("aggregation") == "single"
    return [name for name in cell.values if not (single and name == "answer")]


def check(before: Snapshot, now: Snapshot, gate: Gate) -> list[CellVerdict]:
    """Compare every cell of a sweep with a baseline.

    Arguments:
        before: The baseline.
        now: The sweep.
        gate: What counts as worse.

    Returns:
        A verdict a cell of the sweep, in its order, then of cells that only the baseline has.

    Raises:
        InvalidInput: The baseline has no cell.
    """
    if not before.cells:
        raise InvalidInput("it holds no cell: there is nothing to compare with.", where=f"--baseline {before.source}")
    pairs = match(before, now)
    obstacles = [_obstacle(pair) for pair in pairs]
    drops: dict[tuple[int, str], Drop] = {}
    for i, (pair, obstacle) in enumerate(zip(pairs, obstacles, strict=True)):
        if obstacle is None and pair.first is not None and pair.second is not None:
            for name in measures(pair.second):
                b, c = pair.first.values[name].values, pair.second.values[name].values
                drops[i, name] = paired_drop(b, c, gate.margin)
    corrected = dict(zip(drops, holm([drop.p for drop in drops.values()]), strict=True))
    level = gate.alpha / max(len(drops), 1)  # of the first step of Holm: one cell that drops must pass this one
    judged: dict[int, list[Judgement]] = {}
    for (i, name), drop in drops.items():
        # What the drop itself adds to the spread is counted by `detectable`.
        unrelated = max(drop.spread**2 - abs(drop.value) * (1 - abs(drop.value)), 0.0) ** 0.5
        smallest = detectable(drop.images, unrelated, level, gate.margin)
        p = corrected[i, name]
        judged.setdefault(i, []).append(Judgement(name, drop, p, smallest, p <= gate.alpha))
    return [
        CellVerdict(pair.name, "unknown", obstacle, changes=pair.changes)
        if obstacle is not None
        else _verdict(pair, tuple(judged[i]), gate)
        for i, (pair, obstacle) in enumerate(zip(pairs, obstacles, strict=True))
    ]


def _obstacle(pair: Match) -> str | None:
    """Why two runs of a cell cannot be compared."""
    before, now = pair.first, pair.second
    if before is None:
        return "the baseline has no such cell"
    if now is None:
        return "the sweep has no such cell any more: put it back, or promote a new baseline"
    missing = [name for name, cell in (("the baseline", before), ("this run", now)) if not cell.complete]
    if missing:
        return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not complete"
    if before.data != now.data or before.images != now.images:
        return f"judged on other images: {_images(before)} before, {_images(now)} now"
    if before.spec.get("aggregation") != now.spec.get("aggregation"):
        return f"draws are aggregated by {before.spec.get('aggregation')} before, {now.spec.get('aggregation')} now"
    unpaired = sorted(set(measures(before)) ^ set(measures(now)))
    if unpaired:
        return f"other statistics: only one of the runs has {', '.join(unpaired)}"
    if len(now.images) < 2:
        return "too few images: one has no spread"
    return None


def _images(cell: Outcome) -> str:
    return f"{len(cell.images)} of data {cell.data[:8]}, ids {cell.images[0]} to {cell.images[-1]}"


def _verdict(pair: Match, judged: tuple[Judgement, ...], gate: Gate) -> CellVerdict:
    before, now = pair.first, pair.second
    assert before is not None and now is not None
    names = [name for name in now.cost if name in before.cost]
    cost = {name: (before.cost[name], now.cost[name]) for name in names}
    seconds = None if before.seconds is None or now.seconds is None else (before.seconds, now.seconds)
    worse = [_accuracy(one) for one in judged if one.regressed]
    for name, (old, new) in cost.items():
        if new > old * (1 + gate.cost_margin) + 1e-9:
            worse.append(f"{name} evaluations per answer rose from {old:g} to {new:g}")
    doubts = []
    if gate.seconds_margin is not None:
        if seconds is None:
            doubts.append("the baseline or this run does not know its seconds")
        elif seconds[1] > seconds[0] * (1 + gate.seconds_margin):
            worse.append(f"seconds per image rose from {seconds[0]:.3g} to {seconds[1]:.3g}")
    threat = [change for change in pair.changes if change.of_threat]
    if threat:
        doubts.append(f"it is under another threat ({', '.join(map(str, threat))})")
    for one in judged:
        if one.detectable is None or one.detectable > gate.detect:
            seen = "no drop at all" if one.detectable is None else f"drops of {100 * one.detectable:.1f} points"
            doubts.append(
                f"too few images: {one.drop.images} show {seen} in 80 % of the runs, not of "
                f"{100 * gate.detect:.1f} (--detect)"
            )
            break
    verdict: Verdict = "regressed" if worse else "unknown" if doubts else "holds"
    why = worse + doubts or [_accuracy(judged[0])]
    return CellVerdict(pair.name, verdict, "; ".join(why), judged, pair.changes, cost, seconds)


def _accuracy(one: Judgement) -> str:
    drop = one.drop
    return (
        f"{one.measure} {100 * drop.before:.1f} % before, {100 * drop.now:.1f} % now on {drop.images} images: "
        f"{drop.worse} worse, {drop.better} better, dropped by {100 * drop.value:+.1f} points "
        f"[{100 * drop.low:+.1f}, {100 * drop.high:+.1f}], p {one.p_holm:.2g}"
    )


def verdict_of(verdicts: Sequence[CellVerdict]) -> Verdict:
    """Of the sweep: regressed if any cell is, else unknown if any cell is."""
    found = {one.verdict for one in verdicts}
    return "regressed" if "regressed" in found else "unknown" if "unknown" in found else "holds"


def check_text(verdicts: Sequence[CellVerdict], gate: Gate, before: str, now: str) -> str:
    """For people: the verdict of the sweep, the rule, a line a cell and measure, what changed."""
    lines = []
    for one in verdicts:
        for each in one.judged:
            drop = each.drop
            lines.append(
                [
                    one.verdict,
                    one.cell,
                    each.measure,
                    str(drop.images),
                    f"{100 * drop.before:.1f}",
                    f"{100 * drop.now:.1f}",
                    f"{100 * drop.value:+.1f} [{100 * drop.low:+.1f}, {100 * drop.high:+.1f}]",
                    f"{each.p_holm:.2g}",
                    "-" if each.detectable is None else f"{100 * each.detectable:.1f}",
                ]
            )
        if not one.judged:
            lines.append([one.verdict, one.cell, *"-------"])
    names = ["verdict", "cell", "measure", "images", "before", "now", "drop", "p (Holm)", "80 % power at"]
    counts = {kind: sum(one.verdict == kind for one in verdicts) for kind in ("holds", "regressed", "unknown")}
    head = [
        f"{verdict_of(verdicts)}: {', '.join(f'{n} {kind}' for kind, n in counts.items() if n)}",
        f"baseline: {before}\nthis run: {now}",
        f"regressed: a drop above {100 * gate.margin:g} points, significant at {gate.alpha:g} over all cells, or "
        f"more network evaluations per answer{f' (+{100 * gate.cost_margin:g} %)' if gate.cost_margin else ''}",
    ]
    reasons = [f"  {one.cell}: {one.why}" for one in verdicts if one.verdict != "holds"]
    parts = [
        "\n".join(head) + "\n",
        table("accuracy in %, drop in points with its paired 95 % interval", names, lines),
        "\n".join(["because:", *reasons]) + "\n" if reasons else "",
        changes_text(verdicts),
    ]
    return "\n".join(part for part in parts if part)


def junit(verdicts: Sequence[CellVerdict], sweep: str) -> str:
    """JUnit XML, a test case a cell: *regressed* is a failure, *unknown* an error."""
    counts = {kind: str(sum(one.verdict == kind for one in verdicts)) for kind in ("regressed", "unknown")}
    totals = {"tests": str(len(verdicts)), "failures": counts["regressed"], "errors": counts["unknown"]}
    suites = ElementTree.Element("testsuites", {"name": "puregrid check", **totals})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": sweep, **totals, "skipped": "0"})
    for one in verdicts:
        case = ElementTree.SubElement(suite, "testcase", {"classname": sweep, "name": one.cell})
        if one.verdict != "holds":
            tag = "failure" if one.verdict == "regressed" else "error"
            ElementTree.SubElement(case, tag, {"message": one.why, "type": one.verdict}).text = one.why
        out = [one.why, *(f"changed: {change}" for change in one.changes)]
        ElementTree.SubElement(case, "system-out").text = "\n".join(out)
    ElementTree.indent(suites, " ")
    raw: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return raw.decode() + "\n"
