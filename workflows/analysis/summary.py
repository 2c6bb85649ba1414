"""Summarise a sweep in a few sentences: its best defence against each kind of threat."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from tasks.attacks.budgets import format_eps
from workflows.audit import Finding
from workflows.tables.table import interval, records

__all__ = ["summary"]


def summary(
    robustness: pd.DataFrame, certified: pd.DataFrame, corruptions: pd.DataFrame, findings: Sequence[Finding]
) -> list[str]:
    """Summarise the results.

    Arguments:
        robustness: The frame of robustness.
        certified: That of certificates.
        corruptions: That of accuracy under corruptions.
        findings: The auditor's findings: a figure with errors or warnings is not named without them.
    """
    judged = robustness[robustness["avg"].notna()] if len(robustness) and "avg" in robustness else robustness[:0]
    return [
        *(_attacked(judged, findings) if len(judged) else ()),
        *(_certified(certified) if len(certified) else ()),
        *(_corrupted(corruptions) if len(corruptions) else ()),
    ]


def _attacked(judged: pd.DataFrame, findings: Sequence[Finding]) -> Iterator[str]:
    """Compare defences under each norm at its largest budget, by what the strongest attack leaves of them."""
    doubted = {cell for finding in findings if finding.standing in ("error", "warning") for cell in finding.cells}
    for (dataset, classifier, seed), members in judged.groupby(["dataset", "classifier", "seed"], sort=False):
        clean = members[members["attack"] == "clean"].set_index("defence")
        where = f"{classifier} on {dataset}" + (f", seed {seed}" if judged["seed"].nunique() > 1 else "")
        attacked = members[members["attack"] != "clean"]
        for row in records(clean.reset_index()) if attacked.empty else ():
            yield f"{where}, clean: {_percent(row)} with {row['defence']}."
        for norm, group in attacked.groupby("norm", sort=False):
            top = group[group["eps"] == group["eps"].max()]
            weakest = records(top.sort_values("avg", kind="stable").drop_duplicates("defence"))
            best = max(weakest, key=lambda row: float(row["avg"]))
            bare = next((row for row in weakest if row["defence"] == "none"), None)
            values = [] if bare is None else [f"{_percent(bare)} bare"]
            if best is not bare:
                text = f"{_percent(best)} at best, with {best['defence']} under {best['attack']}"
                if best["defence"] in clean.index:
                    text += f" (clean {_percent(clean.loc[best['defence']])})"
                values.append(text)
            # The defence's other cells count too: an attack that it was never given is a finding on those it was.
            doubts = doubted & set(top.loc[top["defence"] == best["defence"], "cell"])
            yield (
                f"{where}, {norm} attacks at eps {format_eps(top['eps'].iloc[0])}: {', '.join(values)}."
                + (" The auditor doubts this figure." if doubts else "")
            )


def _certified(table: pd.DataFrame) -> Iterator[str]:
    for (dataset, classifier), group in table.groupby(["dataset", "classifier"], sort=False):
        best = records(group.sort_values("acr", ascending=False, kind="stable"))[0]
        yield (
            f"{classifier} on {dataset}, certified in l_2: the largest average radius is {best['acr']:.3f}, with "
            f"{best['defence']} at sigma {best['sigma']:g} and n {best['n']}; its certified class is right on "
            f"{100 * best['natural']:.1f} % of the images."
        )


def _corrupted(table: pd.DataFrame) -> Iterator[str]:
    overall = table[(table["corruption"] == "all") & (table["severity"] == "all")]
    for (dataset, classifier, origin, seed), group in overall.groupby(
        ["dataset", "classifier", "origin", "seed"], sort=False
    ):
        rows = records(group)
        best = max(rows, key=lambda row: float(row["accuracy"]))
        bare = next((row for row in rows if row["defence"] == "none"), None)
        values = [] if bare is None else [f"{_share(bare)} bare"]
        if best is not bare:
            values.append(f"{_share(best)} at best, with {best['defence']}")
        several = f", seed {seed}" if overall["seed"].nunique() > 1 else ""
        count = best["corruptions"]
        yield (
            f"{classifier} on {dataset}{several}, mean over {count} {origin} corruption{'s' * (count > 1)}: "
            f"{', '.join(values)}."
        )


def _percent(row: Any) -> str:
    return _in_percent(row["avg"], row["avg_low"], row["avg_high"])


def _share(row: dict[str, Any]) -> str:
    return _in_percent(row["accuracy"], row["low"], row["high"])


def _in_percent(value: float, low: float, high: float) -> str:
    return interval(value, low, high).replace(" [", " % [")
