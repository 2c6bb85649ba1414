"""Where output ends: a pipe that nobody reads, a full disk, a closed stream, a terminal that knows ASCII alone.

Results go through :func:`tell`, which raises if they did not arrive; notes through :func:`say`, which never does: a
run must not end because nobody reads its notes.
"""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable
from typing import IO, Any, TextIO, cast

from defense.errors import PuregridError
from defense.redaction import redacted
from defense.text import visible

__all__ = ["BROKEN_PIPE", "OutputLost", "colours", "is_terminal", "paint", "say", "steady_streams", "tell", "width"]

BROKEN_PIPE = 141
"""Exit status where the reader of a pipe has left: that of a program that SIGPIPE ends, as a shell reports it."""

_ASCII = str.maketrans(
    {
        **dict.fromkeys("━─═", "-"),
        **dict.fromkeys("┃│║", "|"),
        **dict.fromkeys("┏┓┗┛┡┩├┤┬┴┼┳┻╇┢┪┌┐└┘╈╋", "+"),
        **{"±": "+/-", "·": "*", "…": "...", "×": "x", "≤": "<=", "≥": ">=", "−": "-", "–": "-", "→": "->"},
    }
)


class OutputLost(PuregridError):
    """What a command printed did not arrive.

    Attributes:
        status: The exit status that the command ends with.
    """

    def __init__(self, error: OSError) -> None:
        self.quiet = error.errno == errno.EPIPE
        self.status = BROKEN_PIPE if self.quiet else 1
        super().__init__(
            f"the output could not be written ({error.strerror or error}). What is committed stays; give the command "
            "again with its output elsewhere."
        )


class _Watched:
    """A stream whose writes raise :class:`OutputLost`: Typer prints help by itself and makes status 1 of EPIPE."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        """See :class:`io.TextIOBase`."""
        return self._watched(lambda: self._stream.write(text))

    def flush(self) -> None:
        """See :class:`io.TextIOBase`."""
        self._watched(self._stream.flush)

    def _watched(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError as error:
            _to_nowhere(self._stream)
            raise OutputLost(error) from error


def steady_streams() -> None:
    """Make the three standard streams safe to use.

    A descriptor that the caller closed would be given to the next file that is opened, a store's or a socket, and
    what a library prints would end in it: such ones lead to nowhere instead. Characters that a stream's encoding
    lacks are written out, not raised.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
            if nowhere != descriptor:  # descriptors are given out from the lowest
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(OSError, ValueError):
                reconfigure(errors="backslashreplace")
    if sys.stdout is not None:
        sys.stdout = cast(TextIO, _Watched(sys.stdout))


def tell(text: object, *, end: str = "\n", styled: bool = False) -> None:
    """Print a result to stdout.

    Arguments:
        text: The text; control characters in it are written out.
        end: What follows it.
        styled: Whether its escapes are colours of our own and stay; names in it must have been written out before.

    Raises:
        OutputLost: It did not arrive.
    """
    _write(visible(redacted(str(text)), keep="\n\t\r\x1b" if styled else "\n\t\r") + end)


def paint(text: str) -> None:
    """Print a text that has colours: its escapes are puregrid's, and names in it have been written out before.

    Raises:
        OutputLost: It did not arrive.
    """
    _write(redacted(text))


def _write(text: str) -> None:
    stream = sys.stdout
    try:
        if stream is None:
            raise OSError(errno.EBADF, "stdout is closed")
        stream.write(_fitting(text, stream))
        stream.flush()
    except OSError as error:
        _to_nowhere(stream)
        raise OutputLost(error) from error


def colours() -> bool:
    """Return whether stdout is a terminal that shows colours, and its user has not asked for none (``NO_COLOR``)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("", "dumb"):
        return False
    return is_terminal(sys.stdout)


def is_terminal(stream: IO[str] | None) -> bool:
    """Return whether a person is at a standard stream, which is None or raises where it was closed."""
    with contextlib.suppress(OSError, ValueError):
        return stream is not None and stream.isatty()
    return False


def say(message: str) -> None:
    """Print a note to stderr, if anybody is there."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.write(_fitting(visible(redacted(message)) + "\n", stream))
        stream.flush()
    except (OSError, ValueError):
        _to_nowhere(stream)


def width() -> int | None:
    """Return the columns that tables on stdout may have; None where it is no terminal and there is no ``COLUMNS``."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def _fitting(text: str, stream: IO[str]) -> str:
    """Return a text in characters that the stream's encoding has, frames of tables as ``+-|``; others are escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = "".join(letter if _has(letter, encoding) else letter.translate(_ASCII) for letter in text)
        return plain.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        pass
    return text


def _has(letter: str, encoding: str) -> bool:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _to_nowhere(stream: Any) -> None:
    """Give what is still in a stream's buffer to nobody, so that the interpreter does not fail with it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
