"""Files that a user asks for are whole, or as they were; a full disk is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from defense.errors import PuregridError
from workflows.cli.base import errors
from workflows.formats.writing import write_text
from workflows.monitoring.events import log_event, log_to

FULL = Path("/dev/full")


def test_a_file_is_replaced_and_keeps_its_rights_and_its_links(tmp_path: Path) -> None:
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    write_text(page, "old")
    assert page.stat().st_mode & 0o777 == 0o666 & ~_umask()
    page.chmod(0o640)
    link.symlink_to(page)
    write_text(link, "new ä")
    assert page.read_text(encoding="utf-8") == "new ä" and link.is_symlink()
    assert page.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "page.html"]
    write_text(Path(os.devnull), "nothing to rename")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_on_a_full_disk_the_old_file_stays_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    write_text(page, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PuregridError, match=r"page.html cannot be written \(No space left.*as it was"):
        write_text(page, "new")
    assert page.read_text() == "old" and list(tmp_path.iterdir()) == [page]
    with pytest.raises(PuregridError, match="/dev/full cannot be written"):
        write_text(FULL, "new")


def test_whatever_a_command_writes_a_full_disk_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    from typer import Exit

    with pytest.raises(Exit), errors():
        FULL.write_text("x")
    assert "error: [Errno 28] No space left on device" in capsys.readouterr().err
    with pytest.raises(IsADirectoryError), errors():  # a mistake of the program
        Path("/").write_text("x")


def test_a_log_on_a_full_disk_is_given_up_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to(FULL):
        for number in range(3):
            log_event("committed", unit=str(number))
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1 and "Traceback" not in said
