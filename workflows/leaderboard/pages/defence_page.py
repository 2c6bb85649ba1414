"""The page of a defence."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from defense.spec import Spec
from tasks.attacks.budgets import format_eps
from workflows.leaderboard.claims import Claim, trap
from workflows.leaderboard.entries import Entry
from workflows.leaderboard.model_info import reference
from workflows.leaderboard.pages.common import rendered
from workflows.leaderboard.pages.sentences import worth
from workflows.leaderboard.tables import numbers_table
from workflows.report.parts import finding_cards, grid_of
from workflows.tables.table import Table, several

__all__ = ["defence_page"]

_TABLES = ("robustness", "ladders", "convergence", "certified", "corruptions", "quality")
_SAID = ("dataset", "classifier", "defence", "probed", "part")
_VERDICTS = (("fail", "fail"), ("pass", "pass"), ("not-applicable", "not applicable"))
_PROBES = ("probe", "probe_gradients", "mechanism")


def defence_page(entry: Entry, claims: Sequence[Claim], files: Sequence[str]) -> str:
    """Render a defence: what it is, its numbers and where each is from, probes, findings, settings, command, rows."""
    pairs = entry.findings()
    findings = [finding for _, finding in pairs]
    cards = [finding_cards([finding], source.analysis.robustness)[0] for source, finding in pairs]
    numbers = numbers_table(entry)
    own = {cell.id for _, cell in entry.cells}
    measured, probes = (
        [table for name in names for table in _restricted(entry, name, own)] for names in (_TABLES, _PROBES)
    )
    purifier = entry.cell.defence.purifier
    return rendered(
        "defence.html",
        title=entry.label,
        entry=entry,
        what=(type(purifier).__doc__ or "").strip().partition("\n")[0],
        about=reference(purifier.purifier),
        sentences=[worth(line) for line in entry.lines],
        traps=[text for line in entry.lines if (text := trap(line))],
        claims=[claim for claim in claims if any(line in claim.lines for line in entry.lines)],
        numbers=grid_of(numbers),
        measured=[grid_of(table, findings, cards) for table in measured],
        probed=_probed(probes),
        probes=[grid_of(table) for table in probes],
        findings=cards,
        specs=list(_specs(entry)),
        sources=[source for source, _ in entry.places.values()],
        files=files,
    )


def _restricted(entry: Entry, name: str, cells: set[str]) -> Iterator[Table]:
    """Yield the lines of a table that are of some cells, for each sweep that has any; of probes those of its part.

    What a page of one defence says in its title is no column of it.
    """
    part = "classifier" if entry.bare else "purifier"
    several_sweeps = len(entry.places) > 1
    for source, _ in entry.places.values():
        table = next((table for table in source.analysis.tables if table.name == name), None)
        if table is None:
            continue
        parts = list(table.rows["part"]) if "part" in table.rows else [part] * len(table.rows)
        kept = [i for i, own in enumerate(table.cells) if cells.intersection(own) and parts[i] == part]
        if kept:
            yield replace(
                table,
                name=f"{name}-{source.number}" if several_sweeps else name,
                title=f"{table.title}, sweep {source.name}" if several_sweeps else table.title,
                columns=tuple(replace(c, when=several) if c.name in _SAID else c for c in table.columns),
                frame=table.rows.iloc[kept].reset_index(drop=True),
                shown=None,
                cells=tuple(table.cells[i] for i in kept),
            )


def _probed(tables: Sequence[Table]) -> str:
    """Count the verdicts of the probe; empty without one."""
    verdicts = [
        verdict for table in tables if table.name.partition("-")[0] == "probe" for verdict in table.frame["verdict"]
    ]
    number = Counter(verdicts)
    said = [f"{number[name]} {text}" for name, text in _VERDICTS if number[name]]
    return ", ".join(said)


def _specs(entry: Entry) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and all fields of everything that decides the rows of a defence."""
    seen = set()
    cell = entry.cell
    first: list[tuple[str, Spec]] = [("data set", cell.images.dataset), ("classifier", cell.classifier)]
    first.append(("defence", cell.defence.purifier))
    threats: Iterable[tuple[str, Spec | None]] = (
        pair
        for _, other in entry.cells
        for pair in (("attack", other.attack), ("corruption", other.corruption), ("certificate", other.certificate))
    )
    for kind, spec in (*first, *threats):
        if spec is not None and spec.id not in seen:
            seen.add(spec.id)
            label = spec.label() if hasattr(spec, "label") else kind
            budget = f" {format_eps(eps)}" if kind == "attack" and (eps := getattr(spec, "eps", 0.0)) else ""
            yield kind, f"{label}{budget}", json.dumps(spec.identity(), indent=1, sort_keys=True)
