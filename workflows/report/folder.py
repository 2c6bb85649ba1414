"""The report as a folder: the page, and for every cell a page of its images, which are files of their own.

Equal images are one file, named by their content: the original of an image is there once for all cells.
"""

import hashlib
from pathlib import Path

from defense.errors import PuregridError
from defense.files import make_folder, write_text
from workflows.analysis import Analysis
from workflows.report.gallery import Group, Reading, order
from workflows.report.page import report
from workflows.report.parts import environment, look

__all__ = ["report_folder"]

_EACH = 4
"""Images of each kind on the page of a cell."""


def report_folder(analysis: Analysis, folder: Path, *, command: str, images: int | None = None) -> Path:
    """Write the report as a folder, and return its ``index.html``.

    Arguments:
        analysis: The sweep's analysis.
        folder: Where; it is made, and files of these names are replaced.
        command: The command that reproduces it.
        images: Cells whose images are in the page itself too, as :func:`workflows.report.page.report` takes it.

    Raises:
        InvalidInput: It cannot be written there.
    """
    for part in ("cells", "images"):
        make_folder(folder / part, "the folder of images")
    reading, pages = Reading(analysis), {}
    written: set[str] = set()
    for cell in order(analysis):
        try:
            group = reading.group(cell, _EACH)
        except PuregridError:
            break  # the page itself says which data cannot be read
        if group is None:
            continue
        name = f"{cell.id[:12]}.html"
        write_text(folder / "cells" / name, _page(analysis, group, folder / "images", written), "the page of a cell")
        pages[cell.id] = f"cells/{name}"
    shown = 0 if images is None and pages else images
    text = report(analysis, command=command, images=shown, pages=pages)
    write_text(folder / "index.html", text, "the page")
    return folder / "index.html"


def _page(analysis: Analysis, group: Group, folder: Path, written: set[str]) -> str:
    pictures = []
    for picture in group.pictures:
        places = []
        for text, file in picture.shown:
            name = f"{hashlib.sha256(file).hexdigest()[:16]}.png"
            if name not in written:
                (folder / name).write_bytes(file)
                written.add(name)
            places.append((text, f"../images/{name}"))
        pictures.append((picture, places))
    template = environment().get_template("cell.html")
    sweep = analysis.sweep
    return template.render(**look(), title=sweep.name, subtitle=f"sweep {sweep.id}", group=group, pictures=pictures)
