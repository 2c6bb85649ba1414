"""A report as files: the page; or for a wiki or a paper tables as Markdown or LaTeX, with figures as SVG and CSV."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from defense.errors import InvalidInput
from defense.files import make_folder, writable, writable_folder, write_text
from workflows.analysis import Analysis
from workflows.formats import render
from workflows.formats.latex import PACKAGES
from workflows.formats.machine import frame_csv
from workflows.report.figures import Figure, figures
from workflows.report.folder import report_folder
from workflows.report.page import report

__all__ = ["FORMATS", "Format", "check_out", "report_to"]

Format = Literal["html", "md", "latex"]
FORMATS: tuple[Format, ...] = get_args(Format)


def report_to(
    analysis: Analysis, out: Path | str | None, how: Format, *, command: str, images: int | None = None
) -> Path:
    """Write the report.

    Arguments:
        analysis: The sweep's analysis.
        out: Of ``html`` the file, by default ``report.html``, or as ``PATH/`` a folder: ``index.html``, in ``cells``
            a page with the images of each cell. Else the folder, by default ``report``, which is made:
            ``report.md`` or ``report.tex``, and in ``figures`` an SVG and a CSV file of each. Files of these names
            are replaced. LaTeX needs the packages ``booktabs``, ``graphicx`` and ``threeparttable``,
            and figures as PDF (``rsvg-convert -f pdf``).
        how: The format.
        command: The command that reproduces it.
        images: Of ``html``, as :func:`workflows.report.report` takes it.

    Returns:
        The file to open.

    Raises:
        InvalidInput: ``out`` is a folder where a file is wanted, or a file where a folder is, or lies in neither.
    """
    path = check_out(out, how)
    if how == "html" and _folder_wanted(out):
        return report_folder(analysis, path, command=command, images=images)
    if how == "html":
        write_text(path, report(analysis, command=command, images=images), "the page")
        return path
    return _folder(analysis, path, how, command)


def check_out(out: Path | str | None, how: Format) -> Path:
    """Return where a report will be, after a look whether it can be written there.

    Raises:
        InvalidInput: See there.
    """
    name = ("report.html" if how == "html" else "report") if out is None else out
    path = Path(name)
    if how == "html" and _folder_wanted(out):
        if os.path.isfile(path):
            raise InvalidInput(f"{path} is a file: {name} is to be a folder.", where="--out")
        writable_folder(str(path), "the folder of the page", where="--out")
    elif how == "html":
        if os.path.isdir(name):
            raise InvalidInput(
                f"{path} is a folder: give a file, or {path}/ for a page with its images as files beside it.",
                where="--out",
            )
        writable(name, "the page", where="--out")
    elif os.path.isfile(name):
        raise InvalidInput(f"{path} is a file: with --format {how} give a folder.", where="--out")
    else:
        writable_folder(name, "the folder of the report", where="--out")
    return path


def _folder_wanted(out: Path | str | None) -> bool:
    return isinstance(out, str) and out.endswith(("/", os.sep))


def _folder(analysis: Analysis, folder: Path, how: Literal["md", "latex"], command: str) -> Path:
    drawn = figures(analysis)
    make_folder(folder / "figures", "the folder of figures")
    for figure in drawn:
        write_text(folder / "figures" / f"{figure.name}.svg", figure.drawing.file(), "the figure")
        write_text(folder / "figures" / f"{figure.name}.csv", frame_csv(figure.frame), "the figure's numbers")
    tables = render(analysis, how)
    sentences = [*analysis.warnings, *analysis.summary]
    if how == "md":
        text = _markdown(analysis, sentences, tables, drawn, command)
    else:
        # Notes on the sweep are comments, for those who put its tables into a paper.
        head = [*sentences, f"sweep {analysis.sweep.id}: {command}", f"needs \\usepackage{{{PACKAGES}}}"]
        head += [f"figures/{figure.name}.svg: {figure.topic}: {figure.caption}" for figure in drawn]
        text = "".join(f"% {' '.join(line.split())}\n" for line in head) + "\n" + tables
    path = folder / ("report.md" if how == "md" else "report.tex")
    write_text(path, text, "the report")
    return path


def _markdown(
    analysis: Analysis, sentences: Sequence[str], tables: str, drawn: Sequence[Figure], command: str
) -> str:
    parts = [f"# {analysis.sweep.name}\n", *(f"{sentence}\n" for sentence in sentences), tables]
    topic = ""
    for figure in drawn:
        if figure.topic != topic:
            parts.append(f"## {figure.topic}\n")
            topic = figure.topic
        alt = figure.caption.replace("[", "(").replace("]", ")")
        parts.append(f"![{alt}](figures/{figure.name}.svg)\n\n{figure.caption}\n")
    parts.append(f"Sweep {analysis.sweep.id}: `{command}`\n")
    return "\n".join(parts)
