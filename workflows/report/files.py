"""A report as files: the page; or for a wiki or a paper tables as Markdown or LaTeX, with figures as SVG and CSV."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from defense.errors import InvalidInput
from workflows.audit import findings
from workflows.published.table import published_table
from workflows.report.figures import Figure, figures
from workflows.report.page import report
from workflows.report.summary import missing, summary
from workflows.results.reader import Results
from workflows.tables.ladders import ladder_table
from workflows.tables.render import notes, render
from workflows.tables.sections import sections

__all__ = ["FORMATS", "Format", "report_to"]

Format = Literal["html", "md", "latex"]
FORMATS: tuple[Format, ...] = get_args(Format)


def report_to(results: Results, out: Path | None, how: Format, *, command: str, images: int | None = None) -> Path:
    """Write the report.

    Arguments:
        results: The sweep's results.
        out: Of ``html`` the file, by default ``report.html``; else the folder, by default ``report``, which is made:
            ``report.md`` or ``report.tex``, and in ``figures`` an SVG and a CSV file of each. Files of these names
            are replaced. LaTeX needs the packages ``booktabs`` and ``graphicx``, and figures as PDF
            (``rsvg-convert -f pdf``).
        how: The format.
        command: The command that reproduces it.
        images: Of ``html``, as :func:`workflows.report.report` takes it.

    Returns:
        The file to open.

    Raises:
        InvalidInput: ``out`` is a folder where a file is wanted, or a file where a folder is, or lies in neither.
    """
    path = out or Path("report.html" if how == "html" else "report")
    if how == "html":
        if path.is_dir() or not path.parent.is_dir():
            what = "is a folder" if path.is_dir() else f"lies in {path.parent}, which is no folder"
            raise InvalidInput(f"{path} {what}: give a file to write the page to.", where="--out")
        path.write_text(report(results, command=command, images=images), encoding="utf-8")
        return path
    if path.exists() and not path.is_dir():
        raise InvalidInput(f"{path} is a file: with --format {how} give a folder.", where="--out")
    return _folder(results, path, how, command)


def _folder(results: Results, folder: Path, how: Literal["md", "latex"], command: str) -> Path:
    robustness, cost, further, found = results.robustness(), results.cost(), sections(results), findings(results)
    published = published_table(results)
    drawn = figures(results, robustness, further, published)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for figure in drawn:
        (folder / "figures" / f"{figure.name}.svg").write_text(figure.drawing.file(), encoding="utf-8")
        (folder / "figures" / f"{figure.name}.csv").write_text(figure.frame.to_csv(index=False), encoding="utf-8")
    tables = render(
        robustness,
        cost,
        how,
        title=results.sweep.name,
        findings=found,
        combined=results.combined(),
        ladders=ladder_table(results),
        further=[*further, *([] if published is None else [published.as_text()])],
    )
    warning = [] if published is None or not published.warning else [published.warning]
    sentences = [*warning, *missing(results), *summary(robustness, further, found)]
    if how == "md":
        text = _markdown(results, sentences, tables, drawn, command)
    else:
        # Comments: what is said of the tables is for those who put them into a paper.
        head = [
            *sentences,
            *notes(robustness),
            f"sweep {results.sweep.id}: {command}",
            "needs \\usepackage{booktabs, graphicx}",
        ]
        head += [f"figures/{figure.name}.svg: {figure.topic}: {figure.caption}" for figure in drawn]
        text = "".join(f"% {' '.join(line.split())}\n" for line in head) + "\n" + _fitting(_without_notes(tables))
    path = folder / ("report.md" if how == "md" else "report.tex")
    path.write_text(text, encoding="utf-8")
    return path


def _markdown(results: Results, sentences: Sequence[str], tables: str, drawn: Sequence[Figure], command: str) -> str:
    parts = [f"# {results.sweep.name}\n", *(f"{sentence}\n" for sentence in sentences), tables]
    topic = ""
    for figure in drawn:
        if figure.topic != topic:
            parts.append(f"## {figure.topic}\n")
            topic = figure.topic
        alt = figure.caption.replace("[", "(").replace("]", ")")
        parts.append(f"![{alt}](figures/{figure.name}.svg)\n\n{figure.caption}\n")
    parts.append(f"Sweep {results.sweep.id}: `{command}`\n")
    return "\n".join(parts)


def _without_notes(tables: str) -> str:
    """LaTeX tables with the notes between them as comments."""
    return "\n".join(f"% {line}" if line.startswith("Note: ") else line for line in tables.splitlines()) + "\n"


_TABLE = re.compile(
    r"\\begin{table}\n\\caption{([^\n]*)}\n(\\begin{tabular}.*?\\midrule\n)(.*?)\\bottomrule\n\\end{tabular}\n\\end{table}\n",
    re.DOTALL,
)
_FIT = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
"""Smaller where a table is wider than the text, never larger."""

_PAGE = 45
"""Lines of a table on a page: a float that is longer runs off it."""


def _fitting(tables: str) -> str:
    """LaTeX tables none of which runs off the page: wide ones smaller, long ones in parts."""

    def parts(found: re.Match[str]) -> str:
        caption, head, body = found.groups()
        lines = body.splitlines(keepends=True)
        pages = [lines[i : i + _PAGE] for i in range(0, len(lines), _PAGE)] or [[]]
        captions = (
            [caption] if len(pages) == 1 else [f"{caption} ({i} of {len(pages)})" for i in range(1, len(pages) + 1)]
        )
        return "\n".join(
            f"\\begin{{table}}\n\\caption{{{said}}}\n{_FIT}{head}{''.join(page)}"
            "\\bottomrule\n\\end{tabular}}\n\\end{table}\n"
            for said, page in zip(captions, pages, strict=True)
        )

    return _TABLE.sub(parts, tables)
