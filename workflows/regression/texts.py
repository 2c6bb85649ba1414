"""Comparisons and verdicts for people: a declared table, and below it what changed in the specs."""

from collections.abc import Sequence
from typing import Protocol

import pandas as pd

from workflows.formats.text import table_text
from workflows.regression.check import CellVerdict, Gate, verdict_of
from workflows.regression.compare import Change, Comparison
from workflows.statistics.paired import PairedDifference
from workflows.tables.table import Column, Row, Table, missing

__all__ = ["changed_specs", "changes_text", "check_text", "comparison_table", "comparison_text", "verdict_table"]


def _p(row: Row) -> str:
    return "-" if missing(row["p_holm"]) else f"{row['p_holm']:.2g}"


def _only(row: Row) -> str:
    if missing(row["right_only_in_first"]):
        return "-"
    return f"{row['right_only_in_first']:.0f}, {row['right_only_in_second']:.0f}"


def _noted(frame: pd.DataFrame, name: str) -> bool:
    return bool((frame[name] != "").any())


_SEQUENCES = (
    " Where a run may have stopped early, interval and p hold at whatever image it stopped (confidence sequence), on "
    "the images that both runs have, in the order in which they come."
)

_CELL = Column("cell", "cell", "text", "Name of the cell.")
_MEASURE = Column("measure", "measure", "text", "What was compared.")
_IMAGES = Column("images", "images", "integer", "Images that both runs have judged.")
_P = Column("p_holm", "p (Holm)", "number", "p, corrected for the number of tests.", show=_p)
_COMPARISON = (
    _CELL,
    _MEASURE,
    _IMAGES,
    Column("first", "first", "percent", "In the first run."),
    Column("second", "second", "percent", "In the second run."),
    Column("difference", "second - first", "points", "Paired difference.", ends=("low", "high")),
    Column("right_only_in_first", "right only in 1st, 2nd", "integer", "Images right in one run alone.", show=_only),
    _P,
    Column("note", "note", "text", "What prevents or limits the comparison.", when=_noted),
    Column("right_only_in_second", "right only in 2nd", "integer", "Images right in the second run alone.").hidden(),
)
_VERDICT = (
    Column("verdict", "verdict", "text", "holds, regressed or unknown."),
    _CELL,
    _MEASURE,
    _IMAGES,
    Column("before", "before", "percent", "In the baseline."),
    Column("now", "now", "percent", "In this run."),
    Column("drop", "drop", "points", "Paired difference, before minus now.", ends=("low", "high")),
    _P,
    Column("detectable", "80 % power at", "percent", "The smallest drop that is found in 80 % of the runs."),
)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Make the table of two runs: a line a cell and measure."""
    lines: list[dict[str, object]] = []
    for comparison in comparisons:
        line: dict[str, object] = {"cell": comparison.cell, "note": comparison.note}
        if comparison.difference is None or comparison.answers is None:
            lines.append(line)
            continue
        tests = {
            "right_only_in_first": comparison.answers.only_first,
            "right_only_in_second": comparison.answers.only_second,
            "p_holm": comparison.p_holm,
        }
        lines.append({**line, "measure": comparison.measure, **_numbers(comparison.difference), **tests})
        for name, difference in comparison.further.items():
            lines.append({**line, "measure": name, "note": "", **_numbers(difference)})
    names = [column.name for column in _COMPARISON]
    note = "Accuracy in %, difference in points with its paired 95 % interval; p of McNemar's exact test on answers."
    note += _SEQUENCES * any(comparison.anytime for comparison in comparisons)
    frame = pd.DataFrame(lines, columns=[*names, "low", "high"])
    return Table("comparison", "Comparison", _COMPARISON, frame, note, groups=())


def verdict_table(verdicts: Sequence[CellVerdict]) -> Table:
    """Make the table of a check: a line a cell and measure."""
    lines: list[dict[str, object]] = []
    for cell in verdicts:
        line: dict[str, object] = {"verdict": cell.verdict, "cell": cell.cell}
        for judgement in cell.judged:
            drop = judgement.drop
            lines.append(
                {
                    **line,
                    "measure": judgement.measure,
                    "images": drop.images,
                    "before": drop.second,
                    "now": drop.first,
                    "drop": drop.value,
                    "low": drop.low,
                    "high": drop.high,
                    "p_holm": judgement.p_holm,
                    "detectable": judgement.detectable,
                }
            )
        if not cell.judged:
            lines.append(line)
    names = [column.name for column in _VERDICT]
    frame = pd.DataFrame(lines, columns=[*names, "low", "high"])
    note = "Accuracy in %, drop in points with its paired 95 % interval."
    note += _SEQUENCES * any(judgement.anytime for cell in verdicts for judgement in cell.judged)
    return Table("check", "Check", _VERDICT, frame, note, groups=())


def comparison_text(comparisons: Sequence[Comparison], first: str, second: str) -> str:
    """Write comparisons for people: a line a cell and measure, then each change of the specs once."""
    parts = [
        f"first:  {first}\nsecond: {second}\n",
        table_text(comparison_table(comparisons)),
        changes_text(comparisons),
    ]
    return "\n".join(part for part in parts if part)


def check_text(verdicts: Sequence[CellVerdict], gate: Gate, before: str, now: str) -> str:
    """Write verdicts for people: that of the sweep, the rule, a line a cell and measure, what changed."""
    counts = {kind: sum(cell.verdict == kind for cell in verdicts) for kind in ("holds", "regressed", "unknown")}
    head = [
        f"{verdict_of(verdicts)}: {', '.join(f'{n} {kind}' for kind, n in counts.items() if n)}",
        f"baseline: {before}\nthis run: {now}",
        f"regressed: a drop above {100 * gate.margin:g} points, significant at {gate.alpha:g} over all cells, or "
        f"more network evaluations per answer{f' (+{100 * gate.cost_margin:g} %)' if gate.cost_margin else ''}",
    ]
    reasons = [f"  {cell.cell}: {cell.why}" for cell in verdicts if cell.verdict != "holds"]
    parts = [
        "\n".join(head) + "\n",
        table_text(verdict_table(verdicts)),
        "\n".join(["because:", *reasons]) + "\n" if reasons else "",
        changes_text(verdicts),
    ]
    return "\n".join(part for part in parts if part)


class _Changed(Protocol):
    @property
    def cell(self) -> str: ...
    @property
    def changes(self) -> tuple[Change, ...]: ...


def changes_text(cells: Sequence[_Changed]) -> str:
    """Write what changed in the specs of some cells, with the number of cells that share each change."""
    lines = [f"  {change}   ({where})" for change, where in changed_specs(cells)]
    return "\n".join(["specs differ:", *lines]) + "\n" if lines else ""


def changed_specs(cells: Sequence[_Changed]) -> list[tuple[str, str]]:
    """Return each change of the specs, and the cell that it is in or the number of cells."""
    groups: dict[str, list[str]] = {}
    for cell in cells:
        for change in cell.changes:
            groups.setdefault(str(change), []).append(cell.cell)
    return [
        (change, changed[0] if len(changed) == 1 else f"{len(changed)} of {len(cells)} cells")
        for change, changed in groups.items()
    ]


def _numbers(difference: PairedDifference) -> dict[str, float]:
    return {
        "images": difference.images,
        "first": difference.first,
        "second": difference.second,
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
    }
