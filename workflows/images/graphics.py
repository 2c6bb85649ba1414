"""Which images a terminal shows.

Without ``--images`` the rule is: none where stdout is no terminal, in one that shows no colours, and for a user who
wants none (``NO_COLOR``, ``--color never``). Else sixel graphics if the terminal has them, which it says in its name
(``TERM`` with ``sixel``) or when it is asked for its attributes (``ESC [ c``, answered in 0.3 s with attribute 4).
Else blocks. It is asked only if stdin is a terminal, too, and the process is in the foreground.
"""

import contextlib
import os
import re
import select
import sys
import time

__all__ = ["CHOICES", "cell_size", "has_sixel", "wanted_images"]

CHOICES = ("auto", "sixel", "blocks", "none")

_SECONDS = 0.3
_CELL = (10, 20)
"""Pixels of a character where the terminal does not say: those of the VT340."""


def wanted_images(images: str, color: str, *, colours: bool) -> str:
    """Return ``sixel``, ``blocks`` or ``none``."""
    if images != "auto":
        return images
    if color == "always":
        return "blocks"
    if color == "never" or not colours:
        return "none"
    return "sixel" if _asked() else "blocks"


def _asked() -> bool:
    if "sixel" in os.environ.get("TERM", ""):
        return True
    with contextlib.suppress(OSError, ValueError, AttributeError):  # streams that are closed, or none
        keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
        return os.isatty(keyboard) and os.isatty(screen) and has_sixel(keyboard, screen)
    return False


def has_sixel(keyboard: int, screen: int, seconds: float = _SECONDS) -> bool:
    """Ask a terminal for its attributes; returns whether sixel graphics are one of them.

    Arguments:
        keyboard: Descriptor from which it answers.
        screen: Descriptor to which it listens.
        seconds: How long it has to answer; one that does not has none.
    """
    import termios
    import tty

    if os.tcgetpgrp(keyboard) != os.getpgrp():
        return False  # changing the terminal would stop a process in the background
    before = termios.tcgetattr(keyboard)
    answer = b""
    try:
        tty.setcbreak(keyboard, termios.TCSANOW)
        os.write(screen, b"\x1b[c")
        until = time.monotonic() + seconds
        while b"c" not in answer and (left := until - time.monotonic()) > 0:
            if select.select([keyboard], [], [], left)[0]:
                answer += os.read(keyboard, 64)
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, before)
    found = re.search(rb"\x1b\[\?([\d;]+)c", answer)
    return found is not None and b"4" in found[1].split(b";")


def cell_size() -> tuple[int, int]:
    """Return width and height of a character in pixels, as the terminal on stdout says."""
    import fcntl
    import struct
    import termios

    with contextlib.suppress(OSError, ValueError):
        answer = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
        rows, columns, width, height = struct.unpack("HHHH", answer)
        if rows and columns and width >= columns and height >= rows:
            return width // columns, height // rows
    return _CELL
