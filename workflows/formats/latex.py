r"""Tables for a paper: ``booktabs`` and ``threeparttable``, each with its notes and findings below it.

A table that is copied out of the file keeps its notes and findings: notes are ``tablenotes``, and a line with
a finding has its number as ``\tnote``. A table that is wider than the text is made smaller, a longer one than a page
is several.
"""

import re
from collections.abc import Sequence

from defense.text import in_one_line
from workflows.audit import Finding
from workflows.formats.findings import NumberedFinding, numbered_findings, on_lines, shown
from workflows.tables.table import Table

__all__ = ["PACKAGES", "document", "escaped"]

PACKAGES = "booktabs, graphicx, threeparttable"
"""What a document needs that holds the tables."""

_FIT = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
"""Smaller where a table is wider than the text, never larger."""

_PAGE = 45
"""Lines of a table and its notes on a page: a float that is longer runs off it."""

_LEAST = 10
"""Lines of a table on a page, however long its notes are."""

_NOTE_WIDTH = 100
"""Characters of a note in a line, about."""

_ESCAPES = str.maketrans(
    {
        **{character: "\\" + character for character in "%&_#{}$"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    }
)


def escaped(text: str) -> str:
    """Escape text for LaTeX; t* is set in mathematics and words in back quotes in typewriter."""
    plain = in_one_line(text.replace("\n", " ")).translate(_ESCAPES).replace("t*", "$t^*$")
    return re.sub(r"`([^`]+)`", r"\\texttt{\1}", plain)


def document(tables: Sequence[Table], title: str, findings: Sequence[Finding]) -> str:
    """Render all tables; findings that no line carries stand below the first one."""
    words = numbered_findings(findings, tables)
    carried = on_lines(tables, findings)
    unplaced = [finding for finding in words if finding.number not in carried]
    parts = []
    for place, table in enumerate(tables):
        parts.append(_parts(table, title, findings, words, unplaced if place == 0 else []))
    return "\n".join(parts)


def _parts(
    table: Table,
    title: str,
    findings: Sequence[Finding],
    words: Sequence[NumberedFinding],
    unplaced: Sequence[NumberedFinding],
) -> str:
    marks = table.marks(findings)
    notes = [f"\\item {escaped(note)}" for note in (table.warning, table.note, *table.remarks) if note]
    lines = list(zip(table.lines(), marks, strict=True))
    numbers = sorted({number for on_page in marks for number in on_page})
    height = sum(1 + len(note) // _NOTE_WIDTH for note in [*notes, *map(_item, _named(words, numbers, unplaced))])
    most = max(_LEAST, _PAGE - height)
    pages = [lines[i : i + most] for i in range(0, len(lines), most)] or [[]]
    caption = escaped(": ".join(filter(None, (title, table.title))))
    floats = []
    for place, page in enumerate(pages):
        last = place + 1 == len(pages)
        on_page = sorted({number for _, numbers in page for number in numbers})
        items = [*(notes if last else []), *map(_item, _named(words, on_page, unplaced if last else ()))]
        left_out = len(on_page) - len(_named(words, on_page, ()))
        if left_out:
            items.append(f"\\item and {left_out} more findings; \\texttt{{--format json}} has them all.")
        heading = caption if len(pages) == 1 else f"{caption} ({place + 1} of {len(pages)})"
        floats.append(_float(table, heading, page, items))
    return "\n".join(floats)


def _named(
    words: Sequence[NumberedFinding],
    numbers: Sequence[int],
    unplaced: Sequence[NumberedFinding],
) -> list[NumberedFinding]:
    return [*shown([words[number - 1] for number in numbers]), *shown(unplaced)]


def _item(finding: NumberedFinding) -> str:
    parts = "; ".join(f"{name}: {text}" for name, text in finding.parts.items() if name != "cells")
    text = f"{finding.severity}: {finding.rule}: {finding.text} ({parts})"
    return f"\\item[{finding.number}] {escaped(text)}"


def _float(
    table: Table, caption: str, page: Sequence[tuple[list[str], tuple[int, ...]]], items: Sequence[str]
) -> str:
    columns = "".join("l" if column.left else "r" for column in table.visible)
    head = " & ".join(escaped(column.title) for column in table.visible)
    intervals = [column.interval is not None for column in table.visible]
    body = "\n".join(_line(line, numbers, intervals) for line, numbers in page)
    # Outside of the box that is made smaller, so that notes stay readable below the widest table.
    notes = "\\begin{tablenotes}\\footnotesize\n" + "\n".join(items) + "\n\\end{tablenotes}\n" if items else ""
    return (
        f"\\begin{{table}}[htbp]\n\\caption{{{caption}}}\n{_FIT}"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\n"
        f"\\bottomrule\n\\end{{tabular}}}}\n{notes}\\end{{table}}\n"
    )


def _small(interval: str) -> str:
    """A value, with its interval in smaller letters: a table of five intervals has to fit on a page."""
    return re.sub(r"(\[[^\]]*\])", r"{\\footnotesize \1}", interval)


def _line(line: Sequence[str], numbers: Sequence[int], intervals: Sequence[bool]) -> str:
    cells = zip(map(escaped, line), intervals, strict=True)
    first, *rest = (_small(cell) if interval else cell for cell, interval in cells)
    mark = f"\\tnote{{{','.join(map(str, numbers))}}}" if numbers else ""
    return " & ".join([first + mark, *rest]) + r" \\"
