"""Write ``docs/terminal.md``: what the commands print on narrow and wide terminals and into a pipe.

    python -m scripts.captures --store results     # of a store that holds the quickstart; else it is computed first

Each command runs on a terminal of its own (a pseudo-terminal) whose escapes are followed as a terminal follows them,
so that the page has what is on the screen at the end. Times are those of the machine.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

__all__ = ["PAGE", "in_a_pipe", "on_a_terminal", "page", "screen"]

PAGE = Path(__file__).parents[1] / "docs" / "terminal.md"

COMMANDS = (
    ("plan", "what would run; here all of it is committed"),
    ("run", "the same: it computes nothing and prints the leaderboard"),
    ("status", "what is committed, failed or missing"),
    ("tables", "every table and finding"),
)
WIDTHS = (80, 200)

_ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b\][^\x07]*\x07")


def screen(text: str) -> str:
    """Return what a terminal shows after a text: lines that were overwritten or erased are gone, colours too."""
    lines, row, column, place = [""], 0, 0, 0
    while place < len(text):
        escape = _ESCAPE.match(text, place)
        if escape is not None:
            place = escape.end()
            count = int(escape[1]) if (escape[1] or "").isdigit() else 1
            if escape[2] == "A":
                row = max(0, row - count)
            elif escape[2] == "K":
                kept = "" if escape[1] == "2" else lines[row][:column]
                lines[row] = kept
            continue
        letter, place = text[place], place + 1
        if letter == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif letter == "\r":
            column = 0
        else:
            lines[row] = f"{lines[row]:<{column}}"[:column] + letter + lines[row][column + 1 :]
            column += 1
    return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n"


def on_a_terminal(command: list[str], columns: int) -> str:
    """Return what is on a terminal of so many columns after a command: its results and its notes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(  # noqa: S603 - commands of this module
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm-256color"}
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:  # the end, on Linux
                raise
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{b''.join(parts).decode()}")
    return screen(b"".join(parts).decode().replace("\r\n", "\n"))


def in_a_pipe(command: list[str]) -> str:
    """Return what a command writes to stdout where that is no terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(  # noqa: S603 - commands of this module
        command, capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip("\n") + "\n"


def page(store: str) -> str:
    """Return the page."""
    parts = [
        "# What the terminal shows\n\nMade by `python -m scripts.captures`, of the quickstart, on terminals of "
        f"{WIDTHS[0]} and {WIDTHS[1]} columns and in a pipe. Colours are not shown here. A table that is wider than "
        "the terminal becomes blocks; a pipe gets every column, and no colours and no bar.\n"
    ]
    for name, what in COMMANDS:
        command = [sys.executable, "-m", "workflows.cli", name, "quickstart", "--store", store]
        command += ["--mlflow", "off"] if name == "run" else []
        parts.append(f"## puregrid {name} quickstart\n\n{what[0].upper()}{what[1:]}.\n")
        for columns in WIDTHS:
            parts.append(f"{columns} columns:\n\n```\n{on_a_terminal(command, columns)}```\n")
        parts.append(f"`puregrid {name} quickstart | cat`:\n\n```\n{in_a_pipe(command)}```\n")
    return "\n".join(parts).replace(store, "results")


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="A store that holds the quickstart.")
    given = parser.parse_args().store
    with tempfile.TemporaryDirectory() as folder:
        store = given or str(Path(folder) / "results")
        if given is None:
            command = [sys.executable, "-m", "workflows.cli", "run", "quickstart", "--store", store]
            subprocess.run([*command, "--mlflow", "off"], check=True)  # noqa: S603 - see above
        PAGE.write_text(page(store), encoding="utf-8")


if __name__ == "__main__":
    main()
