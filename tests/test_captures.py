"""The page of captures: a terminal is followed as it behaves, and every command is on the page at every width."""

from __future__ import annotations

import sys

from loops import every  # type: ignore[import-not-found]

from scripts.captures import COMMANDS, PAGE, WIDTHS, in_a_pipe, on_a_terminal, screen

SIZE = [sys.executable, "-c", "import os, sys; print(sys.stdout.isatty() and os.get_terminal_size().columns)"]


@every(
    ("text", "shown"),
    [
        ("checking ...\r\x1b[2Kdone\n", "done\n"),
        ("abc\rX\n", "Xbc\n"),
        ("one\ntwo\n\x1b[1A\x1b[2Knew\n", "one\nnew\n"),
        ("\x1b[1;31mred\x1b[0m\x1b[?25l\n", "red\n"),
        ("abc\r\x1b[K\x1b]8;;x\x07d\n", "d\n"),
    ],
)
def test_a_terminal_shows_what_was_not_overwritten_or_erased(text: str, shown: str) -> None:
    assert screen(text) == shown


def test_a_command_has_a_terminal_of_that_width_or_none() -> None:
    assert (on_a_terminal(SIZE, 80), on_a_terminal(SIZE, 200), in_a_pipe(SIZE)) == ("80\n", "200\n", "False\n")


def test_the_page_has_every_command_at_every_width_in_lines_that_fit() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, _ in COMMANDS:
        section = text.partition(f"## puregrid {name} quickstart\n")[2].partition("\n## ")[0]
        _, *blocks = section.split("```\n")[:6]
        narrow, wide, pipe = blocks[0], blocks[2], blocks[4]
        assert "quickstart" in narrow and "quickstart" in pipe
        for block, columns in zip((narrow, wide), WIDTHS, strict=True):
            if name in ("run", "tables"):  # plans and statuses are wrapped by the terminal itself
                assert max(map(len, block.splitlines())) <= columns
    assert "\x1b" not in text
