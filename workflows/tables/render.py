"""Tables for people: the robustness and the cost table in a terminal, as Markdown, CSV, LaTeX or JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import pandas as pd
from rich.console import Console
from rich.table import Table

from workflows.tables.columns import (
    TEXT_COLUMNS,
    Grid,
    combined_grid,
    cost_grid,
    format_eps,
    ladder_grid,
    robustness_grid,
)

if TYPE_CHECKING:
    from workflows.audit import Finding
    from workflows.tables.sections import Section

__all__ = [
    "COMBINED_NOTE",
    "COMBINED_TITLE",
    "FORMATS",
    "LADDER_NOTE",
    "Format",
    "auditor_line",
    "cell_names",
    "evidence_text",
    "notes",
    "render",
    "tally",
]

Format = Literal["text", "md", "csv", "latex", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)


def render(
    robustness: pd.DataFrame,
    cost: pd.DataFrame,
    how: Format,
    *,
    title: str = "",
    findings: Sequence[Finding] | None = None,
    combined: pd.DataFrame | None = None,
    ladders: pd.DataFrame | None = None,
    further: Sequence[Section] = (),
) -> str:
    """All tables as one text, the auditor's findings among them.

    Arguments:
        robustness: From ``Results.robustness``.
        cost: From ``Results.cost``.
        how: The format. ``csv`` has the robustness table alone, unrounded; ``json`` all of them, unrounded.
        title: Heading.
        findings: From :func:`workflows.audit.findings`; ``text`` and ``md`` show the first ones, ``latex`` has how
            many there are in a comment, ``csv`` the rules that fired on each cell in a column, ``json`` has all. None
            if there was no audit, which ``json`` and ``csv`` tell from an audit that found nothing.
        combined: From ``Results.combined``: shown where several attacks met one defence.
        ladders: From :func:`workflows.tables.ladders.ladder_table`: shown where there are ladders.
        further: From :func:`workflows.tables.sections.sections`: certificates, corruptions, image quality.
    """
    if how == "csv":
        return _with_rules(robustness, findings).to_csv(index=False)
    if how == "json":
        content: dict[str, object] = {"robustness": _records(robustness), "cost": _records(cost)}
        if combined is not None:
            content["combined"] = _records(combined)
        if ladders is not None:
            content["ladders"] = _records(ladders)
        content |= {section.name: _records(section.frame) for section in further}
        if findings is not None:
            content["findings"] = [finding.as_dict() for finding in findings]
        return json.dumps(content, indent=1) + "\n"
    writer: Callable[[str, Grid], str] = {"text": _text, "md": _markdown, "latex": _latex}[how]
    return "\n".join(
        [
            *([writer(_heading(title), robustness_grid(robustness))] if len(robustness) else []),
            *[f"Note: {note}\n" for note in notes(robustness)],
            *([writer(LADDER_TITLE, ladder_grid(ladders))] if ladders is not None and len(ladders) else []),
            *([f"Note: {LADDER_NOTE}\n"] if ladders is not None and len(ladders) else []),
            *([writer(COMBINED_TITLE, combined_grid(combined))] if combined is not None and len(combined) else []),
            *([f"Note: {COMBINED_NOTE}\n"] if combined is not None and len(combined) else []),
            *[
                part
                for section in further
                if section.title
                for part in (writer(section.title, section.grid), f"Note: {section.note}\n")
            ],
            *([_findings(findings, robustness, how)] if findings else []),
            writer("cost", cost_grid(cost)),
        ]
    )


def _heading(title: str) -> str:
    return f"{title}: accuracy in %, 95 % Wilson intervals over images".strip(": ")


LADDER_TITLE = "ladders, rung by rung, accuracy in %"
LADDER_NOTE = (
    "alone is what an attack leaves by itself, so far the per-image minimum up to it, submitted the number of images "
    "that it made worst, all on the draws by which the ladder chose. On these a minimum is too low; the ladder's own "
    "line above is judged on fresh draws."
)
COMBINED_TITLE = "several attacks on one defence, accuracy in %"
COMBINED_NOTE = (
    "lowest takes for each image the attack with the lowest share of right draws, and is too low by the luck of the "
    "draws; selected chooses that attack on half of the draws and judges it on the others, and is not too low. "
    "Fixed-AA (mean) is the lowest Avg of any attack, fixed-AA (any) counts an image as lost if one draw of one "
    "attack fails: two readings of one protocol."
)


def notes(robustness: pd.DataFrame) -> list[str]:
    """What a reader of the table must know so as not to take it for more than it is."""
    found: list[str] = []
    if robustness.empty:
        return found
    defended = robustness["purifier"] != "none"
    if bool((robustness["static"] & defended).any()):
        adaptive = bool(((robustness["attack"] != "clean") & ~robustness["static"] & defended).any())
        which = "Attacks without a gradient mode in their name" if adaptive else "The attacks"
        found.append(
            f"{which} are static, made on the bare classifier without the purifier. Accuracy under them is an upper "
            "bound: it says nothing about an attacker who knows the defence."
        )
    if bool((robustness["resubmissions"] < robustness["draws"]).any()):
        found.append(
            "worst is the accuracy that is left when the attacker may submit M times, estimated without bias from "
            "all draws; where M is below the number of draws its interval is a bootstrap over images."
        )
    return found


def _with_rules(robustness: pd.DataFrame, found: Sequence[Finding] | None) -> pd.DataFrame:
    from workflows.audit import rules_on

    return (
        robustness
        if found is None or robustness.empty
        else robustness.assign(findings=[rules_on(found, [cell]) for cell in robustness["cell"]])
    )


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    rows = frame.to_dict("records")
    return [{str(k): None if not isinstance(v, list) and pd.isna(v) else v for k, v in row.items()} for row in rows]


_SHOWN_FINDINGS, _SHOWN_CELLS = 12, 3


def tally(found: Sequence[Finding]) -> str:
    """``2 errors, 1 note``: how many findings of each severity."""
    from workflows.audit import counts

    return ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity, n in counts(found).items() if n)


def auditor_line(found: Sequence[Finding]) -> str:
    """``auditor: 2 errors, 1 warning; puregrid tables shows them``."""
    return f"auditor: {tally(found)}; puregrid tables shows them" if found else "auditor: no findings"


def cell_names(finding: Finding, robustness: pd.DataFrame) -> list[str]:
    """What tables call the cells of a finding: one by one, or the defence where all cells of it are meant."""
    beside = list(finding.names)
    if robustness.empty:
        return beside
    if set(robustness["cell"]) <= set(finding.cells):
        every = "all cells" if len(robustness) > 1 else "the cell"
        return [f"{every} of the robustness table", *beside] if beside else [every]
    several = [name for name in ("dataset", "seed") if robustness[name].nunique() > 1]
    found = []
    for key, lines in robustness.groupby(["classifier", "defence", *several], sort=False):
        classifier, defence, *extra = map(str, key)
        where = ", ".join([classifier, defence, *(f"{n} {v}" for n, v in zip(several, extra, strict=True))])
        meant = lines[lines["cell"].isin(finding.cells)].to_dict("records")
        if len(meant) == len(lines) > 1:
            found.append(f"{where}, all {len(meant)} cells")
            continue
        attacks = [
            "clean" if line["attack"] == "clean" else f"{line['attack']} eps {format_eps(line['eps'])}"
            for line in meant
        ]
        found += [f"{where}, {attack}" for attack in attacks]
    return found + beside


def evidence_text(finding: Finding) -> str:
    """``attacked 0.9, clean 0.81, p 0.0021``: at most four digits each."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in finding.evidence.items())


