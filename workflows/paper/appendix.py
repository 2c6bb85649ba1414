"""The folder of ``puregrid report --format paper``: an appendix that compiles by itself, and what it is made of."""

from importlib.metadata import version
from pathlib import Path

from defense.errors import InvalidInput
from defense.files import make_folder, writable_folder, write_text
from workflows.analysis import Analysis
from workflows.formats import render
from workflows.formats.latex import escaped
from workflows.formats.machine import frame_csv
from workflows.paper.archive import write_archive
from workflows.paper.bibliography import ALWAYS, bibtex, cited
from workflows.paper.checklist import checklist
from workflows.paper.methods import methods, methods_used
from workflows.paper.pdf import svg_to_pdf
from workflows.report.figures import figures

__all__ = ["check_folder", "write_appendix"]

_DOCUMENT = r"""% Compile: pdflatex appendix && bibtex appendix && pdflatex appendix && pdflatex appendix
% In a paper of yours: copy the packages, and \input{content}.
\documentclass{article}
\usepackage[T1]{fontenc}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage[utf8]{inputenc}
\usepackage[margin=2.4cm]{geometry}
\usepackage{amsmath, booktabs, graphicx, threeparttable, hyperref}
\usepackage[section]{placeins}
\emergencystretch=3em
\begin{document}
\appendix
\input{content}
\bibliographystyle{plain}
\bibliography{references}
\end{document}
"""


def check_folder(out: str | None) -> Path:
    """Return where the appendix will be, after a look whether it can be written there.

    Raises:
        InvalidInput: It is a file, or cannot be written.
    """
    path = Path("appendix" if out is None else out)
    if path.is_file():
        raise InvalidInput(f"{path} is a file: with --format paper give a folder.", where="--out")
    writable_folder(str(path), "the folder of the appendix", where="--out")
    return path


def write_appendix(analysis: Analysis, folder: Path, *, command: str) -> Path:
    """Write ``appendix.tex`` with ``content.tex``, ``references.bib``, ``figures`` as PDF and ``adversarial``.

    Arguments:
        analysis: The sweep's analysis.
        folder: Where; it is made, and files of these names are replaced.
        command: The command that reproduces it.

    Returns:
        ``appendix.tex``.

    Raises:
        InvalidInput: A file cannot be written, or matplotlib is not installed.
    """
    make_folder(folder / "figures", "the folder of figures")
    drawn = figures(analysis)
    for figure in drawn:
        (folder / "figures" / f"{figure.name}.pdf").write_bytes(svg_to_pdf(figure.drawing.file()))
        write_text(folder / "figures" / f"{figure.name}.csv", frame_csv(figure.frame), "the figure's numbers")
    sha256 = write_archive(analysis, folder / "adversarial")
    provenance = analysis.provenance(command)
    keys = [*ALWAYS, *cited([*methods_used(analysis.sweep), "combined"])]
    references = bibtex(keys, version("puregrid"))
    sections = {
        f"Evaluation of {analysis.sweep.name}": _sentences(analysis),
        "Methods": methods(analysis.sweep),
        "Results": render(analysis, "latex"),
        "Figures": "\n".join(
            "\\begin{figure}[htbp]\n\\centering\n"
            f"\\includegraphics[width=0.8\\linewidth]{{figures/{figure.name}.pdf}}\n"
            f"\\caption{{{escaped(figure.caption)}}}\n\\end{{figure}}\n"
            for figure in drawn
        ),
        "Checklist": checklist(analysis, provenance, archive=sha256, where="adversarial"),
        "Reproduction": _reproduction(command, provenance.facts, sha256),
    }
    content = "\n".join(f"\\section{{{escaped(title)}}}\n{body}" for title, body in sections.items() if body)
    write_text(folder / "content.tex", content, "the appendix")
    write_text(
        folder / "references.bib",
        references,
        "the references",
    )
    write_text(folder / "appendix.tex", _DOCUMENT, "the appendix")
    return folder / "appendix.tex"


def _sentences(analysis: Analysis) -> str:
    first = "Every number here was computed by puregrid~\\cite{puregrid} from committed rows."
    return "\n\n".join([first, *map(escaped, [*analysis.warnings, *analysis.summary])]) + "\n"


def _reproduction(command: str, facts: tuple[tuple[str, str], ...], sha256: str) -> str:
    lines = [f"\\item[{escaped(name)}] {_broken(value)}" for name, value in facts if name != "command"]
    judge = f"puregrid judge adversarial --sha256 {sha256}"
    return (
        "The command that reproduces this appendix, and the one that judges its adversarial images again:\n\n"
        f"\\begin{{quote}}\\small {_broken(command, mono=True)}\n\n{_broken(judge, mono=True)}\\end{{quote}}\n\n"
        "\\begin{description}\\small\n" + "\n".join(lines) + "\n\\end{description}\n"
    )


def _broken(text: str, *, mono: bool = False) -> str:
    """Escaped text in which long words may break anywhere."""
    words = []
    for word in text.split(" "):
        pieces = [escaped(word[i : i + 8]).replace("--", "-{}-") for i in range(0, len(word), 8)]
        words.append("\\allowbreak{}".join(pieces))
    body = " ".join(words)
    return f"\\texttt{{{body}}}" if mono else body
