"""Two runs as a folder: the page, and beside it pages for the images that it shows, with every draw of either run."""

from __future__ import annotations

from pathlib import Path

from defense.files import make_folder, write_text
from workflows.images import single
from workflows.regression.page import comparison_page
from workflows.regression.snapshots import Snapshot
from workflows.regression.thumbnails import Thumbnail
from workflows.report.single import single_page

__all__ = ["comparison_folder"]

_MOST = 24
"""Images that have pages: every draw of each is computed again, in both runs."""

_ORDINALS = ("first", "second")


def comparison_folder(first: Snapshot, second: Snapshot, names: tuple[str, str], folder: Path) -> Path:
    """Write a comparison as a folder, and return its ``index.html``.

    ``images`` has two pages for each of the first 24 images that the page shows, one a run: what
    ``puregrid show --html`` writes. Their addresses are the cell and the image, so that they stay.

    Arguments:
        first: The first run.
        second: The second, of which differences are the surplus.
        names: What the user calls them.
        folder: Where; it is made, and files of these names are replaced.

    Raises:
        InvalidInput: It cannot be written there.
    """
    make_folder(folder / "images", "the folder of images")
    results = [snapshot.results for snapshot in (first, second) if snapshot.results is not None]
    written: list[str] = []

    def pages(image: Thumbnail) -> tuple[tuple[str, str], ...]:
        if len(written) >= _MOST:
            return ()
        files = [
            f"images/{cell.id[:8]}-{image.image}-{run}.html" for cell, run in zip(image.cells, _ORDINALS, strict=True)
        ]
        shown = [single(run, cell, image.image) for run, cell in zip(results, image.cells, strict=True)]
        for place, (file, found) in enumerate(zip(files, shown, strict=True)):
            other = _ORDINALS[1 - place]
            crumbs = [
                (f"../index.html#{image.anchor}", "The two runs"),
                (files[1 - place].removeprefix("images/"), f"in the {other} run"),
            ]
            text = single_page(
                found, image.commands[place], crumbs=crumbs, run=f"{_ORDINALS[place]} run, {names[place]}"
            )
            write_text(folder / file, text, "the page of an image")
        written.append(image.anchor)
        return tuple((f"all draws, {run} run", file) for run, file in zip(_ORDINALS, files, strict=True))

    write_text(folder / "index.html", comparison_page(first, second, names, pages), "the page")
    return folder / "index.html"