def _findings(found: Sequence[Finding], robustness: pd.DataFrame, how: Format) -> str:
    """The first findings for people, each with its cells, numbers and what to do; in LaTeX how many there are."""
    head = f"Findings: {tally(found)}"
    if how == "latex":
        return f"% {head}; the formats text, md and json say which.\n"
    blocks = [f"**{head}**\n" if how == "md" else head]
    for finding in found[:_SHOWN_FINDINGS]:
        names = cell_names(finding, robustness)
        cells = "; ".join(names[:_SHOWN_CELLS])
        cells += f"; and {len(names) - _SHOWN_CELLS} more" if len(names) > _SHOWN_CELLS else ""
        parts = {"cells": cells, "evidence": evidence_text(finding), "to do": finding.action}
        if how == "md":
            text = "; ".join(f"{name}: {text}" for name, text in parts.items())
            # A bar would start a table in some readers.
            blocks.append(f"* **{finding.severity}** `{finding.rule}`: {finding.text} ({text})".replace("|", r"\|"))
            continue
        lines = [f"{finding.severity:<8} {finding.rule}: {finding.text}"]
        lines += [f"{'':<9}{name}: {text}" for name, text in parts.items()]
        blocks += [textwrap.fill(line, 110, subsequent_indent=" " * 11, break_long_words=False) for line in lines]
    if len(found) > _SHOWN_FINDINGS:
        blocks.append(f"... and {len(found) - _SHOWN_FINDINGS} more: `--format json` has them all")
    return "\n".join(blocks) + "\n"


def _text(title: str, grid: Grid) -> str:
    names, lines = grid
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right", no_wrap=True)
    groups = [name for name in ("dataset", "seed", "classifier", "defence") if name in names]
    last: list[str] | None = None
    for line in lines:
        key = [line[names.index(name)] for name in groups]
        if last is not None and key != last and "stage" not in names:
            table.add_section()
        table.add_row(*line)
        last = key
    # As wide as it gets, since a narrower console crops cells; names are not markup.
    console = Console(width=10_000, no_color=True, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _markdown(title: str, grid: Grid) -> str:
    names, lines = grid
    ruler = [":--" if name in TEXT_COLUMNS else "--:" for name in names]
    rows = [names, ruler, *lines]
    cells = ((cell.replace("|", r"\|") for cell in row) for row in rows)
    return f"**{title}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


_LATEX = str.maketrans(
    {
        **{character: "\\" + character for character in "%&_#{}$"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    }
)


def _latex(title: str, grid: Grid) -> str:
    names, lines = grid

    def escaped(text: str) -> str:
        return text.translate(_LATEX).replace("t*", "$t^*$")

    columns = "".join("l" if name in TEXT_COLUMNS else "r" for name in names)
    body = "\n".join(" & ".join(map(escaped, line)) + r" \\" for line in lines)
    head = " & ".join(map(escaped, names)) + r" \\"
    return (
        f"\\begin{{table}}\n\\caption{{{escaped(title)}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n"
        f"\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )
