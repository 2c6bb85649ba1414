"""Two runs as a folder: the page, and beside it pages for the images that it shows, with every draw of either run."""

import re
from pathlib import Path

from defense.errors import PuregridError
from defense.files import make_folder, shown, write_text
from workflows.images import single
from workflows.regression.page import comparison_page
from workflows.regression.snapshots import Snapshot
from workflows.regression.thumbnails import ORDINALS, Thumbnail
from workflows.report.single import single_page

__all__ = ["comparison_folder"]

_MOST = 24
"""Images that have pages: every draw of each is computed again, in both runs."""

_PAGE = re.compile(rf"[0-9a-f]{{8}}-\d+-({'|'.join(ORDINALS)})\.html")
"""Names of the pages of images, by which those of an earlier comparison are known."""


def comparison_folder(first: Snapshot, second: Snapshot, names: tuple[str, str], folder: Path) -> Path:
    """Write a comparison as a folder, and return its ``index.html``.

    ``images`` has two pages for each of the first 24 images that the page shows, one a run: what
    ``puregrid show --html`` writes. Their addresses are the cell and the image, so that they stay.

    Arguments:
        first: The first run.
        second: The second, of which differences are the surplus.
        names: What the user calls them.
        folder: Where; it is made, files of these names are replaced, and pages of images that only an earlier
            comparison had are removed.

    Raises:
        PuregridError: It cannot be written there.
    """
    make_folder(folder / "images", "the folder of images")
    results = [snapshot.results for snapshot in (first, second) if snapshot.results is not None]
    written: list[str] = []

    def pages(image: Thumbnail) -> tuple[tuple[str, str], ...]:
        if len(written) >= len(ORDINALS) * _MOST:
            return ()
        files = [
            f"images/{cell.id[:8]}-{image.image}-{run}.html" for cell, run in zip(image.cells, ORDINALS, strict=True)
        ]
        contents = [single(run, cell, image.image) for run, cell in zip(results, image.cells, strict=True)]
        for place, (file, content) in enumerate(zip(files, contents, strict=True)):
            other = ORDINALS[1 - place]
            crumbs = [
                (f"../index.html#{image.anchor}", "The two runs"),
                (files[1 - place].removeprefix("images/"), f"in the {other} run"),
            ]
            text = single_page(
                content, image.commands[place], crumbs=crumbs, run=f"{ORDINALS[place]} run, {names[place]}"
            )
            write_text(folder / file, text, "the page of an image")
        written.extend(files)
        return tuple((f"all draws, {run} run", file) for run, file in zip(ORDINALS, files, strict=True))

    write_text(folder / "index.html", comparison_page(first, second, names, pages), "the page")
    _remove_others(folder / "images", {Path(file).name for file in written})
    return folder / "index.html"


def _remove_others(images: Path, written: set[str]) -> None:
    """Remove pages of images that were not written now; other files stay."""
    try:
        for path in images.iterdir():
            if _PAGE.fullmatch(path.name) and path.name not in written:
                path.unlink()
    except OSError as error:
        raise PuregridError(
            f"pages of an earlier comparison in {shown(images)} could not be removed ({error.strerror or error})."
        ) from error
