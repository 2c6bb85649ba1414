"""The verdict of a sweep: what its best defence is worth, and whether that may be believed; two sentences."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tasks.attacks.budgets import format_eps
from workflows.audit import Finding
from workflows.tables.leaderboard import largest_budgets
from workflows.tables.table import interval, missing, records

__all__ = ["best_of", "headline", "verdict"]


def verdict(leaderboard: pd.DataFrame, findings: Sequence[Finding] | None, incomplete: Sequence[str]) -> list[str]:
    """Return two sentences: the best defence against the bare classifier, and what to think of it.

    Arguments:
        leaderboard: From :func:`headline`.
        findings: The auditor's findings; None without an audit.
        incomplete: Sentences on cells that lack rows.
    """
    if leaderboard.empty:
        return ["Nothing is committed yet.", *incomplete]
    row = best_of(leaderboard)
    return [_worth(row, leaderboard), _belief(row, findings, bool(incomplete))]


def headline(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """Return the lines at the largest budgets, with ``strongest``: the lower of static and adaptive."""
    if leaderboard.empty:
        return leaderboard
    lines = []
    for row in records(largest_budgets(leaderboard)):
        there = [kind for kind in ("adaptive", "static") if not missing(row[kind])]
        kind = min(there, key=lambda kind: float(row[kind]), default="adaptive")
        strongest = {f"strongest{end}": row[f"{kind}{end}"] for end in ("", "_low", "_high", "_attack", "_cell")}
        lines.append({**row, **strongest})
    return pd.DataFrame(lines)


def best_of(leaderboard: pd.DataFrame) -> dict[str, Any]:
    """Return the line of the best defence: by its strongest attack, else certified, else corruptions, else clean.

    A defence that no attacker knew is best only among such: its number is an upper bound.
    """
    rows = records(leaderboard)
    for measure in ("strongest", "certified", "corruptions", "clean"):
        there = [row for row in rows if not missing(row[measure])]
        if there:
            defended = [row for row in there if not row["bare"]]
            met = [row for row in defended if not missing(row["adaptive"])] if measure == "strongest" else []
            return max(met or defended or there, key=lambda row: float(row[measure]))
    return rows[0]


def _worth(row: dict[str, Any], leaderboard: pd.DataFrame) -> str:
    where = f"{row['classifier']} on {row['dataset']}"
    lines = records(leaderboard)
    bare = next(
        (
            line
            for line in lines
            if line["bare"] and all(line[name] == row[name] for name in ("dataset", "classifier", "seed", "norm"))
        ),
        None,
    )
    defences = len({line["defence"] for line in lines if not line["bare"]})
    best = f"the best of {defences} defences, " if defences > 1 else ""
    name = "Without a defence" if row["bare"] else f"Behind {best}{row['defence']},"
    text = f"{name} {where}"
    if not missing(row["strongest"]):
        known = not row["bare"] and not missing(row["adaptive"])
        adaptive = known and row["strongest"] == row["adaptive"]
        if adaptive:
            kind = "an attacker who knows it"
        elif known:
            kind = "its strongest attack, a static one"
        else:
            kind = "its strongest attack" if row["bare"] else "attacks that do not know the defence"
        text += f" keeps {_percent(row, 'strongest')} under {kind} ({row['strongest_attack']}, {_budget(row)})"
        text += "" if missing(row["clean"]) else f" of {_percent(row, 'clean')} on clean images"
        if bare is not None and bare is not row and not row["bare"] and not missing(bare["strongest"]):
            text += f"; the bare classifier keeps {_percent(bare, 'strongest')}"
            text += "" if missing(bare["clean"]) else f" of {_percent(bare, 'clean')}"
        if adaptive and not missing(row["static"]):
            text += f", and static attacks would have shown {_percent(row, 'static')}"
        return text + "."
    if not missing(row["certified"]):
        return f"{text} is certified at l_2 radius {row['radius']:g} on {_percent(row, 'certified')} of the images."
    if not missing(row["corruptions"]):
        return f"{text} is right on {_percent(row, 'corruptions')} of the corrupted images."
    return f"{text} is right on {_percent(row, 'clean')} of the clean images; it was not attacked."


def _budget(row: dict[str, Any]) -> str:
    return f"eps {format_eps(row['eps'])}"


def _belief(row: dict[str, Any], findings: Sequence[Finding] | None, incomplete: bool) -> str:
    partial = " Cells are not complete: these are not its final numbers." if incomplete else ""
    if findings is None:
        return f"The numbers were not audited.{partial}"
    on = [finding for finding in findings if set(finding.cells) & set(row["cells"])]
    counts = {kind: sum(finding.standing == kind for finding in on) for kind in ("error", "warning")}
    said = " and ".join(f"{n} {kind}{'s' * (n > 1)}" for kind, n in counts.items() if n)
    if said:
        first = next(finding for finding in on if finding.standing in counts)
        return f"The auditor has {said} on this defence, first: {first.text}{partial}"
    if not row["bare"] and not missing(row["strongest"]) and missing(row["adaptive"]):
        return (
            "Nobody attacked it who knew it, so this is an upper bound that says nothing about such an attacker: add "
            f"an adaptive attack to the sweep.{partial}"
        )
    return f"The auditor has neither errors nor warnings on it.{partial}"


def _percent(row: dict[str, Any], name: str) -> str:
    return interval(row[name], row[f"{name}_low"], row[f"{name}_high"]).replace(" [", " % [")
