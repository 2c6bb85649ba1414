"""The board as a folder of static pages and files, which needs no server and no network.

::

    index.html            the board          claims.html     which claims survive, and what the attacks hid
    defences/KEY.html     a page a defence   claims/KEY.html a page a claim
    rows/KEY.csv|parquet  its rows           sweeps/*.yaml   the sweep files
    data/DATA/THREAT/leaderboard.json        in the form of RobustBench's model info
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from defense.errors import InvalidInput
from defense.files import make_folder, writable_folder, write_text
from workflows.formats.machine import frame_csv
from workflows.images.rows import flat_rows, image_rows
from workflows.leaderboard.board import Board, board_of
from workflows.leaderboard.claims import claims_of
from workflows.leaderboard.entries import Entry
from workflows.leaderboard.model_info import files as model_files
from workflows.leaderboard.pages import board_page, claim_page, claims_page, defence_page
from workflows.leaderboard.sources import Source

__all__ = ["write_site"]

_FOLDERS = ("defences", "claims", "rows", "sweeps", "data")
_MARK = ".puregrid-leaderboard"
"""A file by which a folder is known as one that this has written, so that what is old in it may go."""


def write_site(sources: Sequence[Source], out: Path | str) -> Path:
    """Write the site, and return its first page.

    Pages of an earlier board in the folder are removed; other files stay.

    Arguments:
        sources: The sweeps.
        out: The folder; it is made.

    Raises:
        InvalidInput: It is a file, or cannot be written, or has folders of these names that are no board's; or no
            defence of the sweeps enters the board.
    """
    folder = check_folder(out)
    board = board_of(sources)
    if not board.lines:
        why = "; ".join(board.left_out[:3]) or "nothing is committed"
        raise InvalidInput(f"no defence of these sweeps enters the board: {why}. Run them, then try again.")
    make_folder(folder, "the folder of the site")
    write_text(folder / _MARK, "", "the mark of the site")
    # Whole first, so that what ends it leaves the board that is there.
    with TemporaryDirectory(dir=folder, prefix=".new-") as new:
        _write(board, Path(new))
        for name in _FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for path in Path(new).iterdir():
            os.replace(path, folder / path.name)
    return folder / "index.html"


def _write(board: Board, folder: Path) -> None:
    for name in _FOLDERS:
        make_folder(folder / name, "a folder of the site")
    claims, files = claims_of(board), list[str]()
    for path, models in model_files(board, claims).items():
        files.append(f"data/{path}")
        make_folder((folder / files[-1]).parent, "a folder of the site")
        write_text(folder / files[-1], json.dumps(models, indent=1) + "\n", "the board as JSON")
    for source in board.sources:
        write_text(folder / "sweeps" / source.file, source.sweep.text, "a sweep file")
    for entry in board.entries:
        rows = _write_rows(entry, folder / "rows")
        write_text(folder / "defences" / f"{entry.key}.html", defence_page(entry, claims, rows), "a page")
    for claim in claims:
        write_text(folder / "claims" / f"{claim.key}.html", claim_page(claim), "a page")
    write_text(folder / "claims.html", claims_page(board, claims), "a page")
    write_text(folder / "index.html", board_page(board, claims, files), "the page of the board")


def check_folder(out: Path | str) -> Path:
    """Return the folder of a site, after a look whether it can be written there.

    Raises:
        InvalidInput: See :func:`write_site`.
    """
    folder = writable_folder(out, "the folder of the site", where="--out")
    if folder.is_dir() and not (folder / _MARK).exists():
        there = [name for name in _FOLDERS if (folder / name).exists()]
        if there:
            raise InvalidInput(
                f"{folder} has folders that no leaderboard has made and that would be replaced: {', '.join(there)}. "
                "Give another folder.",
                where="--out",
            )
    return folder


def _write_rows(entry: Entry, folder: Path) -> list[str]:
    """Write the rows of a defence, judgements and certificates apart, and return the names of the files."""
    names = []
    for suffix, certified in (("", False), ("-certificates", True)):
        frames = []
        for source, cells in entry.places.values():
            own = [cell for cell in cells if (cell.certificate is not None) == certified]
            frame = image_rows(source.results, (), cells=own)
            if len(frame):
                frame.insert(0, "sweep", source.name)
                frames.append(frame)
        if frames:
            frame = pd.concat(frames, ignore_index=True)
            names += [f"{entry.key}{suffix}.csv", f"{entry.key}{suffix}.parquet"]
            write_text(folder / names[-2], frame_csv(flat_rows(frame)), "the rows")
            frame.to_parquet(str(folder / names[-1]), index=False)
    return names
