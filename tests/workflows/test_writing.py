"""A full disk is named, and no traceback."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from workflows.cli.base import errors
from workflows.monitoring.events import LOGGER, log_event, log_to

FULL = Path("/dev/full")


def test_whatever_a_command_writes_a_full_disk_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    from typer import Exit

    with pytest.raises(Exit), errors():
        FULL.write_text("x")
    assert "error: [Errno 28] No space left on device" in capsys.readouterr().err
    with pytest.raises(IsADirectoryError), errors():  # a mistake of the program
        Path("/").write_text("x")


def test_a_log_on_a_full_disk_is_given_up_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log_to(tmp_path / "events.jsonl"):
        (handler,) = (handler for handler in LOGGER.handlers if isinstance(handler, logging.FileHandler))
        handler.setStream(FULL.open("w"))
        for number in range(3):
            log_event("committed", unit=str(number))
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1 and "Traceback" not in said
